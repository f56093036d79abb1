"""Terms on the class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.data.source import DataSource
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term


@TERMS.register("cross_entropy")
class CrossEntropy(Term):
    """Cross-entropy of the class: mean over the batch of -log softmax(logits)[label].

    Args:
        source: the data; class frequencies are counted on its training split.
        smoothing: label smoothing in [0, 1).
        balanced: weigh each class by N / (C N_c), so that rare classes count as much as frequent ones.
    """

    weight: Tensor

    def __init__(self, source: DataSource, smoothing: float = 0.0, balanced: bool = False) -> None:
        super().__init__(source)
        if not 0 <= smoothing < 1:
            raise UserError(f"smoothing={smoothing}", "give a number from 0 to below 1")
        self.smoothing = smoothing
        weight = torch.ones(len(source.class_names))
        if balanced:
            counts = torch.bincount(torch.as_tensor(source.splits["train"].labels), minlength=len(weight))
            weight = counts.sum() / (len(weight) * counts.clamp_min(1))
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, step: Step) -> Tensor:
        """Weighted mean over the batch of all processes."""
        weight = self.weight.to(step.output.logits.dtype)
        total = functional.cross_entropy(
            step.output.logits, step.batch.label, weight, reduction="sum", label_smoothing=self.smoothing
        )
        return shared_mean(total, weight[step.batch.label].sum())
