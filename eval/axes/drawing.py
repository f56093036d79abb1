"""Pictures of a judgement: AUC of each concept, correlations and likeness, importance by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vitrarium.eval.axes.importance import Importance
from vitrarium.eval.axes.judging import AXIS, FILTER, MASKED, PROBE, Judgement, Space
from vitrarium.eval.report.style import GRID, INK, SOFT, escape, new_figure, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By name: word, colour, marker, size, place of the row. Told apart by hue, lightness and shape.
LOOKS: dict[str, tuple[str, str, str, float, float]] = {
    PROBE: ("linear probe", "#009988", "D", 3.6, 0.24),
    AXIS: ("axis", "#0077bb", "o", 5.5, 0.0),
    MASKED: ("axis within its subspace", "#0077bb", "|", 5.0, 0.0),
    FILTER: ("best filter", "#d9601a", "s", 3.8, -0.24),
}


def plain(name: str) -> str:
    """The name of a concept for a picture."""
    return escape(name.replace("_", " "))


def draw_ratings(judged: Judgement, title: str) -> bytes:
    """A row for each concept, the best axis on top: axis, best filter and linear probe with 95 % intervals."""
    first = judged.ratings[AXIS if judged.has_axes else PROBE]
    order = np.argsort(np.nan_to_num(first.auc.numpy(), nan=-1.0), kind="stable")
    high = 0.21 * len(order) + 1.55
    figure, axes = new_figure(7.6, high)
    axes.set_position((0.30, 0.50 / high, 0.67, (high - 1.5) / high))
    rows = np.arange(len(order))
    for name in (FILTER, PROBE, MASKED, AXIS):
        if name not in judged.ratings:
            continue
        rating, (word, colour, marker, size, off) = judged.ratings[name], LOOKS[name]
        value, place = rating.auc.numpy()[order], rows + off
        if name != MASKED:
            axes.hlines(
                place, rating.low.numpy()[order], rating.high.numpy()[order], color=colour, lw=1.1, alpha=0.75
            )  # fmt: skip
        axes.plot(value, place, marker, color=colour, ms=size, mew=1.2 if marker == "|" else 0, label=word, zorder=3)
    axes.axvline(0.5, color=SOFT, lw=0.8, ls=":")
    axes.set_yticks(rows, [_row_name(judged, int(k)) for k in order], fontsize=7.5)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.grid(axis="y", color=GRID, lw=0.5)
    axes.set_xlabel("AUC for the concept's images against all others", fontsize=9, color=INK)
    _heading(figure, title, high, "95 % intervals; * fewer than 50 images of one label, in no mean")
    handles, labels = axes.get_legend_handles_labels()
    corner = (0.015, 1 - 0.94 / high)
    figure.legend(
        handles[::-1], labels[::-1], loc="center left", ncols=4, frameon=False, fontsize=8.5, bbox_to_anchor=corner
    )
    return png_of(figure)


def _row_name(judged: Judgement, k: int) -> str:
    return plain(judged.concepts.names[k]) + ("" if bool(judged.chosen[k]) else " *")


def draw_geometry(judged: Judgement, title: str) -> bytes:
    """For each layer how strongly its channels go together, and how alike the images of concepts are."""
    count = len(judged.concepts)
    side = max(3.4, min(6.6, 0.115 * count + 1.2))
    label, rows = 1.6, len(judged.spaces)
    wide, step = 0.7 + side + 0.9 + label + side + 0.6, side + 0.95
    high = 0.85 + rows * step
    figure, axes = new_figure(wide, high)
    axes.remove()
    for r, space in enumerate(judged.spaces):
        bottom = high - 1.2 - r * step - side
        left = _axes(figure, (0.7, bottom, side, side), wide, high)
        _correlation(figure, left, space)
        right = _axes(figure, (0.7 + side + 0.9 + label, bottom, side, side), wide, high)
        _likeness(figure, right, space, judged.concepts.names)
    _heading(
        figure,
        title,
        high,
        "left: do channels say the same? right: are images of two concepts told apart? pale: yes, apart",
    )
    return png_of(figure)


def _axes(figure: Figure, inches: tuple[float, float, float, float], wide: float, high: float) -> Axes:
    left, bottom, width, height = inches
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def _correlation(figure: Figure, axes: Axes, space: Space) -> None:
    shown = space.images if space.places is None else space.places
    what = "images" if space.places is None else "places"
    said = f"{plain(space.name)}: |correlation| of channels over {what}"
    image = axes.imshow(shown.matrix.numpy(), vmin=0, vmax=1, cmap="magma_r", interpolation="nearest")
    axes.set_title(f"{said}\nmean off the diagonal {shown.mean:.3f}", fontsize=9, loc="left", color=INK)
    axes.tick_params(labelsize=7.5, colors=SOFT)
    _bar(figure, axes, image)


def _likeness(figure: Figure, axes: Axes, space: Space, names: Sequence[str]) -> None:
    likeness = space.likeness
    image = axes.imshow(
        np.ma.masked_invalid(likeness.relative.numpy()), vmin=0, vmax=1, cmap="magma_r", interpolation="nearest"
    )
    axes.set_facecolor("#dfe4e8")
    axes.set_title(
        f"{plain(space.name)}: images of two concepts, relative to within\nmean between {likeness.inter:.3f}, "
        f"cosine within {likeness.intra:.3f}", fontsize=9, loc="left", color=INK,
    )  # fmt: skip
    size = 7.5 if len(names) <= 16 else 5.4
    axes.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=size)
    axes.set_xticks([])
    _bar(figure, axes, image)


def draw_importance(importance: Importance, names: Sequence[str], classes: Sequence[str], title: str) -> bytes:
    """Concept by class: rise of the log-loss and fall of the recall when the concept's unit is shuffled."""
    rows, columns = len(importance.units), len(classes)
    cell, label, foot = 0.21, 2.3, 1.25
    panel = max(2.2, min(5.0, 0.45 * columns))
    wide, high = label + 2 * panel + 1.75, 1.15 + cell * rows + foot
    figure, axes = new_figure(wide, high)
    axes.remove()
    tables = (("log-loss rises by (nats)", importance.loss_by_class), ("recall falls by", importance.recall_by_class))
    for n, (said, table) in enumerate(tables):
        panel_axes = _axes(figure, (label + n * (panel + 0.85), foot, panel, cell * rows), wide, high)
        _heat(figure, panel_axes, table, said)
        panel_axes.set_xticks(range(columns), [plain(c) for c in classes], rotation=45, ha="right", fontsize=7.5)
        shown = [plain(names[u]) for u in importance.units] if n == 0 else []
        panel_axes.set_yticks(range(rows) if shown else [], shown, fontsize=7.5)
    _heading(figure, title, high, "each axis set, image by image, to what it says of another image")
    return png_of(figure)


def _heat(figure: Figure, axes: Axes, table: Tensor, title: str) -> None:
    values = np.ma.masked_invalid(table.numpy())
    bound = max(float(np.abs(values).max() if values.count() else 0.0), 1e-3)
    image = axes.imshow(values, vmin=-bound, vmax=bound, cmap="RdBu_r", aspect="auto", interpolation="nearest")
    axes.set_facecolor("#dfe4e8")
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    _bar(figure, axes, image)


def _bar(figure: Figure, axes: Axes, image: Any) -> None:
    box = axes.get_position()
    wide = float(figure.get_size_inches()[0])
    bar = figure.colorbar(image, cax=figure.add_axes((box.x1 + 0.08 / wide, box.y0, 0.1 / wide, box.height)))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=7, colors=SOFT, length=2)


def _heading(figure: Figure, title: str, high: float, said: str) -> None:
    figure.text(0.02, 1 - 0.22 / high, escape(title), fontsize=12, weight="bold", color=INK, va="center")
    figure.text(0.02, 1 - 0.52 / high, said, fontsize=8.5, color=SOFT, va="center")
