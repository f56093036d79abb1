"""Whether a model knows when it does not know: the error among the answers it is most sure of."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, Metric
from vitrarium.eval.metrics.classification import TaskMetric, correct
from vitrarium.models.abstention import SCORES, Ranked, confidence_of

# Sums of 1 / 1 ... 1 / n, grown when more are needed.
_HARMONIC = torch.zeros(1, dtype=torch.float64)


def harmonic(counts: Tensor) -> Tensor:
    """H(n) = 1 + 1/2 + ... + 1/n of whole numbers, float64; H(0) = 0."""
    global _HARMONIC
    largest = int(counts.max())
    if largest >= len(_HARMONIC):
        _HARMONIC = pad((1 / torch.arange(1, 2 * largest + 1, dtype=torch.float64)).cumsum(0), (1, 0))
    return _HARMONIC[counts.long()]


def area_under_risk_coverage(answered: Tensor, errors: Tensor) -> Tensor:
    """AURC: the mean over i = 1 ... N of the error among the i most confident answers.

    Where images tie, the mean over all orders of them is taken, in closed form: behind M images with E errors come n
    with e, and sum_{i=1..n} (E + i e/n) / (M + i) = e + (E - M e/n) (H(M + n) - H(M)).

    Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017; Geifman, Uziel and El-Yaniv,
    Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019.

    Args:
        answered: (..., G) images answered at each step, the last one all N (:meth:`Ranked.steps`).
        errors: (..., G) errors among them.

    Returns:
        (...) float64 in [0, 1]; NaN where there are no images.
    """
    before, so_far = pad(answered, (1, 0))[..., :-1], pad(errors, (1, 0))[..., :-1]
    images, wrong = answered - before, errors - so_far
    share = wrong / images.clamp_min(1)
    sums = wrong + (so_far - before * share) * (harmonic(answered) - harmonic(before))
    return sums.sum(-1) / answered[..., -1]


def least_area(images: Tensor, errors: Tensor) -> Tensor:
    """AURC of the best order there is for so many errors: all of them last.

    sum_{i=N-e+1..N} (i - (N - e)) / i / N = (e - (N - e) (H(N) - H(N - e))) / N, which is exact where the literature
    takes a logarithm.
    """
    right = images - errors
    return (errors - right * (harmonic(images) - harmonic(right))) / images


def risk_at_coverage(answered: Tensor, errors: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
    """The first step that answers at least a share of the images.

    Args:
        answered: (..., G).
        errors: (..., G).
        coverage: (K,) in (0, 1].

    Returns:
        Error among the answered (..., K), and the share that is answered (..., K): more than asked where images tie.
    """
    images = answered[..., -1:]
    # A billionth less, so that rounding does not ask for one image more.
    wanted = (coverage.to(answered) * images - 1e-9).ceil().clamp_min(1)
    step = torch.searchsorted(answered.contiguous(), wanted).clamp_max(answered.shape[-1] - 1)
    given = answered.gather(-1, step)
    return errors.gather(-1, step) / given, given / images


def coverage_at_risk(answered: Tensor, errors: Tensor, risk: float) -> Tensor:
    """Largest share of the images (...) that can be answered with at most this error; 0 where none can."""
    kept = errors <= risk * answered + 1e-9
    return (answered * kept).amax(-1) / answered[..., -1]


def _refuse(name: str, value: float, fits: bool) -> None:
    if not fits:
        raise UserError(f"{name}={value}", "give a share between 0 and 1, such as 0.05 or 0.8")


def _refuse_score(score: str) -> None:
    if score not in SCORES:
        raise UserError(f"confidence cannot be '{score}'", closest(score, SCORES))


class RankedMetric(Metric):
    """A metric of the order that confidence brings answers into.

    Exact, so the state is one doubt and one truth per image: 8 bytes. Doubt is 1 - confidence, which keeps its digits
    in single precision where confidence is next to 1.

    Args:
        classes: C.
        concepts: not used; every metric is offered them.
        score: what confidence is, "probability" or "margin".
    """

    fields: ClassVar[tuple[str, ...]] = ("logits", "label")
    category = "task"
    higher_is_better = False
    doubt: list[Tensor]
    wrong: list[Tensor]

    def __init__(self, classes: int, concepts: ConceptSet | None = None, score: str = "probability") -> None:
        _refuse_score(score)
        super().__init__(classes, concepts)
        self.score = score
        self.add_state("doubt", [], dist_reduce_fx="cat")
        self.add_state("wrong", [], dist_reduce_fx="cat")

    @property
    def choices(self) -> dict[str, Any]:
        """What is sorted by, and what becomes of ties."""
        return {"confidence": self.score, "ties": "answered together"}

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Keep a batch: logits (B, C) and label (B,)."""
        self.doubt.append((1 - confidence_of(logits, self.score)).float().to(self.device))
        self.wrong.append(1 - correct(logits, label))

    def compute(self) -> Tensor:
        """The metric over all that was added; NaN for nothing."""
        doubt, wrong = (
            torch.cat([torch.zeros(0), *(part.cpu() for part in state)]) if isinstance(state, list) else state.cpu()
            for state in (self.doubt, self.wrong)
        )
        if not len(doubt):
            return torch.tensor(float("nan"), device=self.device)
        return self.of(*Ranked(1 - doubt.double(), wrong > 0).steps()).float().to(self.device)

    @abstractmethod
    def of(self, answered: Tensor, errors: Tensor) -> Tensor:
        """The metric (...) from the steps (..., G) of :meth:`Ranked.steps`."""


