"""The human ceiling: how often a second annotator says what the first one said."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, Measure
from vitrarium.eval.metrics.layout import TRUTH_RULE, group_right


@dataclass
class Agreement:
    """How two annotators agree.

    Attributes:
        right: (N, G) answers of the second that the first gave too.
        judged: (N, G) answers that both gave.
    """

    right: Tensor
    judged: Tensor

    @property
    def groups(self) -> Tensor:
        """(G,) share of equal answers in each group, NaN where nobody was asked twice."""
        judged = self.judged.sum(0).double()
        share = self.right.sum(0).double() / judged.clamp_min(1)
        return torch.where(judged > 0, share, torch.full_like(share, float("nan")))

    @property
    def overall(self) -> float:
        """The mean over groups: the ceiling of ``concept_accuracy``."""
        return float(self.groups.nanmean())

    @property
    def all_right(self) -> float:
        """Share of images on which all answers agree: the ceiling of ``all_concepts_right``."""
        agreed, seen = self.all_parts.double().sum(0)
        return float(agreed / seen)

    @property
    def images(self) -> int:
        """Number of images with an answer of both."""
        return int(self.all_parts[:, 1].sum())

    @property
    def parts(self) -> Tensor:
        """(N, 2 G) what each image adds to the sums of ``concept_accuracy``, for intervals."""
        return torch.cat([self.right, self.judged], 1)

    @property
    def all_parts(self) -> Tensor:
        """(N, 2) what each image adds to the sums of ``all_concepts_right``: all equal, any answer of both."""
        seen = self.judged.sum(1) > 0
        return torch.stack([seen & (self.right == self.judged).all(1), seen], 1).float()


def human_agreement(second: Tensor, truth: Tensor, concepts: ConceptSet) -> Agreement:
    """Judge a second annotator as a model is judged, on the images and groups that he or she answered.

    Args:
        second: (N, K) answers of the second annotator in [0, 1], NaN where there is none; a categorical group counts
            only where all its members are given.
        truth: (N, K) answers of the first.
        concepts: the K concepts.

    Raises:
        UserError: different shapes.
    """
    if second.shape != truth.shape:
        raise UserError(
            f"second annotator of shape {tuple(second.shape)} for truth of shape {tuple(truth.shape)}",
            "give one row per image and one column per concept, NaN where there is no answer",
        )
    both = torch.where(torch.isnan(second), torch.full_like(truth, float("nan")), truth)
    return Agreement(*group_right(second.nan_to_num(0.0).to(truth.dtype), both, concepts))


@METRICS.register("human_agreement")
class HumanAgreement(Measure):
    """Concept accuracy of a second annotator against the first; a bar, not a property of the model."""

    fields = ("second annotator", "concepts")
    category = "concept"
    higher_is_better = None

    @property
    def choices(self) -> dict[str, str]:
        """What is an answer and how answers are averaged."""
        return {"answer": "of a second annotator", "average": "groups", "truth": TRUTH_RULE}


@METRICS.register("human_all_agree")
class HumanAllAgree(HumanAgreement):
    """Share of images on which all answers of two annotators agree; a bar for ``all_concepts_right``."""

    @property
    def choices(self) -> dict[str, str]:
        """What is an answer."""
        return {"answer": "of a second annotator", "truth": TRUTH_RULE}
