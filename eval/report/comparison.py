"""Runs on the same axes: one table, plots, one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrarium.configs.errors import UserError, closest
from vitrarium.eval.report.columns import Column, columns_of
from vitrarium.eval.report.rows import Row, rows_of
from vitrarium.eval.report.runs import RunResults, read_run

BASELINE = "blackbox"


@dataclass
class Comparison:
    """What :func:`compare` found.

    Attributes:
        runs: the runs, in the order they were given.
        columns: metrics that at least one run has.
        rows: models (runs that differ in the seed only), the baseline first.
        baseline: name of the preset that the others are held against.
        title: of the report.
        about: a paragraph for its head.
        command: the command that makes it, or None.
        notes: what a reader of the numbers must know about the data.
        examples: see :func:`compare`.
        path: the page of the last report that was written, or None.
    """

    runs: list[RunResults]
    columns: list[Column]
    rows: list[Row]
    baseline: str = BASELINE
    title: str = ""
    about: str = ""
    command: str | None = None
    notes: list[str] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets, in order; models are compared within one."""
        return list(dict.fromkeys(row.data for row in self.rows))

    def base(self, data: str, backbone: str | None = None) -> Row | None:
        """The row that others are held against: the baseline on the same data and the same backbone.

        Args:
            data: name of the data set.
            backbone: name of the backbone; None = the first one on which there is a baseline.

        Returns:
            The row, or None if there is no such run.
        """
        found = (r for r in self.rows if (r.data, r.preset) == (data, self.baseline) and not r.sweep)
        return next((r for r in found if backbone in (None, r.backbone)), None)

    def table(self) -> list[dict[str, Any]]:
        """One mapping per model: its name, number of seeds, and means of the main columns (NaN = no such number).

        Shares are in [0, 1], training in minutes, time per image in milliseconds.
        """
        several = len(self.datasets) > 1
        chosen = [c for c in self.columns if c.main]
        return [
            {
                "model": row.label,
                **({"data": row.data} if several else {}),
                "seeds": len(row.runs),
                **{c.key: row.cell(c).mean for c in chosen},
            }
            for row in self.rows
        ]

    def numbers(self) -> list[dict[str, Any]]:
        """One mapping per model with every column: mean, ``_sd`` over seeds, ``_low``, ``_high``; None = no number."""
        return [
            {
                "model": row.label,
                "preset": row.preset,
                "family": row.family,
                "data": row.data,
                "backbone": row.backbone,
                "sweep": "; ".join(f"{k}={v}" for k, v in row.sweep.items()),
                "seeds": " ".join(map(str, row.seeds)),
                **{name: value for c in self.columns for name, value in _columns_of_cell(row, c).items()},
            }
            for row in self.rows
        ]

    def report(self, out: str | Path) -> Path:
        """Write ``index.html`` (self-contained), ``results.csv``, ``table.csv`` and ``figures/*.png`` into a folder.

        Returns:
            The path of ``index.html``.

        Raises:
            UserError: a folder that cannot be written.
        """
        from vitrarium.eval.report.writing import write_report

        self.path = write_report(self, Path(out))
        return self.path


def _columns_of_cell(row: Row, column: Column) -> dict[str, float | None]:
    cell = row.cell(column)
    parts = {"": cell.mean, "_sd": cell.sd, "_low": cell.low, "_high": cell.high}
    return {f"{column.key}{end}": value if math.isfinite(value) else None for end, value in parts.items()}


def compare(
    folders: Iterable[str | Path],
    out: str | Path | None = None,
    *,
    title: str | None = None,
    about: str = "",
    baseline: str = BASELINE,
    examples: Sequence[Mapping[str, Any]] = (),
    command: str | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Put finished, evaluated runs side by side. Seeds of one model are averaged, never the best taken.

    Args:
        folders: run folders.
        out: where to write the report at once; None = call :meth:`Comparison.report` later.
        title: of the report.
        about: a paragraph for its head.
        baseline: preset that the others are held against.
        examples: explanations of the same images by several models: ``{"title": words, "png": {preset: path or bytes},
            "credit": line that the licence asks for}`` (the credit may be missing).
        command: the command that makes this report again.
        notes: what a reader of the numbers must know about the data (duplicates across splits ...).

    Raises:
        UserError: no folders, a folder that is no finished and evaluated run, numbers of different splits, an unknown
            baseline, an example without pictures.
    """
    runs = [read_run(folder) for folder in _distinct(folders)]
    _refuse(runs, baseline)
    columns = columns_of(runs)
    rows, shown = rows_of(runs, columns, baseline), [_example(e) for e in examples]
    title = title or "A comparison of classifiers"
    comparison = Comparison(runs, columns, rows, baseline, title, about, command, list(notes), shown)
    if out is not None:
        comparison.report(out)
    return comparison


def _refuse(runs: Sequence[RunResults], baseline: str) -> None:
    """Refuse what cannot be compared."""
    if not runs:
        raise UserError("there are no runs to compare", "give run folders, for instance runs/cbm runs/blackbox")
    splits = sorted({run.split for run in runs})
    if len(splits) > 1:
        raise UserError(
            f"the runs were evaluated on different splits ({', '.join(splits)})",
            f"evaluate all of them on {'test' if 'test' in splits else splits[0]}",
        )
    presets = {run.preset for run in runs}
    if baseline not in presets and baseline != BASELINE:
        raise UserError(f"no run of the baseline '{baseline}'", closest(baseline, presets))


def _distinct(folders: Iterable[str | Path]) -> list[Path]:
    """Each folder once, in the order given."""
    if isinstance(folders, str | Path):
        folders = [folders]
    return list({Path(folder).resolve(): Path(folder) for folder in folders}.values())


def _example(given: Mapping[str, Any]) -> dict[str, Any]:
    """An example with its pictures read."""
    if not isinstance(given.get("png"), Mapping) or not given["png"]:
        raise UserError(
            f"example '{given.get('title', '')}' has no pictures", "give {'title': ..., 'png': {preset: path or bytes}}"
        )
    pictures = {}
    for preset, picture in given["png"].items():
        if not isinstance(picture, bytes):
            path = Path(picture)
            if not path.is_file():
                raise UserError(f"the picture '{path}' of an example does not exist", "check the path")
            picture = path.read_bytes()
        pictures[str(preset)] = picture
    return {"title": str(given.get("title", "")), "png": pictures, "credit": str(given.get("credit") or "")}
