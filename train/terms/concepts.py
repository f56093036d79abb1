"""Terms on the concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.models.evidence.concepts import GroupSoftmax
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.weights import ConceptFactors, concept_factors

REDUCTIONS = ("mean", "sum")


@TERMS.register("concepts")
class ConceptLoss(Term):
    """How well the concepts are predicted (Koh et al., ICML 2020).

    Cross-entropy in each categorical group, binary cross-entropy for each other concept; unknown truth (NaN) is left
    out; soft truth in [0, 1] is taken as it is; ``concept_weight`` of the batch multiplies each entry. With truth c and
    probability p, for a yes/no concept k and a categorical group g:

        l_k = -a_k c_k log p_k - b_k (1 - c_k) log(1 - p_k)
        l_g = -sum over values v of a_v c_v log p_v

    ``imbalance`` and ``costs`` decide the factors a and b, which are 1 otherwise. Of the training images whose truth is
    known, N are annotated, n_k of them with k, and V_g values of g occur:

    - "weight" multiplies a whole question, whatever its answer: a_k = b_k = N / n_k - 1 (what the released code of Koh
      et al. does), and a_v = mean over the values u of g of (N / n_u - 1) / (V_g - 1), which is 1 where all values of
      the group are equally frequent;
    - "pos_weight" multiplies one answer: a_k = N / n_k - 1, b_k = 1, and a_v = N / (V_g n_v);
    - ``costs`` multiply in turn: a by the cost of missing what is true, b by that of a false alarm.

    What never occurs has factor 1. Two released code bases mean different things by the same weight of this term: one
    sums over the concepts, one averages.

    Args:
        source: the data; concept frequencies are counted on its training split.
        reduction: over the groups and yes/no concepts of an image: "mean" (over all that are known in the batch) or
            "sum" (then mean over images; for G known groups this is G times the mean).
        imbalance: "none", "weight" or "pos_weight".
        weights: how much a concept or group counts, by its name; 1 for those not named, 0 leaves it out. In a "mean"
            they are the weights of the mean, so that a common factor changes nothing.
        costs: what errors cost: ``{concept: {missed: 5, false_alarm: 1}}``, ``{group: {value: 5}}``.

    Raises:
        UserError: no concepts, unknown names or words, weights below 0, costs that are not above 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"concepts", "scores"})
    present: Tensor
    absent: Tensor
    importance: Tensor

    def __init__(
        self,
        source: DataSource,
        reduction: Literal["mean", "sum"] = "mean",
        imbalance: Literal["none", "weight", "pos_weight"] = "none",
        weights: Mapping[str, float] | None = None,
        costs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(source)
        if reduction not in REDUCTIONS:
            raise UserError(f"term 'concepts' has no reduction '{reduction}'", closest(reduction, REDUCTIONS))
        if source.concepts is None:
            raise UserError("term 'concepts' needs a data set with concepts", "choose another data set or preset")
        self.reduction = reduction
        self.softmax = GroupSoftmax(source.concepts)
        factors = concept_factors(source, imbalance, {} if weights is None else weights, {} if costs is None else costs)
        for name, factor in factors._asdict().items():
            self.register_buffer(name, factor.float(), persistent=False)

    def forward(self, step: Step) -> Tensor:
        """Scalar loss."""
        assert step.output.evidence.scores is not None
        assert step.batch.concepts is not None
        losses, weights = concept_losses(
            step.output.evidence.scores, step.batch.concepts, self.softmax,
            step.batch.concept_weight, ConceptFactors(self.present, self.absent, self.importance),
        )  # fmt: skip
        total = (losses * weights).sum()
        if self.reduction == "sum":
            return shared_mean(total, total.new_tensor(float(len(step.batch))))
        return shared_mean(total, weights.sum())


def concept_losses(
    scores: Tensor, truth: Tensor, softmax: GroupSoftmax, weight: Tensor | None, factors: ConceptFactors
) -> tuple[Tensor, Tensor]:
    """Loss of every group and yes/no concept, and how much it counts.

    Args:
        scores: (B, K).
        truth: (B, K) in [0, 1], NaN = unknown.
        softmax: knows the groups.
        weight: (B, K) annotation weights or None; a group counts with the mean of its members.
        factors: of frequencies, costs and importance.

    Returns:
        Losses and weights (B, G + K'), categorical groups first; unknown entries have weight 0 and loss 0.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    truth = truth.to(scores)
    present, absent, importance = (factor.to(scores) for factor in factors)
    weight = importance.expand_as(truth) if weight is None else weight.to(scores) * importance
    parts, counts = [], []
    if softmax.has_blocks:
        inside = softmax.inside
        known = ~torch.isnan(softmax.gather(truth, 0.0)).any(-1)
        block_truth = softmax.gather(truth.nan_to_num(0.0) * present, 0.0)
        log_probability = softmax.gather(scores, float("-inf")).log_softmax(-1)
        # Padding has log-probability -inf: it is replaced before the product, or 0 * -inf would be NaN.
        log_probability = log_probability.masked_fill(~inside, 0.0)
        parts.append(-(block_truth * log_probability).sum(-1) * known)
        members = inside.sum(-1)
        counts.append(softmax.gather(weight, 0.0).sum(-1) / members * known)
    if not softmax.all_blocks:
        free = ~softmax.categorical
        t, s = truth[:, free], scores[:, free]
        known = ~torch.isnan(t)
        t = t.nan_to_num(0.0)
        loss = -present[free] * t * functional.logsigmoid(s) - absent[free] * (1 - t) * functional.logsigmoid(-s)
        parts.append(loss * known)
        counts.append(weight[:, free] * known)
    return torch.cat(parts, 1), torch.cat(counts, 1)
