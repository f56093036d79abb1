"""Whether confidence can be taken at its word."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, SumMetric, need_concepts
from vitrarium.eval.metrics.classification import correct
from vitrarium.eval.metrics.layout import known_values


def calibration_gaps(confidence: Tensor, right: Tensor, bins: int) -> Tensor:
    """What each answer adds to the gap of its confidence bin.

    Bin b of n holds confidences in ((b - 1)/n, b/n]; zero goes to the first. The sum over images of a column is
    n_b (accuracy_b - confidence_b), so ECE = sum_b |column sum| / N (Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017).

    Args:
        confidence: (...) in [0, 1].
        right: (...) 0 or 1.
        bins: number of equal-width bins.

    Returns:
        (..., bins).
    """
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = confidence.new_zeros(*confidence.shape, bins)
    return gaps.scatter(-1, place[..., None], (right - confidence)[..., None])


def expected_calibration_error(gaps: Tensor, count: Tensor) -> Tensor:
    """Summed gaps (..., bins) and number of answers (...) to the calibration error (...), NaN where there were none."""
    error = gaps.abs().sum(-1) / count.clamp_min(1e-12)
    return torch.where(count > 0, error, torch.full_like(error, float("nan")))


def _refuse_bins(bins: int) -> None:
    if bins < 1:
        raise UserError(f"bins={bins}", "give at least one bin")


@METRICS.register("ece")
class ExpectedCalibrationError(SumMetric):
    """Expected calibration error of the most probable class.

    Args:
        classes: C.
        concepts: not used; every metric is offered them.
        bins: number of equal-width bins of confidence.
    """

    fields: ClassVar[tuple[str, ...]] = ("logits", "label")
    category = "task"
    higher_is_better = False

    def __init__(self, classes: int, concepts: ConceptSet | None = None, bins: int = 15) -> None:
        _refuse_bins(bins)
        super().__init__(classes, concepts, bins + 1)
        self.bins = bins

    @property
    def choices(self) -> dict[str, Any]:
        """Bins and what is binned."""
        return {"bins": self.bins, "binning": "equal width", "confidence": "most probable class"}

    def parts(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Gaps per bin and a one, (B, bins + 1)."""
        confidence = answers.float().softmax(-1).amax(-1)
        gaps = calibration_gaps(confidence, correct(answers, truth), self.bins)
        return torch.cat([gaps, torch.ones_like(gaps[:, :1])], 1)

    def each(self, sums: Tensor) -> Tensor:
        """Sum of the absolute gaps over the number of images (..., 1)."""
        return expected_calibration_error(sums[..., :-1], sums[..., -1])[..., None]


@METRICS.register("concept_ece")
class ConceptCalibrationError(SumMetric):
    """Mean over concepts of the calibration error of "this concept is present".

    Args:
        classes: C.
        concepts: the concept set of the data.
        bins: number of equal-width bins of the predicted probability.
    """

    fields: ClassVar[tuple[str, ...]] = ("probabilities", "concepts")
    category = "concept"
    higher_is_better = False

    def __init__(self, classes: int, concepts: ConceptSet | None = None, bins: int = 15) -> None:
        _refuse_bins(bins)
        size = len(need_concepts(concepts, "concept_ece"))
        super().__init__(classes, concepts, size * (bins + 1))
        self.bins = bins

    @property
    def choices(self) -> dict[str, Any]:
        """Bins and what is binned."""
        return {"bins": self.bins, "binning": "equal width", "confidence": "of presence", "average": "mean of concepts"}

    def parts(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Gaps per concept and bin, and whether the truth is known, (B, K (bins + 1))."""
        present, known = known_values(truth)
        gaps = calibration_gaps(answers.float(), present.float(), self.bins) * known[..., None]
        return torch.cat([gaps, known[..., None].float()], -1).flatten(1)

    def each(self, sums: Tensor) -> Tensor:
        """The calibration error of each concept (..., K)."""
        cells = sums.unflatten(-1, (-1, self.bins + 1))
        return expected_calibration_error(cells[..., :-1], cells[..., -1])
