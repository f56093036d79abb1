"""Terms on the concepts."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.models.evidence.concepts import GroupSoftmax
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term

REDUCTIONS, IMBALANCE = ("mean", "sum"), ("none", "weight", "pos_weight")


@TERMS.register("concepts")
class ConceptLoss(Term):
    """How well the concepts are predicted (Koh et al., ICML 2020).

    Cross-entropy in each categorical group, binary cross-entropy for each other concept; unknown truth (NaN) is left
    out; soft truth in [0, 1] is taken as it is; ``concept_weight`` of the batch multiplies each entry.

    Two released code bases mean different things by the same weight: one sums over the concepts, one averages.

    Args:
        source: the data; concept frequencies are counted on its training split.
        reduction: over the groups and yes/no concepts of an image: "mean" (over all that are known in the batch) or
            "sum" (then mean over images; for G known groups this is G times the mean).
        imbalance: "none"; "pos_weight" multiplies the positive side of concept k by n_absent / n_present; "weight"
            multiplies both sides by it (what the released code of Koh et al. does: another loss). Yes/no concepts only.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"concepts", "scores"})
    ratio: Tensor

    def __init__(
        self,
        source: DataSource,
        reduction: Literal["mean", "sum"] = "mean",
        imbalance: Literal["none", "weight", "pos_weight"] = "none",
    ) -> None:
        super().__init__(source)
        for what, value, known in (("reduction", reduction, REDUCTIONS), ("imbalance", imbalance, IMBALANCE)):
            if value not in known:
                raise UserError(f"term 'concepts' has no {what} '{value}'", closest(value, known))
        if source.concepts is None:
            raise UserError("term 'concepts' needs a data set with concepts", "choose another data set or preset")
        self.reduction, self.imbalance = reduction, imbalance
        self.softmax = GroupSoftmax(source.concepts)
        self.register_buffer("ratio", absent_to_present(source), persistent=False)

    def forward(self, step: Step) -> Tensor:
        """Scalar loss."""
        assert step.output.evidence.scores is not None
        assert step.batch.concepts is not None
        losses, weights = concept_losses(
            step.output.evidence.scores, step.batch.concepts, self.softmax,
            step.batch.concept_weight, self.ratio, self.imbalance,
        )  # fmt: skip
        total = (losses * weights).sum()
        if self.reduction == "sum":
            return shared_mean(total, total.new_tensor(float(len(step.batch))))
        return shared_mean(total, weights.sum())


def concept_losses(
    scores: Tensor,
    truth: Tensor,
    softmax: GroupSoftmax,
    weight: Tensor | None,
    ratio: Tensor,
    imbalance: str,
) -> tuple[Tensor, Tensor]:
    """Loss of every group and yes/no concept, and how much it counts.

    Args:
        scores: (B, K).
        truth: (B, K) in [0, 1], NaN = unknown.
        softmax: knows the groups.
        weight: (B, K) annotation weights or None; a group counts with the mean of its members.
        ratio: (K,) n_absent / n_present on the training split.
        imbalance: "none", "weight" or "pos_weight".

    Returns:
        Losses and weights (B, G + K'), categorical groups first; unknown entries have weight 0 and loss 0.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    truth = truth.to(scores)
    weight = torch.ones_like(truth) if weight is None else weight.to(scores)
    parts, counts = [], []
    if softmax.has_blocks:
        inside = softmax.inside
        block_truth = softmax.gather(truth, 0.0)
        known = ~torch.isnan(block_truth).any(-1)
        log_probability = softmax.gather(scores, float("-inf")).log_softmax(-1)
        # Padding has log-probability -inf: it is replaced before the product, or 0 * -inf would be NaN.
        log_probability = log_probability.masked_fill(~inside, 0.0)
        parts.append(-(block_truth.nan_to_num(0.0) * log_probability).sum(-1) * known)
        members = inside.sum(-1)
        counts.append(softmax.gather(weight, 0.0).sum(-1) / members * known)
    if not softmax.all_blocks:
        free = ~softmax.categorical
        t, s = truth[:, free], scores[:, free]
        known = ~torch.isnan(t)
        t = t.nan_to_num(0.0)
        positive = ratio[free].to(scores) if imbalance == "pos_weight" else None
        loss = functional.binary_cross_entropy_with_logits(s, t, pos_weight=positive, reduction="none")
        if imbalance == "weight":
            loss = loss * ratio[free].to(scores)
        parts.append(loss * known)
        counts.append(weight[:, free] * known)
    return torch.cat(parts, 1), torch.cat(counts, 1)


def absent_to_present(source: DataSource) -> Tensor:
    """(K,) n_absent / n_present on the training split; 1 for a concept that is never present (or never known)."""
    truth = source.splits["train"].truth
    assert truth is not None
    present = np.nansum(truth, axis=0)
    known = (~np.isnan(truth)).sum(axis=0)
    ratio = np.where(present > 0, (known - present) / np.maximum(present, 1e-12), 1.0)
    return torch.from_numpy(ratio.astype(np.float32))
