"""Knowing when not to answer: how sure a model is, and the threshold below which it says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest

SCORES = ("probability", "margin")
# Share that is answered at least, where nobody asked for anything.
LEAST = 0.8
# Level of the bound that is noted where nobody asked for one.
USUAL = 0.95


def confidence_of(logits: Tensor, score: str = "probability") -> Tensor:
    """How sure a model is of the class it names, (B,) float64 in [0, 1] on the CPU.

    Args:
        logits: (B, C).
        score: "probability" of that class, or its "margin" over the probability of the runner-up.
    """
    # Double precision tells answers apart that all round to 1 in single precision.
    probabilities = logits.detach().cpu().double().softmax(-1)
    if score == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return first - second
    return probabilities.amax(-1)


class Ranked:
    """Answers in the order of their confidence, most confident first.

    A threshold answers images of equal confidence together, so they form one step.

    Args:
        confidence: (N,) of each answer, N >= 1.
        wrong: (N,) bool, whether it is wrong.

    Attributes:
        thresholds: (G,) float64, the distinct confidences, descending.
    """

    def __init__(self, confidence: Tensor, wrong: Tensor) -> None:
        values, self._order = confidence.double().sort(descending=True, stable=True)
        last = torch.ones(len(values), dtype=torch.bool)
        last[:-1] = values[1:] != values[:-1]
        self._ends = last.nonzero()[:, 0]
        self._wrong = wrong[self._order].double()
        self.thresholds = values[self._ends]

    def __len__(self) -> int:
        return len(self._order)

    def steps(self, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images answered, and errors among them, at each threshold: both (G,) float64.

        Args:
            counts: (S, N) how often each image counts in each of S resamples; the results are (S, G) then.
        """
        weights = torch.ones_like(self._wrong) if counts is None else counts[:, self._order].double()
        answered, errors = weights.cumsum(-1), (weights * self._wrong).cumsum(-1)
        return answered[..., self._ends], errors[..., self._ends]


def upper_bound(errors: float, images: float, level: float) -> float:
    """Largest error rate that is still plausible: the one-sided upper end of Clopper and Pearson (Biometrika 1934).

    The rate b with P(Binomial(images, b) <= errors) = 1 - level.
    """
    from scipy.special import betaincinv

    return 1.0 if errors >= images else float(betaincinv(errors + 1, images - errors, level))


@dataclass(frozen=True)
class Abstention:
    """When a model does not answer, and what that was worth on the images it was chosen on.

    Attributes:
        threshold: an answer of lower confidence is withheld.
        score: what confidence is (:func:`confidence_of`).
        rule: "risk" (largest error among the answered) or "coverage" (least share that is answered).
        target: what the rule asked for.
        confidence: how surely the true error was to keep to the target; None = only the error on these images was.
        met: whether the target was reached; if not, the threshold is the one that came closest.
        coverage: share of the images that were answered.
        risk: share of errors among these.
        bound: upper bound on the true error of the answered, at level ``confidence`` or else at 95 %. It allows for the
            search for the threshold only where a ``confidence`` was asked for.
        images: how many it was chosen on.
        split: which they were.
    """

    threshold: float
    score: str
    rule: str
    target: float
    confidence: float | None
    met: bool
    coverage: float
    risk: float
    bound: float
    images: int
    split: str = "val"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Any) -> Abstention:
        """Inverse of :meth:`to_dict`.

        Raises:
            UserError: something that is no description of a threshold.
        """
        names = [f.name for f in fields(Abstention)]
        known = isinstance(data, Mapping) and set(data) == set(names)
        if not known or data["score"] not in SCORES or not isinstance(data["threshold"], int | float):
            raise UserError(
                f"the threshold for abstaining is not readable: {data!r}"[:200],
                f"expected {', '.join(names)}; set it anew: vitrarium evaluate RUN --abstain-risk 0.01",
            )
        return Abstention(**data)

    def words(self) -> str:
        """The rule and what it came to, in one sentence."""
        aim = f"at most {self.target:.2%} errors among the answered"
        if self.rule == "coverage":
            aim = f"at least {self.target:.1%} of the images answered"
        sure = f" with {self.confidence:.0%} confidence" if self.confidence is not None else ""
        missed = "" if self.met else " (not reached: this is the closest)"
        return (
            f"answers where its {self.score} is at least {self.threshold:.4g}; chosen for {aim}{sure}{missed}; on "
            f"{self.images} validation images it answered {self.coverage:.1%} with {self.risk:.2%} errors "
            f"(at most {self.bound:.2%}, {self.confidence or USUAL:.0%} bound)"
        )


