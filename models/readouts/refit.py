"""Fit a linear readout to evidence that is held fixed: convex, exact, with L1 and bounds where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError

EXACT_UP_TO = 3e8
"""Products a pass (N x C x E) up to which double precision is taken."""


@dataclass(frozen=True)
class RefitProblem:
    """What a readout lets a refit change.

    Attributes:
        weight: (C, E) as it is now.
        bias: (C,) as it is now, or None.
        penalised: (C, E) bool, the weights that an L1 penalty may drive to 0.
        lower: (C, E) least weight, -inf = no bound.
        upper: (C, E) largest weight, inf = no bound.
    """

    weight: Tensor
    bias: Tensor | None
    penalised: Tensor
    lower: Tensor
    upper: Tensor

    def cpu(self) -> RefitProblem:
        """The problem on the CPU."""
        moved = {f.name: v.cpu() for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(self, **moved)

    def without(self, entries: Tensor) -> RefitProblem:
        """The problem in which some entries of the vector, (E,) bool, have weight 0 to every class."""
        return replace(self, lower=self.lower.masked_fill(entries, 0.0), upper=self.upper.masked_fill(entries, 0.0))


class Refitted(NamedTuple):
    """A solution.

    Attributes:
        weight: (C, E), as exact as the solver's precision.
        bias: (C,), or None.
        loss: mean cross-entropy on the data it was fitted to, without penalties.
        iterations: steps taken.
        residual: largest entry of the generalised gradient; 0 at the exact solution.
        converged: whether the residual came down to the tolerance.
    """

    weight: Tensor
    bias: Tensor | None
    loss: float
    iterations: int
    residual: float
    converged: bool


@torch.no_grad()
def refit(
    vectors: Tensor,
    labels: Tensor,
    problem: RefitProblem,
    l1: float = 0.0,
    l2: float = 0.0,
    iterations: int = 2000,
    tolerance: float = 1e-6,
) -> Refitted:
    """Multinomial logistic regression with a masked L1 penalty, an L2 penalty and a box for each weight.

        minimise  mean_i -log softmax(W v_i + b)[y_i]  +  l1 sum_{penalised} |W_ce|  +  l2/2 |W|^2
        subject to  lower <= W <= upper

    The bias is not penalised. Accelerated proximal gradient (Beck and Teboulle, SIAM J. Imaging Sciences 2009) with
    restarts (O'Donoghue and Candes, Found. Comput. Math. 2015) and a step found by backtracking; each column is
    measured by its root mean square, so that units on other scales do not slow it down. The proximal step of |w| on an
    interval is soft thresholding, then clipping. Deterministic; starts at the problem's weights. In float64 up to
    3e8 products a pass, in float32 above.

    Args:
        vectors: (N, E).
        labels: (N,) int64.
        problem: start, what is penalised, bounds.
        l1: strength, on the scale of the mean loss (ProtoPNet: 1e-4).
        l2: strength; scikit-learn's C is 1 / (l2 N).
        iterations: limit.
        tolerance: of the residual; 1e-5 at least in float32.

    Raises:
        UserError: no examples, vectors that are not finite, bounds that exclude each other, strengths below 0.
    """
    _check(vectors, labels, problem, l1, l2)
    exact = vectors.shape[0] * problem.weight.numel() <= EXACT_UP_TO
    dtype = torch.float64 if exact else torch.float32
    tolerance = tolerance if exact else max(tolerance, 1e-5)
    solver = _Solver(vectors.to(dtype), labels, problem, l1, l2)
    steps, residual = 0, float("inf")
    while steps < iterations and residual > tolerance:
        residual = solver.step()
        steps += 1
    bias = None if problem.bias is None else solver.bias
    return Refitted(
        solver.weight,
        bias,
        float(functional.cross_entropy(solver.scores, labels)),
        steps,
        residual,
        residual <= tolerance,
    )


class _Solver:
    """The state of the accelerated proximal gradient method; scores Z = V W^T + b travel with the weights."""

    def __init__(self, vectors: Tensor, labels: Tensor, problem: RefitProblem, l1: float, l2: float) -> None:
        self.vectors, self.labels, self.l2 = vectors, labels, l2
        self.lower, self.upper = problem.lower.to(vectors), problem.upper.to(vectors)
        self.metric = vectors.square().mean(0)
        # A unit that never answers has no scale of its own.
        self.metric = self.metric.clamp_min(float(self.metric.max()) * 1e-4 or 1.0)
        self.l1 = problem.penalised.to(vectors) * l1
        self.weight = torch.minimum(torch.maximum(problem.weight.detach().to(vectors), self.lower), self.upper)
        self.has_bias = problem.bias is not None
        self.bias = (
            self.weight.new_zeros(len(self.weight)) if problem.bias is None else problem.bias.detach().to(vectors)
        )
        self.scores = self._scores(self.weight, self.bias)
        self.before = (self.weight, self.bias, self.scores)
        self.momentum, self.curvature = 1.0, 1.0

    def _scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, self.vectors, weight.T)

    def step(self) -> float:
        """One step; the residual at the point it started from."""
        grown = 0.5 * (1 + (1 + 4 * self.momentum**2) ** 0.5)
        ahead = (self.momentum - 1) / grown
        here = (self.weight, self.bias, self.scores)
        # Scores are linear in the weights, so those of the point ahead cost no product.
        weight, bias, scores = (a + ahead * (a - b) for a, b in zip(here, self.before, strict=True))
        chances = scores.softmax(1)
        slope = chances / len(chances)
        slope[torch.arange(len(slope)), self.labels] -= 1 / len(slope)
        gradient = slope.T @ self.vectors + self.l2 * weight
        bias_gradient = slope.sum(0) if self.has_bias else torch.zeros_like(bias)
        while True:
            stretch = 1 / (self.curvature * self.metric)
            moved = self._prox(weight - stretch * gradient, stretch * self.l1)
            moved_bias = bias - bias_gradient / self.curvature
            moved_scores = self._scores(moved, moved_bias)
            change, bias_change = moved - weight, moved_bias - bias
            length = (self.metric * change.square()).sum() + bias_change.square().sum()
            bend = 2 * curve(chances, moved_scores - scores) + self.l2 * change.square().sum()
            # The step is short enough when the quadratic model lies above the smooth part of the objective.
            if bend <= self.curvature * length * (1 + 1e-6):
                break
            self.curvature *= 2
        residual = self.curvature * max(
            float((self.metric * change).abs().max()), float(bias_change.abs().max()) if self.has_bias else 0.0
        )
        turned = (change * self.metric * (moved - self.weight)).sum() + (bias_change * (moved_bias - self.bias)).sum()
        self.momentum = 1.0 if turned < 0 else grown
        self.before = here
        self.weight, self.bias, self.scores = moved, moved_bias, moved_scores
        self.curvature *= 0.9
        return residual

    def _prox(self, weight: Tensor, threshold: Tensor) -> Tensor:
        shrunk = weight.sign() * (weight.abs() - threshold).clamp_min(0)
        return torch.minimum(torch.maximum(shrunk, self.lower), self.upper)


def curve(chances: Tensor, change: Tensor) -> Tensor:
    """How far the mean cross-entropy lies above its tangent when scores change; exact also for small changes.

        mean_i  log sum_c p_ic exp(u_ic),    u_ic = d_ic - sum_c p_ic d_ic

    Args:
        chances: (N, C) p, the softmax of the scores.
        change: (N, C) d.
    """
    turned = change - (chances * change).sum(1, keepdim=True)
    # exp(u) - 1 - u, whose first two terms cancel where u is small.
    series = turned.square() * (0.5 + turned / 6 + turned.square() / 24)
    above = torch.where(turned.abs() < 1e-2, series, torch.expm1(turned.clamp_max(500)) - turned)
    return torch.log1p((chances * above).sum(1)).mean()


def _check(vectors: Tensor, labels: Tensor, problem: RefitProblem, l1: float, l2: float) -> None:
    if not len(vectors):
        raise UserError("a readout cannot be fitted to no images", "give a training split with images")
    if not bool(torch.isfinite(vectors).all()):
        raise UserError(
            "the evidence is not finite, so no readout can be fitted to it", "train longer, or lower train.lr"
        )
    if bool((problem.lower > problem.upper).any()):
        c, e = torch.nonzero(problem.lower > problem.upper)[0].tolist()
        raise UserError(
            f"weight ({c}, {e}) shall be at least {float(problem.lower[c, e]):g} and at most "
            f"{float(problem.upper[c, e]):g}",
            "take one of the two demands back",
        )
    if min(l1, l2) < 0:
        raise UserError(f"l1={l1}, l2={l2}", "give strengths of 0 or more")
