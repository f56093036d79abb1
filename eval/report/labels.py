"""Labels of points that keep clear of each other and of the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrarium.eval.report.style import SOFT, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]


@dataclass
class Label:
    """A text that belongs to a point.

    Attributes:
        x: of the point, in data units.
        y: of the point.
        text: what is written.
        colour: of the text.
        size: in points.
        weight: "bold" or "normal".
    """

    x: float
    y: float
    text: str
    colour: str
    size: float = 8.5
    weight: str = "normal"


def place(axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[float, float]]) -> list[Box]:
    """Write labels beside their points, each where it hides least, with a thin line where it had to move away.

    Args:
        axes: with its final limits.
        labels: first come, first served.
        obstacles: further points (data units) that should stay visible.

    Returns:
        The boxes (left, bottom, right, top) in pixels.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 72
    points = [tuple(axes.transData.transform(p)) for p in [*((label.x, label.y) for label in labels), *obstacles]]
    dots = [(px - 5 * scale, py - 5 * scale, px + 5 * scale, py + 5 * scale) for px, py in points]
    taken: list[Box] = []
    for label, (px, py) in zip(labels, points, strict=False):
        text = axes.text(
            0, 0, escape(label.text), size=label.size, color=label.colour, weight=label.weight, va="bottom", ha="left",
            transform=None, zorder=6, path_effects=[withStroke(linewidth=2.2, foreground="white", alpha=0.85)],
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        frame_box = (frame.x0, frame.y0, frame.x1, frame.y1)
        best = min(
            _candidates(px, py, extent.width, extent.height, scale),
            key=lambda c: c[0] + _cost(c[1], taken, dots, frame_box),
        )
        box = best[1]
        text.set_position((box[0], box[1]))
        taken.append(box)
        _leader(axes, (px, py), box, 13 * scale, label.colour)
    return taken


def _candidates(px: float, py: float, width: float, height: float, scale: float) -> list[tuple[float, Box]]:
    """Boxes around a point with what each costs by itself: right and near is best."""
    found = []
    for ring, reach in enumerate((7.0, 15.0, 25.0, 38.0, 52.0)):
        for step in range(16):
            angle = step * math.pi / 8
            x, y = px + reach * scale * math.cos(angle), py + reach * scale * math.sin(angle)
            left = x if math.cos(angle) > 0.3 else x - width if math.cos(angle) < -0.3 else x - width / 2
            bottom = y - height / 2 if abs(math.sin(angle)) < 0.5 else y if math.sin(angle) > 0 else y - height
            found.append(
                (
                    40.0 * ring + 4.0 * (step % 4 != 0) + (0 if step == 0 else 3),
                    (left, bottom, left + width, bottom + height),
                )
            )
    return found


def _cost(box: Box, taken: Sequence[Box], dots: Sequence[Box], frame: Box) -> float:
    """How much a box hides, and how far it sticks out of the frame."""
    hidden = sum(_overlap(box, other) for other in taken) * 4 + sum(_overlap(box, dot) for dot in dots) * 3
    out = max(0, frame[0] - box[0]) + max(0, box[2] - frame[2]) + max(0, frame[1] - box[1]) + max(0, box[3] - frame[3])
    return hidden + 50 * out


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share, in square pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _leader(axes: Axes, point: tuple[float, float], box: Box, far: float, colour: str) -> None:
    """A thin line from a point to a label that stands away from it."""
    end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
    if math.dist(point, end) < far:
        return
    back = axes.transData.inverted().transform([point, end])
    axes.plot(back[:, 0], back[:, 1], color=colour or SOFT, linewidth=0.6, alpha=0.55, zorder=2)
