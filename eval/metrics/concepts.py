"""How well concepts are recognised: value by value, group by group, all at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, RatioMetric, SumMetric, need_concepts
from vitrarium.eval.metrics.layout import TRUTH_RULE, group_right, known_values


def value_table(probabilities: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True positives, false positives, false negatives, true negatives, each (B, K) bool; unknown truth is in none."""
    present, known = known_values(truth)
    said = probabilities > 0.5
    return said & present & known, said & ~present & known, ~said & present & known, ~said & ~present & known


@METRICS.register("concept_accuracy")
class ConceptAccuracy(RatioMetric):
    """Mean over groups of the share of right answers: the argmax of categorical groups, threshold 0.5 elsewhere.

    Args:
        classes: C.
        concepts: the concept set of the data.
    """

    fields: ClassVar[tuple[str, ...]] = ("probabilities", "concepts")
    category = "concept"
    higher_is_better = True

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        known = need_concepts(concepts, "concept_accuracy")
        super().__init__(classes, known, len(known.groups))
        self.asked = known

    @property
    def choices(self) -> dict[str, Any]:
        """What is an answer and how answers are averaged."""
        return {"answer": "argmax of a categorical group, > 0.5 elsewhere", "average": "groups", "truth": TRUTH_RULE}

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Right and judged answers of each group."""
        return group_right(answers, truth, self.asked)


@METRICS.register("all_concepts_right")
class AllConceptsRight(RatioMetric):
    """Share of images on which every answer that can be judged is right; images with no known truth are left out.

    Args:
        classes: C.
        concepts: the concept set of the data.
    """

    fields: ClassVar[tuple[str, ...]] = ("probabilities", "concepts")
    category = "concept"
    higher_is_better = True

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        known = need_concepts(concepts, "all_concepts_right")
        super().__init__(classes, known, 1)
        self.asked = known

    @property
    def choices(self) -> dict[str, Any]:
        """What is an answer."""
        return {"answer": "argmax of a categorical group, > 0.5 elsewhere", "truth": TRUTH_RULE}

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Whether all are right, whether any is known."""
        right, known = group_right(answers, truth, self.asked)
        judged = known.sum(1, keepdim=True) > 0
        return judged & (right == known).all(1, keepdim=True), judged


class ValueMetric(SumMetric):
    """What the metrics over binary values share: a confusion table (true/false positives/negatives) per concept.

    Args:
        classes: C.
        concepts: the concept set of the data.
    """

    fields: ClassVar[tuple[str, ...]] = ("probabilities", "concepts")
    category = "concept"
    higher_is_better = True

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        super().__init__(classes, concepts, 4 * len(need_concepts(concepts, type(self).__name__)))

    @property
    def choices(self) -> dict[str, Any]:
        """What is an answer and how answers are averaged."""
        return {"answer": "probability > 0.5, value by value", "average": "binary values", "truth": TRUTH_RULE}

    def parts(self, answers: Tensor, truth: Tensor) -> Tensor:
        """The four tables side by side, (B, 4 K)."""
        return torch.cat(value_table(answers, truth), 1).float()

    def each(self, sums: Tensor) -> Tensor:
        """The metric of each concept (..., K), NaN where it is not defined."""
        return self.of_table(*sums.chunk(4, -1))

    @abstractmethod
    def of_table(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """The metric from counts (..., K)."""


@METRICS.register("concept_value_accuracy")
class ConceptValueAccuracy(ValueMetric):
    """Mean over binary values of the share of right yes/no answers.

    With one-hot groups most values are absent, so that always saying "no" already scores high: never compare it with
    ``concept_accuracy``.
    """

    def of_table(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """(tp + tn) / all."""
        return _divide(tp + tn, tp + fp + fn + tn)


@METRICS.register("concept_f1")
class ConceptF1(ValueMetric):
    """Mean F1 = 2 tp / (2 tp + fp + fn) over the concepts whose truth has both labels."""

    @property
    def choices(self) -> dict[str, Any]:
        """As for all values, and which concepts count."""
        return {**super().choices, "average": "binary values with both labels"}

    def of_table(self, tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
        """2 tp / (2 tp + fp + fn), NaN unless both labels occur."""
        both = (tp + fn > 0) & (fp + tn > 0)
        return torch.where(both, _divide(2 * tp, 2 * tp + fp + fn), torch.full_like(tp, float("nan")))


def _divide(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp_min(1e-12), torch.full_like(above, float("nan")))
