"""How strongly a refit is penalised, chosen on validation: as sparse as it can be without saying less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.models.readouts.refit import RefitProblem, Refitted, refit

L1 = (1e-5, 1e-4, 1e-3, 1e-2)
L2 = (1e-5, 1e-4, 1e-3, 1e-2)

Examples = tuple[Tensor, Tensor]
"""Vectors (N, E) and labels (N,) int64."""


class Weights(Protocol):
    """A readout as numbers: a problem's start or a solution."""

    @property
    def weight(self) -> Tensor:
        """(C, E)."""

    @property
    def bias(self) -> Tensor | None:
        """(C,), or None."""


class Measured(NamedTuple):
    """How good a readout is on some examples.

    Attributes:
        log_loss: mean -log probability of the true class.
        accuracy: share of right answers.
    """

    log_loss: float
    accuracy: float


@dataclass
class Choice:
    """A refit with the strengths that validation chose.

    Attributes:
        fitted: the solution.
        l1: strength of the L1 penalty.
        l2: strength of the L2 penalty.
        tried: log-loss on validation by (l1, l2).
        val: how good it is on validation.
        problem: what was fitted.
    """

    fitted: Refitted
    l1: float
    l2: float
    tried: dict[tuple[float, float], float]
    val: Measured
    problem: RefitProblem

    @property
    def zeros(self) -> float:
        """Share of 0 among the weights that are penalised and not held by their bounds; NaN without any."""
        free = self.problem.penalised & (self.problem.upper > self.problem.lower)
        return float((self.fitted.weight[free] == 0).double().mean())


def choose_refit(
    train: Examples,
    val: Examples,
    problem: RefitProblem,
    l1: Sequence[float] = L1,
    l2: Sequence[float] = L2,
    errors: float = 1.0,
    iterations: int = 2000,
    tolerance: float = 1e-6,
) -> Choice:
    """Fit with several strengths and choose by validation log-loss.

    First the L2 strength with the smallest log-loss, without L1. With it, of the L1 strengths and 0 the largest whose
    log-loss is not above the smallest by more than ``errors`` standard errors of that smallest one (the
    one-standard-error rule of Breiman et al., Classification and Regression Trees, 1984). Log-loss and not accuracy, as
    on a thousand images many strengths tie in accuracy.

    Args:
        train: what is fitted to.
        val: what chooses.
        problem: start, what is penalised, bounds.
        l1: candidates above 0; without any, or where nothing is penalised, there is no L1 penalty.
        l2: candidates.
        errors: standard errors that sparsity may cost.
        iterations: limit of each fit.
        tolerance: of each fit.

    Raises:
        UserError: no validation images, no candidates for ``l2``, and as
            :func:`~vitrarium.models.readouts.refit.refit`.
    """
    if not len(val[0]):
        raise UserError("the strength of a refit cannot be chosen without validation images", "give a validation split")
    if not l2:
        raise UserError("no strengths for l2", "give at least one, such as 0.001")
    fits: dict[tuple[float, float], Refitted] = {}
    losses: dict[tuple[float, float], Tensor] = {}
    start = problem
    # Each solution is a good start for the next.
    for two in sorted(set(l2), reverse=True):
        fits[0.0, two] = refit(*train, start, 0.0, two, iterations, tolerance)
        losses[0.0, two] = log_losses(fits[0.0, two], *val)
        start = at(problem, fits[0.0, two])
    two = min(losses, key=lambda key: float(losses[key].mean()))[1]
    start = at(problem, fits[0.0, two])
    for one in sorted(set(l1)) if bool(problem.penalised.any()) else ():
        fits[one, two] = refit(*train, start, one, two, iterations, tolerance)
        losses[one, two] = log_losses(fits[one, two], *val)
        start = at(problem, fits[one, two])
    path = {one: loss for (one, other), loss in losses.items() if other == two}
    best = min(path.values(), key=lambda loss: float(loss.mean()))
    limit = float(best.mean()) + errors * standard_error(best)
    one = max(one for one, loss in path.items() if float(loss.mean()) <= limit)
    tried = {key: float(loss.mean()) for key, loss in losses.items()}
    return Choice(fits[one, two], one, two, tried, measure(fits[one, two], val), problem)


def at(problem: RefitProblem, fitted: Refitted) -> RefitProblem:
    """The problem with another start."""
    return replace(problem, weight=fitted.weight, bias=fitted.bias)


def measure(weights: Weights, examples: Examples) -> Measured:
    """Log-loss and accuracy of weights on some examples."""
    scores = scores_of(weights, examples[0])
    right = scores.argmax(1) == examples[1]
    return Measured(float(functional.cross_entropy(scores, examples[1])), float(right.double().mean()))


def log_losses(weights: Weights, vectors: Tensor, labels: Tensor) -> Tensor:
    """(N,) -log softmax(W v + b)[y]."""
    return functional.cross_entropy(scores_of(weights, vectors), labels, reduction="none")


def scores_of(weights: Weights, vectors: Tensor) -> Tensor:
    """(N, C) W v + b in double precision."""
    bias = None if weights.bias is None else weights.bias.double()
    return functional.linear(vectors.double(), weights.weight.double(), bias)


def standard_error(values: Tensor) -> float:
    """Of the mean of (N,) values; 0 for a single one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
