"""What the errors about concepts cost, where errors differ in cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.data.concepts import ConceptSet
from vitrarium.data.costs import error_costs
from vitrarium.eval.metrics.base import METRICS, RatioMetric, need_concepts
from vitrarium.eval.metrics.concepts import value_table
from vitrarium.eval.metrics.layout import TRUTH_RULE, group_right, layout


@METRICS.register("concept_error_cost")
class ConceptErrorCost(RatioMetric):
    """Mean over images of the summed costs of all wrong answers about their concepts.

    A yes/no concept that is present and denied costs ``missed``, one that is absent and affirmed ``false_alarm``
    (threshold 0.5); a categorical group whose argmax is wrong costs what its true value says. Without costs it is the
    mean number of wrong answers per image. Images with no known truth are left out.

    Args:
        classes: C.
        concepts: the concept set of the data.
        costs: as in the term "concepts", see :func:`~vitrarium.data.costs.error_costs`.
    """

    fields: ClassVar[tuple[str, ...]] = ("probabilities", "concepts")
    category = "concept"
    higher_is_better = False
    missed: Tensor
    false_alarm: Tensor

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, costs: Mapping[str, Any] | None = None
    ) -> None:
        known = need_concepts(concepts, "concept_error_cost")
        super().__init__(classes, known, 1)
        self.asked, self.costs = known, {} if costs is None else dict(costs)
        missed, false_alarm = (torch.from_numpy(c).float() for c in error_costs(known, self.costs))
        self.register_buffer("missed", missed, persistent=False)
        self.register_buffer("false_alarm", false_alarm, persistent=False)

    @property
    def choices(self) -> dict[str, Any]:
        """What is an answer and what errors cost."""
        answer = "argmax of a categorical group, > 0.5 elsewhere"
        return {"answer": answer, "costs": self.costs, "truth": TRUTH_RULE}

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Costs of each image, and whether anything about it is known."""
        where = layout(self.asked, truth.device)
        right, known = group_right(answers, truth, self.asked)
        _, alarms, misses, _ = value_table(answers, truth)
        single = (misses * self.missed + alarms * self.false_alarm)[:, where.single].sum(1, keepdim=True)
        if len(where.block_groups):
            outside = truth.new_full((truth.shape[0], 1), float("-inf"))
            true_value = torch.cat([truth, outside], 1)[:, where.blocks].argmax(-1)
            price = torch.cat([self.missed, self.missed.new_zeros(1)])[where.blocks]
            wrong = (known - right)[:, where.block_groups]
            single = single + (wrong * price.gather(1, true_value.T).T).sum(1, keepdim=True)
        return single, known.sum(1, keepdim=True) > 0
