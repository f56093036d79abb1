"""What is measured of models that explain themselves by learnt concepts, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vitrarium.data.batch import Batch
from vitrarium.eval.collect import Collected, collect
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.resampling import Bootstrap
from vitrarium.eval.metrics.self_explaining import RelevanceStability, probe
from vitrarium.eval.scorecard import Scorecard
from vitrarium.models.readouts.base import Readout

Batches = Callable[[str], Iterable[Batch]]


def self_explaining_records(card: Scorecard, collected: Collected, batches: Batches, boot: Bootstrap) -> None:
    """File fidelity to a head, completeness of the units, and how stable relevances are that depend on the image.

    Each where the model has what it takes; other models cost nothing.

    Args:
        card: where records and notes go.
        collected: what the model says of the split.
        batches: gives the batches of a split: those of "train", where something is fitted, and those of the split
            again, where images are changed.
        boot: resamples of the images.
    """
    head = collected.evidence.context.get("head")
    if head is not None:
        card.add_sums(["fidelity"], "all", collected.logits, head, boot)
    if "pooled" in card.model.evidence.gives:
        _completeness(card, collected, batches, boot)
    if type(card.model.readout).relevances is not Readout.relevances:
        _relevance_stability(card, collected, batches, boot.samples)


def _completeness(card: Scorecard, collected: Collected, batches: Batches, boot: Bootstrap) -> None:
    """Probes are fitted on the training images and asked about those of the split."""
    if card.split == "train":
        card.notes.append("no completeness on the training split: its probes are fitted there")
        return
    train = collect(card.model, batches("train"))
    head = collected.evidence.context.get("head")
    if head is None:
        reference = _probed(train, collected, lambda kept: kept.evidence.context["features"])
    else:
        reference = head.argmax(1)
    units = _probed(train, collected, lambda kept: kept.evidence.activations)
    answers = torch.stack([units, reference, train.labels.mode().values.expand(len(units))], 1)
    metric = card.metric("completeness")
    parts = metric.parts(answers, collected.labels)
    value = metric.finish(parts.double().sum(0))
    if bool(torch.isnan(value)):
        card.notes.append("no completeness: what it is held against is no better than naming the most frequent class")
        return
    choices = {**metric.choices, "reference": "head" if head is not None else "probe on the pooled features"}
    card.add("completeness", "all", value, boot.of_metric(metric, parts), {**choices, **boot.choices})


def _probed(train: Collected, collected: Collected, values: Callable[[Collected], Tensor]) -> Tensor:
    return probe(values(train), train.labels, values(collected))


def _relevance_stability(card: Scorecard, collected: Collected, batches: Batches, samples: int) -> None:
    """Over a drawn part of the images, which are asked for once more because their pixels are not kept."""
    metric: RelevanceStability = METRICS.build("relevance_stability")
    wanted, device = metric.chosen(collected.index), card.model.evidence.alive.device
    found, seen = [], 0
    for batch in batches(card.split):
        index = torch.arange(seen, seen + len(batch)) if batch.index is None else batch.index
        seen += len(batch)
        rows = torch.isin(index, wanted)
        if bool(rows.any()):
            found.append(metric.each(card.model, batch.image[rows].to(device), index[rows]))
    each = torch.cat(found)
    boot = Bootstrap(len(each), samples)
    choices = {**metric.choices, "images": len(each), **boot.choices}
    card.add("relevance_stability", "all", each.mean(), boot.of_mean(each), choices)
