"""The figures of the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrarium.eval.explanations.sheet import width
from vitrarium.eval.report.cells import Cell
from vitrarium.eval.report.columns import ACCURACY
from vitrarium.eval.report.curves import Curve
from vitrarium.eval.report.labels import Label, place
from vitrarium.eval.report.numbers import UNITS
from vitrarium.eval.report.pareto import Family, Plane
from vitrarium.eval.report.rows import Row, setting_words
from vitrarium.eval.report.style import ALARM, INK, WIDTH, Palette, apart, escape, new_figure, percent_axis, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pareto_plot(plane: Plane, palette: Palette) -> bytes:
    """Accuracy against one explainability metric; up and to the right is better. The bytes of a PNG."""
    figure, axes = new_figure()
    column, key = plane.column, plane.column.key
    swept = [row for family in plane.families for row in family.rows]
    for row, front in zip(plane.rows, plane.front, strict=True):
        _point(axes, row, row.cell(key), row.cell(ACCURACY), palette, front, small=row in swept and bool(row.sweep))
    for family in plane.families:
        x, y = _means(family.rows, key), _means(family.rows, ACCURACY.key)
        axes.plot(x, y, color=palette.colours[family.preset], linewidth=1.4, alpha=0.65, zorder=3)
    _limits(axes, plane)
    if column.better == "lower":
        axes.invert_xaxis()
    _front_line(axes, plane)
    _levels(axes, plane.without, palette)
    unit = UNITS[column.kind]
    axes.set_xlabel(f"{column.title}{f' ({unit})' if unit else ''}   better →", size=10, color=INK)
    axes.set_ylabel("Class accuracy (%)   better →", size=10, color=INK)
    percent_axis(axes.yaxis)
    if column.kind == "share":
        percent_axis(axes.xaxis)
    axes.set_title(
        escape(f"Class accuracy against {column.title[0].lower()}{column.title[1:]}"), size=11.5, loc="left", color=INK
    )
    _name_points(axes, plane, palette)
    return png_of(figure)


def _means(rows: Sequence[Row], key: str) -> list[float]:
    return [row.cell(key).mean for row in rows]


def _point(axes: Axes, row: Row, x: Cell, y: Cell, palette: Palette, front: bool, small: bool) -> None:
    """One model with its intervals; filled if nothing beats it."""
    colour = palette.colours[row.preset]
    for cell, style in ((x, "xerr"), (y, "yerr")):
        if cell.has_interval:
            ends = np.array([[cell.mean - cell.low], [cell.high - cell.mean]]).clip(0)
            bars: dict[str, Any] = {style: ends}
            axes.errorbar(x.mean, y.mean, **bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.38, zorder=2)
    axes.plot(
        x.mean, y.mean, palette.markers[row.preset], color=colour, markersize=5 if small else 8, zorder=5,
        markerfacecolor=colour if front else "white", markeredgewidth=1.5,
    )  # fmt: skip


def _limits(axes: Axes, plane: Plane) -> None:
    """Room for all points and most of their intervals."""
    for axis, cells in (
        ("x", [r.cell(plane.column) for r in plane.rows]),
        ("y", [r.cell(ACCURACY) for r in [*plane.rows, *plane.without]]),
    ):
        ends = [e for c in cells for e in (c.mean, c.low, c.high) if math.isfinite(e)]
        low, high = min(ends), max(ends)
        room = 0.08 * (high - low) or 0.01 * max(abs(high), 0.1)
        getattr(axes, f"set_{axis}lim")(low - room, high + room)


def _front_line(axes: Axes, plane: Plane) -> None:
    """The staircase below which every point is beaten."""
    better = 1 if plane.column.better == "higher" else -1
    on_front = [row for row, f in zip(plane.rows, plane.front, strict=True) if f]
    points = sorted(((r.cell(plane.column).mean, r.cell(ACCURACY).mean) for r in on_front), key=lambda p: better * p[0])
    if not points:
        return
    edge, floor = axes.get_xlim()[0], axes.get_ylim()[0]
    xs, ys = [edge, points[0][0]], [points[0][1]] * 2
    for (x0, _), (x1, y1) in itertools.pairwise(points):
        xs += [x0, x1]
        ys += [y1, y1]
    axes.plot([*xs, xs[-1]], [*ys, floor], color="#9aa5b0", linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.fill_between(xs, ys, floor, color="#f3f5f7", zorder=0, linewidth=0)


def _levels(axes: Axes, rows: Sequence[Row], palette: Palette) -> None:
    """Models that have no such number, as a level of accuracy."""
    heights = [row.cell(ACCURACY).mean for row in rows]
    for row, height in zip(rows, heights, strict=True):
        axes.axhline(height, color=palette.colours[row.preset], linewidth=1.2, linestyle=(0, (1, 2)), zorder=2)


def _name_points(axes: Axes, plane: Plane, palette: Palette) -> None:
    """Names beside the points; of a swept family only the values."""
    values = {id(r): v for f in plane.families for r, v in zip(f.rows, f.values, strict=True)}
    labels, front = [], dict(zip(map(id, plane.rows), plane.front, strict=True))
    for row in sorted(plane.rows, key=lambda r: bool(r.sweep)):
        x, y, colour = row.cell(plane.column).mean, row.cell(ACCURACY).mean, palette.colours[row.preset]
        if id(row) in values and row.sweep:
            labels.append(Label(x, y, setting_words(values[id(row)]), colour, 7.5))
        else:
            labels.append(Label(x, y, row.label, colour, 8.5, "bold" if front[id(row)] else "normal"))
    edge = axes.get_xlim()[0]
    for row in plane.without:
        labels.append(
            Label(edge, row.cell(ACCURACY).mean, f"{row.label}: accuracy only", palette.colours[row.preset], 8)
        )
    place(axes, labels, _along(plane.families, plane))


def _along(families: Sequence[Family], plane: Plane) -> list[tuple[float, float]]:
    """Points along the curves, for labels to keep off."""
    found = []
    for family in families:
        x, y = _means(family.rows, plane.column.key), _means(family.rows, ACCURACY.key)
        for a in range(len(x) - 1):
            found += [(x[a] + t * (x[a + 1] - x[a]), y[a] + t * (y[a + 1] - y[a])) for t in np.linspace(0.1, 0.9, 9)]
    return found


def curve_plot(curves: Sequence[Curve], title: str, palette: Palette) -> bytes:
    """Class accuracy against corrected groups, one line per model, named at its end. The bytes of a PNG."""
    figure, axes = new_figure()
    room = max(width(_end_words(c), 8.5) for c in curves) / WIDTH
    axes.set_position((0.105, 0.125, min(0.8, max(0.35, 0.84 - room)), 0.775))
    for curve in curves:
        preset, means = curve.row.preset, [c.mean for c in curve.cells]
        known = [(b, c) for b, c in zip(curve.budgets, curve.cells, strict=True) if c.has_interval]
        if known:
            axes.fill_between(
                [b for b, _ in known], [c.low for _, c in known], [c.high for _, c in known],
                color=palette.colours[preset], alpha=0.10, linewidth=0,
            )  # fmt: skip
        every = max(1, len(means) // 12)
        axes.plot(
            curve.budgets, means, color=palette.colours[preset], linewidth=1.8, marker=palette.markers[preset],
            markersize=4, markevery=every,
        )  # fmt: skip
    axes.set_xlabel("concept groups corrected per image", size=10, color=INK)
    axes.set_ylabel("Class accuracy (%)", size=10, color=INK)
    axes.margins(x=0.02)
    axes.set_title(escape(title), size=11.5, loc="left", color=INK)
    percent_axis(axes.yaxis)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _name_ends(axes, curves, palette)
    return png_of(figure)


def _name_ends(axes: Axes, curves: Sequence[Curve], palette: Palette) -> None:
    """Names at the right ends, kept apart, with a mark for curves that fall."""
    low, high = axes.get_ylim()
    ends = [c.cells[-1].mean for c in curves]
    spots = apart(ends, 0.052 * (high - low), low, high)
    right = axes.get_xlim()[1]
    for curve, end, spot in zip(curves, ends, spots, strict=True):
        colour = palette.colours[curve.row.preset]
        axes.annotate(
            "", (right, end), (1.045, spot), "data", ("axes fraction", "data"), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        falls = curve.trend == "falls"
        axes.text(
            1.055, spot, escape(_end_words(curve)), transform=axes.get_yaxis_transform(), va="center", size=8.5,
            color=ALARM if falls else colour, clip_on=False,
        )  # fmt: skip


def _end_words(curve: Curve) -> str:
    return f"{curve.row.label}{'  ▼ falls' if curve.trend == 'falls' else ''}"


def legend_note(plane: Plane) -> str:
    """What the marks of a plot mean, as the caption under it."""
    note = "Up and to the right is better. Filled: on the Pareto front (dashed edge); hollow: beaten by another model."
    for family in plane.families:
        values = ", ".join(map(setting_words, family.values))
        note += f" The line joins {family.rows[0].title} with different {family.words}: {values}."
    if plane.column.key == "explanation_size" and any(r.cell("concept_accuracy").missing for r in plane.rows):
        note += " The channels of a black box have no name: a count of them explains nothing."
    if plane.without:
        note += " Dotted level: a model that has no such number."
    return note
