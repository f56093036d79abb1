"""Terms on the class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.data.source import DataSource
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.weights import class_weights


@TERMS.register("cross_entropy")
class CrossEntropy(Term):
    """Cross-entropy of the class: mean over the batch of -log softmax(logits)[label], weighted by class.

    With weights w the loss is sum of w[label] l / sum of w[label] over the batch: a common factor of all weights
    changes nothing. With ``focal`` = g above 0, l = -(1 - p)^g log p with p = softmax(logits)[label]: what is right
    already counts less (Lin et al., Focal loss for dense object detection, ICCV 2017).

    Args:
        source: the data; class frequencies are counted on its training split.
        smoothing: label smoothing in [0, 1).
        class_weight: "none", "balanced" (N / (C n_c)), "effective" (class-balanced loss, with ``beta``) or a mapping
            from class name to weight, 1 for classes not named; formulas in
            :func:`~vitrarium.train.terms.weights.class_weights`.
        beta: of "effective", in [0, 1): 0 weighs all alike, towards 1 as "balanced".
        focal: exponent g of the focal loss, at least 0; not together with smoothing.
    """

    weight: Tensor

    def __init__(
        self,
        source: DataSource,
        smoothing: float = 0.0,
        class_weight: str | Mapping[str, float] = "none",
        beta: float = 0.999,
        focal: float = 0.0,
    ) -> None:
        super().__init__(source)
        if not 0 <= smoothing < 1:
            raise UserError(f"smoothing={smoothing}", "give a number from 0 to below 1")
        if not 0 <= focal < float("inf"):
            raise UserError(f"focal={focal}", "give an exponent of 0 (off) or more, for instance 2")
        if focal and smoothing:
            raise UserError(f"focal={focal} with smoothing={smoothing}", "set one of them to 0")
        self.smoothing, self.focal = smoothing, focal
        weight = class_weights(source, class_weight, beta)
        if not bool(weight.any()):
            raise UserError("class_weight is 0 for every class", "give one class a weight above 0")
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, step: Step) -> Tensor:
        """Weighted mean over the batch of all processes."""
        return self.loss(step.output.logits, step.batch.label)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of logits (B, C) and labels (B,) int64; for terms that change the logits first."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        weight = self.weight.to(logits.dtype)
        if self.focal:
            total = (weight[label] * focal_losses(logits, label, self.focal)).sum()
        else:
            total = functional.cross_entropy(logits, label, weight, reduction="sum", label_smoothing=self.smoothing)
        return shared_mean(total, weight[label].sum())


def focal_losses(logits: Tensor, label: Tensor, exponent: float) -> Tensor:
    """(B,) -(1 - p)^exponent log p with p the probability of the label (Lin et al., ICCV 2017).

    Args:
        logits: (B, C).
        label: (B,) int64.
        exponent: 0 gives the cross-entropy.
    """
    log_p = logits.log_softmax(1).gather(1, label[:, None])[:, 0]
    # 1 - p without cancellation; never exactly 0, where an exponent below 1 has an infinite slope.
    rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(rest**exponent) * log_p
