"""How well probabilities rank images that have a concept above images that have not."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, Metric, need_concepts
from vitrarium.eval.metrics.layout import TRUTH_RULE, known_values
from vitrarium.eval.metrics.resampling import Bootstrap

RANKS_AT_ONCE = 8_000_000


def area_under_roc(scores: Tensor, positive: Tensor, counts: Tensor | None = None) -> Tensor:
    """Area under the receiver operating characteristic: the probability that a positive outscores a negative.

    AUC = sum_{i positive} sum_{j negative} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (P Q), the Mann-Whitney statistic
    (Hanley and McNeil, Radiology 1982), exact with ties, in O(N log N).

    Args:
        scores: (N,).
        positive: (N,) bool.
        counts: (N, S) how often each image counts in each of S resamples; None counts each once.

    Returns:
        A scalar, or (S,) for S resamples; NaN where a label is missing.
    """
    negatives, order = scores[~positive].sort()
    wanted = scores[positive]
    lower = torch.searchsorted(negatives, wanted, side="left")
    upper = torch.searchsorted(negatives, wanted, side="right")
    if counts is None:
        if len(negatives) == 0 or len(wanted) == 0:
            return torch.tensor(float("nan"))
        return (lower + upper).double().mean() / (2 * len(negatives))
    # Rows are images, so that picking them copies whole rows; below[j] counts the j smallest negatives.
    below = counts.new_zeros(len(negatives) + 1, counts.shape[1])
    # Sums run along memory: turning the table over and back costs less than adding rows that lie apart.
    below[1:] = counts[(~positive).nonzero()[:, 0][order]].T.contiguous().cumsum_(1).T
    weights = counts[positive.nonzero()[:, 0]]
    outscored = (weights * below[lower].add_(below[upper])).sum(0) / 2
    pairs = weights.sum(0) * below[-1]
    return torch.where(pairs > 0, outscored / pairs.clamp_min(1), torch.full_like(pairs, float("nan")))


def concept_aucs(probabilities: Tensor, truth: Tensor) -> Tensor:
    """The AUC of each concept (K,) float64 over the images whose truth is known; NaN unless both labels occur."""
    present, known = known_values(truth)
    each = [
        area_under_roc(probabilities[known[:, k], k], present[known[:, k], k]) for k in range(probabilities.shape[1])
    ]
    return torch.stack([auc.double().cpu() for auc in each])


def concept_auc_draws(scores: Tensor, truth: Tensor, boot: Bootstrap) -> Tensor:
    """The AUC of each concept in each resample of the images, (S, K); scores and truth are (N, K)."""
    present, known = known_values(truth)

    def each(counts: Tensor) -> Tensor:
        turned, found = counts.T.contiguous(), []
        for k in range(truth.shape[1]):
            rows = known[:, k]
            part = turned if bool(rows.all()) else turned[rows]
            found.append(area_under_roc(scores[rows, k], present[rows, k], part))
        return torch.stack(found, 1)

    return boot.draws(each) if boot.samples else torch.zeros(0, truth.shape[1])


def crossed_aucs(scores: Tensor, truth: Tensor) -> Tensor:
    """The AUC of every score for every concept, over the images whose truth is known.

    Each score is ranked once, with middle ranks for ties, for all concepts that are known on the same images; then
    AUC = (sum of the positives' ranks - P (P + 1) / 2) / (P Q) is one matrix product (Mann and Whitney, Annals of
    Mathematical Statistics 1947).

    Args:
        scores: (N, C).
        truth: (N, K) in [0, 1], NaN where nobody knows.

    Returns:
        (C, K) float64; NaN for a concept without both labels.
    """
    present, known = known_values(truth)
    found = torch.full((scores.shape[1], truth.shape[1]), float("nan"), dtype=torch.float64)
    patterns, which = known.unique(dim=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        rows, columns = patterns[:, p], (which == p).nonzero()[:, 0]
        positive = present[rows][:, columns].double()
        count = positive.sum(0)
        below = count * (len(positive) - count)
        both = below > 0
        if not bool(both.any()):
            continue
        kept, step = scores[rows], max(1, RANKS_AT_ONCE // max(1, len(positive)))
        sums = torch.cat([middle_ranks(part).T @ positive[:, both] for part in kept.split(step, 1)])
        found[:, columns[both]] = (sums - count[both] * (count[both] + 1) / 2) / below[both]
    return found


def middle_ranks(values: Tensor) -> Tensor:
    """The rank of each value in its column (N, C), float64, from 1; equal ones share the middle of their ranks."""
    turned = values.T.contiguous()
    ordered = turned.sort(1).values
    left = torch.searchsorted(ordered, turned, side="left")
    right = torch.searchsorted(ordered, turned, side="right")
    return (left + right + 1).T.double() / 2


@METRICS.register("concept_auc")
class ConceptAUC(Metric):
    """Mean AUC over the concepts whose truth has both labels, on probabilities (not thresholded), over all images.

    Exact, so the state is the scores themselves: 8 bytes per image and concept, on the metric's device. They are kept
    flat, so that a process which saw no image can take part in gathering.

    Args:
        classes: C.
        concepts: the concept set of the data.
    """

    fields: ClassVar[tuple[str, ...]] = ("probabilities", "concepts")
    category = "concept"
    higher_is_better = True
    probabilities: list[Tensor]
    truth: list[Tensor]

    def __init__(self, classes: int, concepts: ConceptSet | None = None) -> None:
        known = need_concepts(concepts, "concept_auc")
        super().__init__(classes, known)
        self.width = len(known)
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    @property
    def choices(self) -> dict[str, Any]:
        """What is averaged."""
        return {"average": "binary values with both labels", "scores": "probabilities", "truth": TRUTH_RULE}

    def update(self, probabilities: Tensor, truth: Tensor) -> None:
        """Keep a batch of probabilities and truth, both (B, K)."""
        self.probabilities.append(probabilities.float().flatten())
        self.truth.append(truth.float().flatten())

    def compute(self) -> Tensor:
        """The mean over concepts."""
        return self.each().nanmean().float().to(self.device)

    def each(self) -> Tensor:
        """The AUC of each concept (K,) of what this process holds."""
        if isinstance(self.probabilities, list) and not self.probabilities:
            return torch.full((self.width,), float("nan"))
        probabilities, truth = (
            torch.cat(state) if isinstance(state, list) else state for state in (self.probabilities, self.truth)
        )
        return concept_aucs(probabilities.reshape(-1, self.width), truth.reshape(-1, self.width))
