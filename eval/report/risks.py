"""Risk-coverage curves over seeds: what each model gains by not answering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitrarium.eval.report.cells import Cell, summarise
from vitrarium.eval.report.columns import ACCURACY
from vitrarium.eval.report.rows import Row
from vitrarium.eval.report.style import INK, Palette, escape, new_figure, percent_axis, png_of


@dataclass
class RiskCurve:
    """Error among the answered against the share that is answered, for one row on clean test images.

    Attributes:
        row: whose curve it is.
        coverage: shares, ascending.
        cells: error over the seeds at each share.
    """

    row: Row
    coverage: list[float]
    cells: list[Cell]


def risk_curves_of(rows: Sequence[Row], scope: str = "all") -> list[RiskCurve]:
    """The curves of all rows that have one, at the shares that all their seeds have."""
    curves = []
    for row in rows:
        tables = [{p.coverage: p for p in run.risks if p.scope == scope and math.isfinite(p.risk)} for run in row.runs]
        tables = [table for table in tables if table]
        shares = sorted(set.intersection(*map(set, tables))) if tables else []
        if len(shares) > 1:
            cells = []
            for share in shares:
                points = [table[share] for table in tables]
                cells.append(
                    summarise([p.risk for p in points], [p.low for p in points], [p.high for p in points], (0.0, 1.0))
                )
            curves.append(RiskCurve(row, shares, cells))
    return curves


def risk_plot(curves: Sequence[RiskCurve], palette: Palette) -> bytes:
    """Error against coverage, one line per model, a mark where the saved threshold lies. The bytes of a PNG."""
    figure, axes = new_figure()
    for curve in curves:
        row, colour = curve.row, palette.colours[curve.row.preset]
        axes.plot(curve.coverage, [c.mean for c in curve.cells], color=colour, linewidth=1.7, label=escape(row.label))
        known = [(x, c) for x, c in zip(curve.coverage, curve.cells, strict=True) if c.has_interval]
        axes.fill_between(
            [x for x, _ in known], [c.low for _, c in known], [c.high for _, c in known], color=colour, alpha=0.10,
            linewidth=0,
        )  # fmt: skip
        at, risk = row.cell("coverage_at_threshold"), row.cell("risk_at_threshold")
        if not (at.missing or risk.missing):
            axes.plot(
                at.mean, risk.mean, palette.markers[row.preset], color=colour, markersize=8, markeredgecolor="white"
            )
    # Few answers give wild numbers: the plot leaves room for what lies below twice the largest error over all.
    tops = [1 - curve.row.cell(ACCURACY).mean for curve in curves if not curve.row.cell(ACCURACY).missing]
    axes.set_ylim(0, min(1.02, max(2 * max(tops), 0.01)) if tops else None)
    axes.set_xlim(0, 1.005)
    axes.set_xlabel("Share of the images that is answered (%)", size=10, color=INK)
    axes.set_ylabel("Errors among the answered (%)   better ↓", size=10, color=INK)
    axes.set_title("What is gained by not answering", size=11.5, loc="left", color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        percent_axis(axis)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    return png_of(figure)
