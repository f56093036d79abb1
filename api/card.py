"""The model card that lies beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitrarium.data.source import DataSource
from vitrarium.eval.records import Record
from vitrarium.models.classifier import TransparentClassifier, count_parameters

SHOWN = (
    "accuracy",
    "balanced_accuracy",
    "ece",
    "concept_accuracy",
    "all_concepts_right",
    "intervention_area",
    "accuracy_fully_corrected",
    "explanation_size",
)


def write_card(
    config: Mapping[str, Any],
    source: DataSource,
    model: TransparentClassifier,
    seconds: float,
    records: Sequence[Record] = (),
) -> str:
    """The card in Markdown: what it is, data, recipe, numbers with intervals, limits."""
    title, family = config["model"]["title"] or config["model"]["preset"], config["model"]["family"]
    units = model.evidence.units
    stages = ", ".join(f"{n} ({s['epochs']} epochs)" for n, s in config["recipe"].items())
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in source.splits.items())
    lines = [
        f"# {title} on {source.name}",
        "",
        f"A {family} classifier made with Vitrarium. Research use only; not a medical device.",
        "",
        "## What it is",
        "",
        f"- backbone `{config['backbone']['name']}`, evidence `{config['model']['evidence']['name']}` "
        f"({len(units)} {units.kind} units), readout `{config['model']['readout']['name']}`",
        f"- {count_parameters(model):,} parameters; images of {source.size} x {source.size} pixels",
        f"- classes: {', '.join(model.class_names)}",
        "",
        "## How it was trained",
        "",
        f"- data `{source.name}` ({sizes}), seed {config['seed']}",
        f"- stages: {stages}; {seconds / 60:.1f} minutes",
        *[f"- {note}" for note in source.notes],
        "",
        "## Numbers",
        "",
        *_numbers(records),
        "",
        "## Limits",
        "",
        "- Trained and measured on one data set; other cameras, stains or populations may differ.",
        "- An explanation says what this model used, not what is true of the world.",
        "",
    ]
    return "\n".join(lines)


def _numbers(records: Sequence[Record]) -> list[str]:
    rows = [r for r in records if r.scope == "all" and r.metric in SHOWN]
    if not rows:
        return ["Not yet evaluated: `vitrarium evaluate RUN`."]
    table = ["| metric | value | 95 % interval | choices |", "|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: SHOWN.index(r.metric)):
        interval = "" if r.low != r.low else f"{r.low:.4f} to {r.high:.4f}"
        choices = ", ".join(f"{k}={v}" for k, v in r.choices.items() if k in ("policy", "bins", "share", "split"))
        table.append(f"| {r.metric} | {r.value:.4f} | {interval} | {choices} |")
    return [*table, "", "Test split, opened once; intervals by bootstrap over images."]
