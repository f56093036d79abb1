"""The contract of metrics and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torchmetrics
from torch import Tensor

from vitrarium.configs.registry import Registry
from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.records import Category
from vitrarium.models.types import Output

METRICS = Registry(
    "metric",
    [
        "vitrarium.eval.metrics.classification",
        "vitrarium.eval.metrics.calibration",
        "vitrarium.eval.metrics.concepts",
        "vitrarium.eval.metrics.errors",
        "vitrarium.eval.metrics.ranking",
        "vitrarium.eval.metrics.selective",
        "vitrarium.eval.metrics.compactness",
        "vitrarium.eval.metrics.sizes",
        "vitrarium.eval.metrics.parts.agreement",
        "vitrarium.eval.metrics.parts.stability",
        "vitrarium.eval.metrics.parts.localisation",
        "vitrarium.eval.metrics.parts.location_instability",
        "vitrarium.eval.metrics.parts.part_interpretability",
        "vitrarium.eval.metrics.self_explaining",
        "vitrarium.eval.metrics.cost",
        "vitrarium.eval.metrics.human",
        "vitrarium.eval.interventions.measures",
        "vitrarium.eval.axes.records",
    ],
)


def read_fields(fields: tuple[str, ...], output: Output, batch: Batch) -> list[Tensor] | None:
    """The tensors that a metric names, or None when the model or the data has one of them not.

    Args:
        fields: of "logits" (B, C), "label" (B,), "probabilities" (B, K) of the units, "concepts" (B, K) truth, "head"
            (B, C) the logits of a black-box head beside the units.
        output: what the model answered.
        batch: what it was asked.
    """
    known = {
        "logits": output.logits,
        "label": batch.label,
        "probabilities": output.evidence.probabilities,
        "concepts": batch.concepts,
        "head": output.evidence.context.get("head"),
    }
    tensors = [known[name] for name in fields]
    if any(t is None for t in tensors):
        return None
    return [t.detach() for t in tensors]  # type: ignore[union-attr]


class Described:
    """What every metric says of itself.

    Attributes:
        fields: what it reads: tensors named as in :func:`read_fields` for streaming metrics; "model", "evidence",
            "images", "curve" or "second annotator" for others.
        higher_is_better: True, False, or None where neither is better.
        category: the kind of quality it measures.
    """

    fields: ClassVar[tuple[str, ...]]
    higher_is_better: bool | None
    category: ClassVar[Category]

    @property
    def choices(self) -> dict[str, Any]:
        """Every choice that decides the number."""
        return {}


class Metric(Described, torchmetrics.Metric, ABC):
    """A streaming metric: update it batch by batch, under one process or many.

    A subclass is built as ``METRICS.build({name, **options}, classes=C, concepts=ConceptSet | None)``.

    Args:
        classes: C.
        concepts: the concept set of the data, or None.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        super().__init__()
        self.classes, self.concepts = classes, concepts

    def update_output(self, output: Output, batch: Batch) -> bool:
        """Add one batch, reading the fields the metric names.

        Returns:
            False when model or data lack a field: then nothing was added.
        """
        tensors = read_fields(self.fields, output, batch)
        if tensors is None:
            return False
        self.update(*tensors)
        return True


class SumMetric(Metric):
    """A metric that compares answers with truth, image by image, and is a function of sums over images.

    That one property gives three things at once: a state of fixed size, exact agreement of one and many processes, and
    bootstrap intervals by a single matrix product (weighted sums in place of sums).

    Args:
        classes: C.
        concepts: the concept set of the data, or None.
        width: J, how many sums it keeps.
    """

    sums: Tensor

    def __init__(self, classes: int, concepts: ConceptSet | None, width: int) -> None:
        super().__init__(classes, concepts)
        self.add_state("sums", torch.zeros(width, dtype=torch.float32), dist_reduce_fx="sum")

    @abstractmethod
    def parts(self, answers: Tensor, truth: Tensor) -> Tensor:
        """What each image adds to the sums, (B, J) float, from the two tensors that ``fields`` names."""

    @abstractmethod
    def each(self, sums: Tensor) -> Tensor:
        """Sums (..., J) to the metric of each class, group or concept (..., cells); NaN where it is not defined."""

    def finish(self, sums: Tensor) -> Tensor:
        """Sums (..., J) to the metric (...): the mean over the cells that are defined."""
        return self.each(sums).nanmean(-1)

    def update(self, answers: Tensor, truth: Tensor) -> None:
        """Add a batch: the two tensors that ``fields`` names, what was answered and what is true."""
        self.sums = self.sums + self.parts(answers, truth).sum(0).to(self.sums)

    def compute(self) -> Tensor:
        """The metric over all that was added."""
        return self.finish(self.sums)


class RatioMetric(SumMetric):
    """The mean over J cells of (sum of numerators) / (sum of denominators); cells with denominator 0 are left out.

    One cell gives a plain mean over images; a cell per class, group or concept gives a macro average, and :meth:`each`
    gives the cells.
    """

    def __init__(self, classes: int, concepts: ConceptSet | None, cells: int) -> None:
        super().__init__(classes, concepts, 2 * cells)

    @abstractmethod
    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators (B, cells) of each image."""

    def parts(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Numerators and denominators side by side, (B, 2 cells)."""
        return torch.cat([part.float() for part in self.ratio(answers, truth)], 1)

    def each(self, sums: Tensor) -> Tensor:
        """Sums (..., 2 cells) to the ratio of each cell (..., cells), NaN where nothing was counted."""
        above, below = sums.chunk(2, -1)
        return torch.where(below > 0, above / below.clamp_min(1e-12), torch.full_like(above, float("nan")))


class Measure(Described):
    """A metric that is not gathered batch by batch: of a model, of cached evidence, of a curve."""


def need_concepts(concepts: ConceptSet | None, metric: str) -> ConceptSet:
    """The concept set, or a refusal that names the metric."""
    from vitrarium.configs.errors import UserError

    if concepts is None or len(concepts) == 0:
        raise UserError(f"metric '{metric}' needs a data set with concepts", "choose a data set that has them")
    return concepts