@METRICS.register("aurc")
class AreaUnderRiskCoverage(RankedMetric):
    """Area under the risk-coverage curve: the mean error among the i most confident answers, over all i."""

    @property
    def choices(self) -> dict[str, Any]:
        """What is sorted by, and what becomes of ties."""
        return {"confidence": self.score, "ties": "mean over all orders"}

    def of(self, answered: Tensor, errors: Tensor) -> Tensor:
        """See :func:`area_under_risk_coverage`."""
        return area_under_risk_coverage(answered, errors)


@METRICS.register("excess_aurc")
class ExcessArea(AreaUnderRiskCoverage):
    """AURC above that of the best order with as many errors: 0 for a model that is least sure wherever it errs."""

    def of(self, answered: Tensor, errors: Tensor) -> Tensor:
        """See :func:`least_area`."""
        least = least_area(answered[..., -1], errors[..., -1])
        # Rounding must not take it below the least there is.
        return (area_under_risk_coverage(answered, errors) - least).clamp_min(0)


@METRICS.register("risk_at_coverage")
class RiskAtCoverage(RankedMetric):
    """Error among the most confident answers.

    Args:
        classes: C.
        concepts: not used; every metric is offered them.
        score: what confidence is, "probability" or "margin".
        coverage: share of the images that is answered, in (0, 1].
    """

    def __init__(
        self,
        classes: int,
        concepts: ConceptSet | None = None,
        score: str = "probability",
        coverage: float = 0.8,
    ) -> None:
        _refuse("coverage", coverage, 0 < coverage <= 1)
        super().__init__(classes, concepts, score)
        self.coverage = coverage

    @property
    def choices(self) -> dict[str, Any]:
        """What is sorted by, and the share that is answered."""
        return {**super().choices, "coverage": self.coverage}

    def of(self, answered: Tensor, errors: Tensor) -> Tensor:
        """See :func:`risk_at_coverage`."""
        wanted = torch.tensor([self.coverage], dtype=torch.float64).expand(*answered.shape[:-1], 1)
        return risk_at_coverage(answered, errors, wanted)[0][..., 0]


@METRICS.register("coverage_at_risk")
class CoverageAtRisk(RankedMetric):
    """Largest share of the images that can be answered with a given error, if the threshold is known.

    Args:
        classes: C.
        concepts: not used; every metric is offered them.
        score: what confidence is, "probability" or "margin".
        risk: largest error among the answered, in [0, 1).
    """

    higher_is_better = True

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, score: str = "probability", risk: float = 0.01
    ) -> None:
        _refuse("risk", risk, 0 <= risk < 1)
        super().__init__(classes, concepts, score)
        self.risk = risk

    @property
    def choices(self) -> dict[str, Any]:
        """What is sorted by, the error, and that the threshold is the best one for these very images."""
        return {**super().choices, "risk": self.risk, "threshold": "the best for these images"}

    def of(self, answered: Tensor, errors: Tensor) -> Tensor:
        """See :func:`coverage_at_risk`."""
        return coverage_at_risk(answered, errors, self.risk)


class ThresholdMetric(TaskMetric):
    """A metric of what is answered at a fixed threshold.

    Args:
        classes: C.
        concepts: not used; every metric is offered them.
        threshold: answers of lower confidence are withheld.
        score: what confidence is, "probability" or "margin".
    """

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, threshold: float = 0.5, score: str = "probability"
    ) -> None:
        _refuse_score(score)
        super().__init__(classes, concepts)
        self.threshold, self.score = threshold, score

    @property
    def choices(self) -> dict[str, Any]:
        """The threshold, and what it is compared with."""
        return {"threshold": self.threshold, "confidence": self.score}

    def answered(self, logits: Tensor) -> Tensor:
        """(B,) float, 1 where the model answers."""
        return (confidence_of(logits, self.score) >= self.threshold).float().to(logits.device)


@METRICS.register("coverage_at_threshold")
class CoverageAtThreshold(ThresholdMetric):
    """Share of the images that a model with a threshold answers."""

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Answered or not, one each."""
        answered = self.answered(answers)[:, None]
        return answered, torch.ones_like(answered)


@METRICS.register("risk_at_threshold")
class RiskAtThreshold(ThresholdMetric):
    """Share of errors among the images that a model with a threshold answers; NaN where it answers none."""

    higher_is_better = False

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Errors among the answered, and the answered."""
        answered = self.answered(answers)[:, None]
        return answered * (1 - correct(answers, truth)[:, None]), answered
