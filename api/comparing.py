"""Put runs side by side: the bridge from run folders to the comparison report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitrarium.eval.explanations import explain
from vitrarium.eval.report import Comparison
from vitrarium.eval.report import compare as compare_folders
from vitrarium.runs import Run

# Of how many test images the examples are picked, and how many of them may show a disagreement.
POOL = 256


def compare(
    runs: Sequence[Run | str | Path],
    *,
    title: str | None = None,
    about: str = "",
    baseline: str = "blackbox",
    examples: int = 4,
    command: str | None = None,
) -> Comparison:
    """Compare evaluated runs; ``.report("report/")`` writes the page, ``.table()`` gives the rows.

    Args:
        runs: runs or their folders.
        title: heading of the report.
        about: a paragraph for its head.
        baseline: the preset that the others are held against.
        examples: how many test images every model explains; 0 = none. A data set whose licence forbids pictures has
            none.
        command: the command that makes this report again.

    Raises:
        UserError: no runs, unfinished or unevaluated ones.
    """
    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    notes = list(dict.fromkeys(note for run in _one_per(opened, "data") for note in run.source.notes))
    shown = [e for run in _one_per(opened, "data") for e in _examples(opened, run, examples)] if examples else []
    return compare_folders(
        [run.folder for run in opened],
        title=title,
        about=about,
        baseline=baseline,
        examples=shown,
        command=command,
        notes=notes,
    )


def _one_per(runs: Sequence[Run], what: str) -> list[Run]:
    """The first run of each data set or preset."""
    found: dict[str, Run] = {}
    for run in runs:
        found.setdefault(str(run.identity()[what]), run)
    return list(found.values())


def _examples(runs: Sequence[Run], first: Run, count: int) -> list[dict[str, Any]]:
    """The same few test images, explained by the first run of each preset.

    Half of them show a disagreement if there is one; no class is shown twice.
    """
    source = first.source
    if source.pictures is None:
        return []
    same = [r for r in runs if r.identity()["data"] == source.name and not r.config["sweep"]]
    models = {str(r.identity()["preset"]): r.model for r in _one_per(same, "preset")}
    split = first.data().split("test")
    indices = list(range(min(POOL, len(split))))
    pixels = (
        torch.stack([torch.from_numpy(split.sample(i).image.copy()) for i in indices]).permute(0, 3, 1, 2).float() / 255
    )
    with torch.no_grad():
        said = torch.stack([torch.cat([m(x).logits.argmax(1) for x in pixels.split(64)]) for m in models.values()])
    labels = torch.as_tensor(split.labels[: len(indices)])
    disagree = (said != said[0]).any(0)
    chosen: list[int] = []
    for wanted in (disagree, ~disagree):
        for i in indices:
            fresh = int(labels[i]) not in {int(labels[c]) for c in chosen}
            room = (count + 1) // 2 if wanted is disagree else count
            if bool(wanted[i]) and fresh and len(chosen) < room:
                chosen.append(i)
    return [_example(models, split.sample(i).image, source, i, int(labels[i])) for i in chosen]


def _example(models: dict[str, Any], image: Any, source: Any, index: int, label: int) -> dict[str, Any]:
    cards = {preset: explain(model, image).card() for preset, model in models.items()}
    credit = {} if source.generated else {"credit": source.pictures}
    return {"title": f"Test image {index}: {source.class_names[label]}", "png": cards, **credit}
