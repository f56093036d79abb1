"""How well one score for each concept ranks the images that have it above those that have not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.eval.metrics.layout import known_values
from vitrarium.eval.metrics.ranking import area_under_roc, concept_auc_draws, concept_aucs
from vitrarium.eval.metrics.resampling import NO_INTERVAL, Bootstrap, Interval, StratifiedBootstrap

LEAST = 50
"""Images that must have a concept, and that must not have it, for the concept to count in means."""


@dataclass
class Rating:
    """The AUC of one score per concept.

    Attributes:
        name: what the scores are ("axis", "best filter").
        auc: (K,) float64; NaN where a label is missing, or there is no score.
        low: (K,) lower ends of the 95 % intervals, positives and negatives resampled apart.
        high: (K,) upper ends.
        draws: (S, K) in resamples of the images, the same for all concepts and ratings; for means and differences.
    """

    name: str
    auc: Tensor
    low: Tensor
    high: Tensor
    draws: Tensor


def label_counts(truth: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) images that are known to have each concept, and (K,) that are known not to."""
    present, known = known_values(truth)
    return (present & known).sum(0), (~present & known).sum(0)


def enough(truth: Tensor, least: int = LEAST) -> Tensor:
    """(K,) bool: concepts with at least ``least`` images of both labels."""
    positive, negative = label_counts(truth)
    return (positive >= least) & (negative >= least)


def rate(scores: dict[str, Tensor], truth: Tensor, boot: Bootstrap, seed: int = 0) -> dict[str, Rating]:
    """The AUC of several kinds of scores with intervals, on the same images and resamples.

    Args:
        scores: (N, K) by name; a column of NaN is no score: it is not rated.
        truth: (N, K) in [0, 1], NaN where nobody knows.
        boot: over the N images, for means and differences; its number of resamples is also that of the stratified
            intervals.
        seed: of the stratified resamples.
    """
    present, known = known_values(truth)
    missing = {name: torch.isnan(values).any(0) for name, values in scores.items()}
    filled = {name: values.nan_to_num(0.0) for name, values in scores.items()}
    ends = {name: torch.full((2, truth.shape[1]), float("nan"), dtype=torch.float64) for name in scores}
    for k in range(truth.shape[1]):
        rows = known[:, k]
        label = present[rows, k]
        if not boot.samples or bool(label.all()) or not bool(label.any()):
            continue
        strata = StratifiedBootstrap(label, boot.samples, seed, boot.level)
        counts = torch.cat(list(strata.counts())).T.contiguous()
        for name, values in filled.items():
            if not bool(missing[name][k]):
                interval = strata.interval(area_under_roc(values[rows, k], label, counts))
                ends[name][:, k] = torch.tensor(interval, dtype=torch.float64)
    rated = {}
    for name, values in filled.items():
        auc, draws = concept_aucs(values, truth), concept_auc_draws(values, truth, boot).double()
        auc[missing[name]], draws[:, missing[name]] = float("nan"), float("nan")
        rated[name] = Rating(name, auc, ends[name][0], ends[name][1], draws)
    return rated


@dataclass
class Mean:
    """A mean over concepts, or something made of several.

    Attributes:
        value: NaN where it is not defined.
        interval: 95 %, over resamples of the images; NaN ends where there is none.
        concepts: how many concepts it is over.
    """

    value: float
    interval: Interval
    concepts: int


def common(ratings: Sequence[Rating], chosen: Tensor) -> Tensor:
    """(K,) bool: the chosen concepts that all ratings have a value for."""
    for rating in ratings:
        chosen = chosen & ~torch.isnan(rating.auc)
    return chosen


def mean_auc(rating: Rating, chosen: Tensor, boot: Bootstrap) -> Mean:
    """The mean over the chosen concepts that are rated."""
    return _over([rating], chosen, boot, lambda a: a)


def gain(rating: Rating, rival: Rating, chosen: Tensor, boot: Bootstrap) -> Mean:
    """The mean of a rating less that of its rival, over the same concepts and the same resamples."""
    return _over([rating, rival], chosen, boot, lambda a, b: a - b)


def share_closed(rating: Rating, floor: Rating, ceiling: Rating, chosen: Tensor, boot: Bootstrap) -> Mean:
    """How much of the gap between two others a rating closes: (rating - floor) / (ceiling - floor), of the means.

    Where the ceiling is not above the floor there is no gap, and the share is NaN; where its own 95 % interval reaches
    down to the floor, the share has no interval.
    """
    gap = gain(ceiling, floor, chosen, boot)
    share = _over([rating, floor, ceiling], chosen, boot, lambda a, b, c: (a - b) / (c - b))
    if not gap.value > 0:
        return Mean(float("nan"), NO_INTERVAL, share.concepts)
    if not gap.interval.low > 0:
        return Mean(share.value, NO_INTERVAL, share.concepts)
    return share


def _over(ratings: list[Rating], chosen: Tensor, boot: Bootstrap, made) -> Mean:  # type: ignore[no-untyped-def]
    """A function of the means over the chosen concepts, with its interval."""
    kept = common(ratings, chosen)
    if not bool(kept.any()):
        return Mean(float("nan"), NO_INTERVAL, 0)
    value = made(*[rating.auc[kept].mean() for rating in ratings])
    draws = made(*[rating.draws[:, kept].nanmean(1) for rating in ratings])
    return Mean(float(value), boot.interval(draws), int(kept.sum()))


def subspaces_of(layer: object, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """The units of each concept group's subspace: as the layer says (``subspaces()``), else the group's own units."""
    told = layer.subspaces() if hasattr(layer, "subspaces") else None
    return [torch.tensor(list(members)) for members in groups] if told is None else told


def masked_scores(said: Tensor, subspaces: Sequence[Tensor], concepts: int) -> Tensor:
    """What each axis says when only its concept's subspace is looked at.

    The score of concept k is the cosine of the image's vector in the subspace, v = activations of the subspace's
    units, with the axis: v_k / |v|; 0 for a vector of length 0. An axis that wins only because all of the
    subspace is strong on an image loses by it; one that stands out among its fellows does not.

    Args:
        said: (N, M) activations.
        subspaces: units of each subspace; units 0 .. K-1 are the concepts.
        concepts: K.

    Returns:
        (N, K); a column of NaN where the subspace is the axis alone, so that there is nothing to mask.
    """
    scores = torch.full((len(said), concepts), float("nan"))
    for units in subspaces:
        if len(units) < 2:
            continue
        length = said[:, units].norm(dim=1)
        for k in units[units < concepts].tolist():
            scores[:, k] = torch.where(length > 0, said[:, k] / length.clamp_min(1e-30), torch.zeros_like(length))
    return scores
