"""What axes are held against: the best single channel of a layer, and the best line through all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.eval.axes.looking import Seen
from vitrarium.eval.axes.probe import STRENGTHS, logistic_path
from vitrarium.eval.metrics.ranking import concept_aucs, crossed_aucs


@dataclass
class Baseline:
    """Scores of all concepts on the judged split, and how they were chosen.

    Attributes:
        scores: (N, K); a column of NaN for a concept of which the training split does not have both labels.
        validation: mean AUC on the validation split, over the concepts that can be judged there.
        reduction: of the layer's maps.
        chosen: what was chosen for each concept, in words ("channel 12, low").
    """

    scores: Tensor
    validation: float
    reduction: str
    chosen: list[str]


def best_filter(train: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """For each concept the channel, and its sign, that ranks the training images best.

    Args:
        train: (N, C) reduced activations of the training split.
        truth: (N, K).

    Returns:
        (K,) channels, and (K,) signs 1 or -1; 0 where the training split does not have both labels. Among equals the
        first channel wins.
    """
    aucs = crossed_aucs(train, truth)
    distance = (aucs - 0.5).abs()
    known = ~torch.isnan(distance).all(0)
    channel = distance.nan_to_num(-1.0).argmax(0)
    picked = aucs[channel, torch.arange(aucs.shape[1])]
    sign = torch.where(picked < 0.5, -1, 1) * known
    return channel, sign


def filter_baseline(train: Seen, val: Seen, test: Seen, reduction: str) -> Baseline:
    """The best single channel and sign of each concept: chosen on training images, judged on the others."""
    channel, sign = best_filter(train.reduced[reduction], train.truth)

    def scores(seen: Seen) -> Tensor:
        picked = seen.reduced[reduction][:, channel] * sign
        return torch.where(sign != 0, picked, torch.full_like(picked, float("nan")))

    words = {1: "high", -1: "low"}
    chosen = [
        f"channel {c}, {words[s]}" if s else "" for c, s in zip(channel.tolist(), sign.tolist(), strict=True)
    ]  # fmt: skip
    return Baseline(scores(test), _mean_auc(scores(val), val.truth), reduction, chosen)


def probe_baseline(train: Seen, val: Seen, test: Seen, reduction: str) -> Baseline:
    """Logistic regression on all channels: fitted on training images, strength of L2 chosen by validation AUC.

    A concept without both labels in the validation split takes the strength that is best for the others. Among equals
    the strongest penalty wins.
    """
    path = logistic_path(train.reduced[reduction], train.truth)
    concepts = train.truth.shape[1]
    tried = torch.stack(
        [
            concept_aucs(path.scores(val.reduced[reduction], torch.full((concepts,), n)), val.truth)
            for n in range(len(STRENGTHS))
        ]
    )
    overall = int(tried.nanmean(1).nan_to_num(-1.0).argmax())
    judged = ~torch.isnan(tried).any(0)
    strength = torch.where(judged, tried.nan_to_num(-1.0).argmax(0), torch.full((concepts,), overall))
    scores = path.scores(test.reduced[reduction], strength)
    fitted = (path.weight != 0).any(-1).any(0)
    scores = torch.where(fitted, scores, torch.full_like(scores, float("nan")))
    chosen = [f"l2 = {STRENGTHS[n]:g}" if ok else "" for n, ok in zip(strength.tolist(), fitted.tolist(), strict=True)]
    best = tried[strength, torch.arange(concepts)]
    return Baseline(scores, _nan_mean(best[fitted]), reduction, chosen)


def strongest(baselines: Mapping[str, Baseline]) -> Baseline:
    """The one, by reduction, that does best on validation images; the first among equals."""
    return max(baselines.values(), key=lambda b: b.validation if b.validation == b.validation else -1.0)


def _mean_auc(scores: Tensor, truth: Tensor) -> float:
    aucs = concept_aucs(scores.nan_to_num(0.0), truth)
    aucs[torch.isnan(scores).any(0)] = float("nan")
    return _nan_mean(aucs)


def _nan_mean(values: Tensor) -> float:
    kept = values[~torch.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")
