"""Accuracy against the number of corrected groups, from cached evidence: the backbone never runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import Collected, chunks, respond
from vitrarium.eval.interventions.base import POLICIES, Policy
from vitrarium.eval.interventions.corrector import Corrector, annotation, value_source
from vitrarium.eval.interventions.linear import LinearSteps
from vitrarium.eval.interventions.running import Session, Trial, adaptive_trial, static_trial
from vitrarium.eval.metrics.resampling import Bootstrap, Interval
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import set_units
from vitrarium.models.modes import evaluating
from vitrarium.models.types import Evidence

MOST_BUDGETS = 41


@dataclass
class Curve:
    """What correcting exactly k groups of every image does to the class accuracy.

    A group whose truth nobody knows is asked (it counts towards k and is paid for) and nothing is learned from it:
    ``unanswered`` says how many such questions each image had on average.

    Attributes:
        policy: name of the policy.
        budgets: the J numbers k of groups asked, ascending.
        groups: G, how many could be asked.
        cost: (J,) mean price of the questions per image.
        accuracy: (J,) mean over trials.
        low: (J,) lower end of the 95 % bootstrap interval over images of the mean over trials.
        high: (J,) upper end.
        sd: (J,) standard deviation over trials (n - 1): 0 for a policy without chance, NaN for a single random trial.
        unanswered: (J,) mean number of questions per image that nobody could answer.
        trials: how many random orders were averaged.
        per_trial: (trials, J) accuracies.
        right: (N, J) share of the trials in which each image is right.
        bootstrap: the resamples the interval came from.
        choices: every choice that decides the numbers.
    """

    policy: str
    budgets: list[int]
    groups: int
    cost: Tensor
    accuracy: Tensor
    low: Tensor
    high: Tensor
    sd: Tensor
    unanswered: Tensor
    trials: int
    per_trial: Tensor
    right: Tensor
    bootstrap: Bootstrap
    choices: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Tensor:
        """(J,) weights of the trapezoid rule over the budgets, summing to 1."""
        if len(self.budgets) == 1:
            return torch.ones(1, dtype=torch.float64)
        k = torch.tensor(self.budgets, dtype=torch.float64)
        steps = k.diff() / (k[-1] - k[0])
        weights = torch.zeros_like(k)
        weights[:-1] += steps / 2
        weights[1:] += steps / 2
        return weights

    @property
    def area(self) -> float:
        """Area under the curve by trapezoids, over the span of the budgets: a mean accuracy in [0, 1].

        With all budgets 0 .. G it is (sum_k (A(k) + A(k + 1)) / 2) / G.
        """
        return float(self.accuracy @ self.weights)

    @property
    def area_interval(self) -> Interval:
        """95 % bootstrap interval of the area over images."""
        return self.bootstrap.of_mean(self.right @ self.weights)

    @property
    def start(self) -> float:
        """Accuracy at the smallest budget."""
        return float(self.accuracy[0])

    @property
    def fully_corrected(self) -> float:
        """Accuracy with every group asked; NaN if that budget was not run."""
        return float(self.accuracy[-1]) if self.budgets[-1] == self.groups else float("nan")

    @property
    def gain(self) -> float:
        """Accuracy with every group asked minus accuracy with none: below zero the curve falls."""
        return self.fully_corrected - self.start if self.budgets[0] == 0 else float("nan")

    @property
    def gain_interval(self) -> Interval:
        """95 % bootstrap interval of the gain: both ends come from the same images."""
        return self.bootstrap.of_mean(self.right[:, -1] - self.right[:, 0])

    def table(self) -> list[dict[str, Any]]:
        """One row per budget: policy, budget, cost, accuracy, low, high, sd, trials."""
        columns = {"cost": self.cost, "accuracy": self.accuracy, "low": self.low, "high": self.high, "sd": self.sd}
        return [
            {
                "policy": self.policy,
                "budget": budget,
                **{name: float(values[j]) for name, values in columns.items()},
                "trials": self.trials,
            }
            for j, budget in enumerate(self.budgets)
        ]


def intervention_curve(
    model: TransparentClassifier,
    collected: Collected,
    policy: Policy | Mapping[str, Any] | str = "random",
    *,
    trials: int = 10,
    budgets: Sequence[int] | None = None,
    corrector: Corrector | None = None,
    chunk: int = 4096,
    seed: int = 0,
    bootstrap: Bootstrap | int = 1000,
) -> Curve:
    """Ask exactly k groups of each image, in the order of a policy, and see how often the class is right.

    Args:
        model: the classifier ``collected`` comes from.
        collected: cached evidence, logits and labels of N images.
        policy: a policy, or its name, or ``{name, **options}``.
        trials: orders to average for a policy with chance; others run once.
        budgets: numbers of groups to ask, each in 0 .. G; default: all of them, or 41 evenly spaced ones where G > 40.
        corrector: who answers; default: the annotation of the data set.
        chunk: most images at a time.
        seed: of the orders.
        bootstrap: number of resamples, or the resamples themselves to share them between metrics.

    Raises:
        UserError: units that cannot be corrected or ranked, impossible budgets, answers that do not fit.
    """
    if trials < 1:
        raise UserError(f"trials={trials}", "give at least 1")
    (name, chosen), units = _policy(policy), model.evidence.units.judged
    chosen.require(units)
    corrector = corrector or annotation(model, collected)
    if tuple(corrector.truth.shape) != (len(collected), len(units)):
        raise UserError(
            f"answers of shape {tuple(corrector.truth.shape)} for {len(collected)} images and {len(units)} units",
            "the data set's concepts must be those the model was trained on",
        )
    session = _session(model, collected, corrector, _budgets(budgets, len(units.groups)), chunk, chosen.static)
    runs = trials if chosen.stochastic else 1
    run = static_trial if chosen.static else adaptive_trial
    results = [run(session, chosen, torch.Generator().manual_seed(_trial_seed(seed, t))) for t in range(runs)]
    resamples = bootstrap if isinstance(bootstrap, Bootstrap) else Bootstrap(len(collected), bootstrap, seed)
    choices = {
        **chosen.choices,
        **resamples.choices,
        "policy": name,
        "trials": runs,
        "seed": seed,
        "groups": len(units.groups),
        "budgets": len(session.budgets),
        "truth": corrector.source,
        "level": corrector.level,
        "values": value_source(units),
    }
    return _summary(name, session.budgets, results, resamples, choices, chosen.stochastic)


def _summary(
    name: str,
    budgets: list[int],
    results: Sequence[Trial],
    resamples: Bootstrap,
    choices: dict[str, Any],
    stochastic: bool,
) -> Curve:
    """Mean, spread and interval of some trials."""
    right = torch.stack([r.right for r in results]).double()
    per_trial, unanswered = right.mean(1), torch.stack([r.unanswered for r in results]).mean(0)
    low, high = resamples.of_means(right.mean(0))
    single = torch.full_like(per_trial[0], float("nan") if stochastic else 0.0)
    return Curve(
        policy=name,
        budgets=budgets,
        groups=choices["groups"],
        cost=torch.stack([r.cost for r in results]).mean(0),
        accuracy=per_trial.mean(0),
        low=low,
        high=high,
        sd=per_trial.std(0) if len(results) > 1 else single,
        unanswered=unanswered,
        trials=len(results),
        per_trial=per_trial,
        right=right.mean(0),
        bootstrap=resamples,
        choices={**choices, "unanswered": round(float(unanswered[-1]) / max(1, budgets[-1]), 6)},
    )


def accuracy_fully_corrected(
    model: TransparentClassifier, collected: Collected, corrector: Corrector | None = None, chunk: int = 4096
) -> float:
    """Class accuracy when every group that can be answered is corrected."""
    groups = len(model.evidence.units.judged.groups)
    curve = intervention_curve(
        model, collected, trials=1, budgets=[groups], corrector=corrector, chunk=chunk, bootstrap=0
    )
    return curve.fully_corrected


def _policy(policy: Policy | Mapping[str, Any] | str) -> tuple[str, Policy]:
    if isinstance(policy, Policy):
        return type(policy).__name__.lower(), policy
    name = policy if isinstance(policy, str) else str(policy.get("name", ""))
    return name, POLICIES.build(policy)


def _budgets(budgets: Sequence[int] | None, groups: int) -> list[int]:
    """The budgets to run, ascending, each once."""
    if budgets is None:
        count = min(groups + 1, MOST_BUDGETS)
        return sorted({round(j * groups / max(1, count - 1)) for j in range(count)})
    wrong = [k for k in budgets if not isinstance(k, int) or not 0 <= k <= groups]
    if wrong or not budgets:
        raise UserError(
            f"cannot ask {wrong[0] if wrong else 'an empty list'} of {groups} groups",
            f"give whole numbers 0 .. {groups}",
        )
    return sorted(set(budgets))


def _trial_seed(seed: int, trial: int) -> int:
    """A seed of its own for every (seed, trial)."""
    return (seed * 1_000_003 + trial) % 2**63


def _session(
    model: TransparentClassifier,
    collected: Collected,
    corrector: Corrector,
    budgets: list[int],
    chunk: int,
    static: bool,
) -> Session:
    """Everything a trial needs, computed once."""
    units = model.evidence.units.judged
    truth, known = corrector.answers(units)
    units = replace(units, alive=units.alive.cpu(), absent=units.absent.cpu(), present=units.present.cpu())
    full = set_units(units, truth, torch.ones_like(truth, dtype=torch.bool))
    costs = torch.from_numpy(units.concepts.costs)
    with evaluating(model):
        outputs = [respond(model, collected.evidence[rows], full[rows]) for rows in chunks(len(collected), chunk)]
        linear = None
        if static and len(budgets) > 2:
            corrected = Evidence.cat([output.evidence for output in outputs])
            linear = LinearSteps.of(model, collected.evidence, corrected, units, full)
    logits = torch.cat([output.logits for output in outputs])
    return Session(model, collected, units, full, known, costs, budgets, chunk, logits, linear)
