"""The rows of the comparison: runs that differ in nothing but the seed, together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrarium.eval.report.cells import Cell, summarise
from vitrarium.eval.report.columns import Column
from vitrarium.eval.report.runs import RunResults


@dataclass
class Row:
    """One model of the comparison.

    Attributes:
        label: how it is called, unique within its data set.
        preset: name of its preset.
        title: of its preset.
        family: of its preset.
        data: name of the data set.
        backbone: name of the backbone.
        sweep: swept key to value.
        runs: its runs, one per seed.
        cells: by column key.
    """

    label: str
    preset: str
    title: str
    family: str
    data: str
    backbone: str
    sweep: dict[str, Any]
    runs: list[RunResults]
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def swept_words(self) -> str:
        """The swept settings alone ("concepts weight = 0.1"), "" for a row that is no part of a sweep."""
        return ", ".join(f"{swept_name(k)} = {setting_words(v)}" for k, v in self.sweep.items())

    @property
    def seeds(self) -> list[int]:
        """Seeds of its runs, ascending."""
        return sorted(run.seed for run in self.runs)

    def cell(self, column: Column | str) -> Cell:
        """A cell; an empty one where the row has no such number."""
        return self.cells.get(column if isinstance(column, str) else column.key, Cell())

    def value_of(self, key: str) -> Any:
        """The value of a swept key, also for a row that was not swept but has the key in its configuration."""
        return self.sweep[key] if key in self.sweep else self.runs[0].setting(key)


def cell_of(runs: Sequence[RunResults], column: Column) -> Cell:
    """A column over the seeds of a row."""
    if not column.metric:
        return summarise([run.minutes for run in runs])
    records = [record for record in map(column.of, runs) if record is not None]
    lows, highs = [r.low for r in records], [r.high for r in records]
    return summarise([r.value for r in records], lows, highs, column.bounds)


def rows_of(runs: Iterable[RunResults], columns: Sequence[Column], baseline: str) -> list[Row]:
    """Rows in the order in which their presets were given, the baseline first, swept rows after the plain one."""
    runs = list(runs)
    grouped: dict[tuple[Any, ...], list[RunResults]] = {}
    for run in runs:
        key = (run.data, run.preset, run.backbone, tuple(sorted((k, str(v)) for k, v in run.sweep.items())))
        grouped.setdefault(key, []).append(run)
    parts = [part for group in grouped.values() for part in _without_twins(group)]
    order = {preset: place for place, preset in reversed(list(enumerate(run.preset for run in runs)))}
    order[baseline] = -1
    sets = {data: place for place, data in reversed(list(enumerate(run.data for run in runs)))}
    parts.sort(key=lambda p: (sets[p[0].data], order[p[0].preset], bool(p[0].sweep), _sweep_order(p[0].sweep)))
    labels = _labels(parts)
    return [
        Row(
            label=label,
            preset=part[0].preset,
            title=part[0].title,
            family=part[0].family,
            data=part[0].data,
            backbone=part[0].backbone,
            sweep=part[0].sweep,
            runs=sorted(part, key=lambda run: run.seed),
            cells={column.key: cell_of(part, column) for column in columns},
        )
        for part, label in zip(parts, labels, strict=True)
    ]


def _without_twins(group: list[RunResults]) -> list[list[RunResults]]:
    """One row, unless two runs share a seed: then they differ in something else and each stands alone."""
    seeds = [run.seed for run in group]
    return [group] if len(set(seeds)) == len(seeds) else [[run] for run in group]


def _sweep_order(sweep: Mapping[str, Any]) -> tuple[Any, ...]:
    """Numbers by size, then words by spelling."""
    return tuple((k, 0, float(v), "") if _number(v) else (k, 1, 0.0, str(v)) for k, v in sorted(sweep.items()))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(parts: Sequence[Sequence[RunResults]]) -> list[str]:
    """Titles, with whatever is needed to tell rows of one data set apart."""
    labels: list[str] = []
    for part in parts:
        run, peers = part[0], [p[0] for p in parts if p[0].data == part[0].data]
        label = run.title
        if any(p.title == run.title and p.preset != run.preset for p in peers):
            label += f" [{run.preset}]"
        if len({p.backbone for p in peers}) > 1:
            label += f" on {run.backbone}"
        if run.sweep:
            label += ", " + ", ".join(f"{swept_name(k)} = {setting_words(v)}" for k, v in run.sweep.items())
        twins = [p for p in peers if _identity(p) == _identity(run)]
        labels.append(f"{label} ({run.name})" if len(twins) > 1 else label)
    return labels


def _identity(run: RunResults) -> tuple[Any, ...]:
    return run.preset, run.backbone, _sweep_order(run.sweep)


def swept_name(key: str) -> str:
    """A swept key for people: "loss.concepts" is the weight of the loss term "concepts"."""
    section, _, name = key.rpartition(".")
    words = name.replace("_", " ")
    return f"{words} weight" if section == "loss" else words


def setting_words(value: Any) -> str:
    """A setting for people: 1.0 is 1."""
    return f"{value:g}" if _number(value) else str(value)


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows without those of a sweep, except where a preset has no other."""
    settled = {(r.data, r.preset) for r in rows if not r.sweep}
    return [r for r in rows if not r.sweep or (r.data, r.preset) not in settled]
