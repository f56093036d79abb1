"""How large explanations are, as records."""

from __future__ import annotations

from vitrarium.eval.collect import Collected
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.resampling import Bootstrap
from vitrarium.eval.scorecard import Scorecard


def size_records(card: Scorecard, collected: Collected, boot: Bootstrap) -> None:
    """File the sizes of explanations, of the model, and of its readout where that has weights or paths."""
    size, local = METRICS.build("explanation_size"), METRICS.build("local_size")
    for name, metric in (("explanation_size", size), ("local_size", local)):
        each = metric.each(card.model, collected.evidence, collected.logits)
        card.add(name, "all", each.mean(), boot.of_mean(each), {**metric.choices, **boot.choices})
    units, sparsity, path = (METRICS.build(name) for name in ("global_size", "head_sparsity", "path_length"))
    card.add("global_size", "all", units.of(card.model), choices=units.choices)
    share = sparsity.of(card.model)
    if share is not None:
        card.add("head_sparsity", "all", share, choices=sparsity.choices)
    lengths = path.each(card.model, collected.evidence)
    if lengths is not None:
        card.add("path_length", "all", lengths.mean(), boot.of_mean(lengths), {**path.choices, **boot.choices})
