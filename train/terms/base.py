"""The contract of loss terms, and what they may share within a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry
from vitrarium.data.batch import Batch
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.types import Output

TERMS = Registry(
    "loss term",
    [
        "vitrarium.train.terms.classification",
        "vitrarium.train.terms.concepts",
        "vitrarium.train.terms.pipnet",
        "vitrarium.train.terms.prototypes",
        "vitrarium.train.terms.marked_patches",
        "vitrarium.train.terms.slots",
        "vitrarium.train.terms.deformable",
        "vitrarium.train.terms.parts",
        "vitrarium.train.terms.axes",
        "vitrarium.train.terms.self_explaining",
        "vitrarium.train.terms.robustness",
        "vitrarium.train.terms.part_filters",
    ],
)


@dataclass
class Step:
    """One training step as the terms see it.

    Attributes:
        model: the classifier.
        batch: the batch; ``batch.image`` requires a gradient if some term needs "input_gradient".
        output: the answer to ``batch.image`` under the stage's training intervention.
        views: the answers to ``batch.views``.
        progress: share of the stage that is done, in [0, 1).
    """

    model: TransparentClassifier
    batch: Batch
    output: Output
    views: list[Output] = field(default_factory=list)
    progress: float = 0.0
    _shared: dict[str, Tensor] = field(default_factory=dict)

    def share(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()`` once per step under the name ``what``, however many terms ask for it."""
        if what not in self._shared:
            self._shared[what] = compute()
        return self._shared[what]

    def input_gradient(self) -> Tensor:
        """(B, 3, H, W) gradient of the true-class logit with respect to the pixels, with its graph."""

        def compute() -> Tensor:
            chosen = self.output.logits.gather(1, self.batch.label[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, self.batch.image, create_graph=True)
            return gradient

        return self.share("input_gradient", compute)


class Term(nn.Module, ABC):
    """One term of the loss: a small class around a free function of tensors.

    Built as ``TERMS.build({name, **options}, source=DataSource)``. Running state is kept as buffers, so it is saved.

    Attributes:
        needs: of the data ("concepts", "human_map", "keypoints", "part_masks"), of the model's evidence ("scores",
            "probabilities", "maps"), or of the step ("pixels", "input_gradient", "views").
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: DataSource) -> None:
        super().__init__()

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a model that this term cannot teach, where ``needs`` does not say it, before anything is trained."""

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The scalar loss of this step, before its weight."""


def build_terms(
    weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any] | None], source: DataSource
) -> nn.ModuleDict:
    """The terms of a loss by label.

    Args:
        weights: label to weight, from ``loss``.
        options: label to ``{name, **options}``, from ``terms``; a label without options is the name of a term.
        source: the data.
    """
    for label in options:
        if label not in weights:
            raise UserError(f"terms.{label} has options but no weight", closest(label, weights))
    specs = {label: {"name": label, **(options.get(label) or {})} for label in weights}
    return nn.ModuleDict({label: TERMS.build(spec, source=source) for label, spec in specs.items()})