@dataclass(frozen=True)
class AbstentionRule:
    """How the threshold is chosen.

    Without ``risk`` and ``coverage`` the target is half of the error that answering everything makes, with at least
    four fifths of the images answered: a demand that suits easy and hard data alike, where a fixed one would be met by
    everything or by nothing. A model that cannot reach it answers the four fifths it is surest of, or somewhat more.

    Attributes:
        score: "probability" or "margin".
        risk: largest error among the answered, in [0, 1).
        coverage: least share that is answered, in (0, 1].
        confidence: None compares the error on the given images with the target. A level in (0, 1) compares an upper
            bound that holds with this confidence for images of the same kind, over the whole search (Geifman and
            El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017, algorithm SGR).

    Raises:
        UserError: values out of range, or two targets at once.
    """

    score: str = "probability"
    risk: float | None = None
    coverage: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UserError(f"abstain.score is '{self.score}'", closest(self.score, SCORES))
        if self.risk is not None and self.coverage is not None:
            raise UserError(
                "abstain.risk and abstain.coverage are both given", "give one of them: each decides the threshold"
            )
        if self.coverage is not None and self.confidence is not None:
            raise UserError("abstain.confidence is about abstain.risk", "leave it out with abstain.coverage")
        for name, value, fits in (
            ("risk", self.risk, lambda v: 0 <= v < 1),
            ("coverage", self.coverage, lambda v: 0 < v <= 1),
            ("confidence", self.confidence, lambda v: 0 < v < 1),
        ):
            if value is not None and not fits(value):
                raise UserError(f"abstain.{name} is {value}", "give a share between 0 and 1, such as 0.05 or 0.95")

    def choose(self, logits: Tensor, labels: Tensor, split: str = "val") -> Abstention:
        """The threshold that answers most (for a risk) or least (for a coverage) while keeping to the target.

        Candidates are the confidences of the given images. A target that no candidate keeps gives the one that comes
        closest, and the largest of these, with ``met`` false.

        Args:
            logits: (N, C), N >= 1.
            labels: (N,).
            split: where they come from; noted only.
        """
        wrong = logits.argmax(-1) != labels
        ranked = Ranked(confidence_of(logits, self.score), wrong)
        answered, errors = (step.tolist() for step in ranked.steps())
        thresholds = ranked.thresholds.tolist()
        if self.coverage is not None:
            place, met = next(g for g, n in enumerate(answered) if n >= self.coverage * len(ranked) - 1e-9), True
            rule, target = "coverage", self.coverage
        else:
            rule, target = "risk", errors[-1] / len(ranked) / 2 if self.risk is None else self.risk
            enough = 0.0 if self.risk is not None else LEAST * len(ranked)
            first = next(g for g, n in enumerate(answered) if n >= enough)
            answered, errors, thresholds = answered[first:], errors[first:], thresholds[first:]
            place, met = self._within(answered, errors, target)
        n, e = answered[place], errors[place]
        return Abstention(
            threshold=thresholds[place],
            score=self.score,
            rule=rule,
            target=target,
            confidence=self.confidence,
            met=met,
            coverage=n / len(ranked),
            risk=e / n,
            bound=upper_bound(e, n, self._level(len(answered))),
            images=len(ranked),
            split=split,
        )

    def _level(self, candidates: int) -> float:
        """The level of each bound such that all bounds of a search by halves hold together (Bonferroni)."""
        return USUAL if self.confidence is None else 1 - (1 - self.confidence) / candidates.bit_length()

    def _within(self, answered: list[float], errors: list[float], target: float) -> tuple[int, bool]:
        """Place of the threshold for a risk, and whether it keeps to it."""
        if self.confidence is None:
            risks = [e / n for n, e in zip(answered, errors, strict=True)]
            kept = [g for g, risk in enumerate(risks) if risk <= target + 1e-12]
        else:
            level, kept = self._level(len(answered)), []
            low, high = 0, len(answered) - 1
            while low <= high:
                place = (low + high) // 2
                if upper_bound(errors[place], answered[place], level) <= target:
                    kept.append(place)
                    low = place + 1
                else:
                    high = place - 1
            risks = [] if kept else [upper_bound(e, n, level) for n, e in zip(answered, errors, strict=True)]
        if kept:
            return max(kept), True
        least = min(risks)
        return max(g for g, risk in enumerate(risks) if math.isclose(risk, least, abs_tol=1e-12)), False
