"""How often, and how surely, the class is right."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, Measure, RatioMetric


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) float, 1 where the largest logit (B, C) is that of the label (the first one among equals)."""
    return (logits.argmax(-1) == labels).float()


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) negative log-likelihood of the label, in nats: -log softmax(logits)[label]."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) sum over classes of (p_c - [c = label])^2, in [0, 2] (Brier, Monthly Weather Review 1950)."""
    probabilities = logits.float().softmax(-1)
    return (probabilities - functional.one_hot(labels, logits.shape[-1])).square().sum(-1)


def per_class(logits: Tensor, labels: Tensor, by: str) -> tuple[Tensor, Tensor]:
    """Right answers and images counted per class, both (B, C) float.

    Args:
        logits: (B, C).
        labels: (B,).
        by: "label" counts each image at its class (ratios are recalls), "prediction" at the class it was given
            (ratios are precisions).
    """
    counted = labels if by == "label" else logits.argmax(-1)
    images = functional.one_hot(counted, logits.shape[-1]).float()
    return images * correct(logits, labels)[:, None], images


class TaskMetric(RatioMetric):
    """What the metrics of the class share: they read logits and label."""

    fields: ClassVar[tuple[str, ...]] = ("logits", "label")
    category = "task"
    higher_is_better = True
    cells: ClassVar[int | None] = 1

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        super().__init__(classes, concepts, classes if self.cells is None else self.cells)


@METRICS.register("accuracy")
class Accuracy(TaskMetric):
    """Share of images whose most probable class is right."""

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Right or wrong, one each."""
        return _mean(correct(answers, truth))


@METRICS.register("balanced_accuracy")
class BalancedAccuracy(TaskMetric):
    """Mean over classes of the share of their images that are right; classes without images are left out."""

    cells = None

    @property
    def choices(self) -> dict[str, Any]:
        """How classes are averaged."""
        return {"average": "mean of the recalls of the classes that have images"}

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Right answers and images of each class."""
        return per_class(answers, truth, "label")


@METRICS.register("precision")
class Precision(TaskMetric):
    """Mean over classes of the share of right answers among the images given to them."""

    cells = None

    @property
    def choices(self) -> dict[str, Any]:
        """How classes are averaged."""
        return {"average": "mean over the classes that were ever given"}

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Right answers and predictions of each class."""
        return per_class(answers, truth, "prediction")


@METRICS.register("recall")
class Recall(BalancedAccuracy):
    """Mean over classes of the share of their images that were found; another name of balanced accuracy."""


@METRICS.register("nll")
class NegativeLogLikelihood(TaskMetric):
    """Mean negative log-likelihood of the label, in nats."""

    higher_is_better = False

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The log loss of each image."""
        return _mean(log_loss(answers, truth))


@METRICS.register("brier")
class Brier(TaskMetric):
    """Mean Brier score over all classes, in [0, 2]."""

    higher_is_better = False

    def ratio(self, answers: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The Brier score of each image."""
        return _mean(brier(answers, truth))


@METRICS.register("support")
class Support(Measure):
    """Number of images a row of a table is about."""

    fields = ("label",)
    category = "task"
    higher_is_better = None


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B,) as a ratio with one cell."""
    return values[:, None], torch.ones_like(values)[:, None]
