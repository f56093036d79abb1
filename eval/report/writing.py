"""The files of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrarium.configs.errors import UserError
from vitrarium.configs.files import write_bytes, write_text
from vitrarium.eval.records import write_records, write_table
from vitrarium.eval.report.curves import SECOND, Curve, curves_of, policy_title, scope_title
from vitrarium.eval.report.pareto import Plane, planes_of
from vitrarium.eval.report.plots import curve_plot, pareto_plot
from vitrarium.eval.report.risks import RiskCurve, risk_curves_of, risk_plot
from vitrarium.eval.report.rows import plain_rows
from vitrarium.eval.report.style import Palette

if TYPE_CHECKING:
    from vitrarium.eval.report.comparison import Comparison


@dataclass
class Figure:
    """A picture of the report.

    Attributes:
        name: of its file, without suffix.
        png: its bytes.
        title: in words.
        data: the data set it is about.
        plane: what a Pareto plot shows, or None.
        curves: what a plot of curves shows.
        risks: what a plot of risk-coverage curves shows.
    """

    name: str
    png: bytes
    title: str
    data: str
    plane: Plane | None = None
    curves: tuple[Curve, ...] = ()
    risks: tuple[RiskCurve, ...] = ()


def write_report(comparison: Comparison, out: Path) -> Path:
    """See :meth:`Comparison.report`."""
    from vitrarium.eval.report.page import page

    palette = Palette([row.preset for row in comparison.rows], comparison.baseline)
    figures = figures_of(comparison, palette)
    content = page(comparison, figures, palette)
    try:
        write_records(out / "results.csv", [record for run in comparison.runs for record in run.records])
        write_table(out / "table.csv", comparison.numbers())
        for old in (out / "figures").glob("*.png"):
            # Of an earlier report in the same folder; pictures of other makers are left alone.
            if old.name.startswith(("pareto_", "curve_", "risk_")) and old.stem not in {f.name for f in figures}:
                old.unlink()
        for figure in figures:
            write_bytes(out / "figures" / f"{figure.name}.png", figure.png)
        write_text(out / "index.html", content)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to '{out}' ({error.strerror or error})", "choose another folder"
        ) from error
    return out / "index.html"


def figures_of(comparison: Comparison, palette: Palette) -> list[Figure]:
    """All plots: accuracy against each explainability metric, then the intervention curves by scope and policy."""
    figures: list[Figure] = []
    for data in comparison.datasets:
        rows = [row for row in comparison.rows if row.data == data]
        mark = f"{_plain(data)}_" if len(comparison.datasets) > 1 else ""
        for plane in planes_of(rows, comparison.columns):
            name = f"pareto_{mark}{_plain(plane.column.key)}"
            figures.append(Figure(name, pareto_plot(plane, palette), plane.column.title, data, plane=plane))
        curves = curves_of(plain_rows(rows))
        for scope, policy in _drawn(curves):
            chosen = tuple(c for c in curves if (c.scope, c.policy) == (scope, policy))
            by = "corrected by a second annotator" if scope == SECOND else scope_title(scope).lower()
            title = f"{by[0].upper()}{by[1:]} · {policy_title(policy).lower()}"
            name = f"curve_{mark}{_plain(scope)}_{_plain(policy)}"
            figures.append(Figure(name, curve_plot(chosen, title, palette), title, data, curves=chosen))
        risks = risk_curves_of(plain_rows(rows))
        if risks:
            title = "What is gained by not answering"
            figures.append(Figure(f"risk_{mark}coverage", risk_plot(risks, palette), title, data, risks=tuple(risks)))
    return figures


def _drawn(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    """Scopes and policies that get a picture: clean images first, those of a second annotator last.

    Without duplicates a curve looks like the one with them; its numbers are in the tables.
    """
    pairs = dict.fromkeys((c.scope, c.policy) for c in curves if c.scope != "without duplicates")
    return sorted(pairs, key=lambda pair: (pair[0] == SECOND) - (pair[0] == "all"))


def _plain(name: str) -> str:
    """A name that may stand in a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
