"""How figures look: one colour and one marker per preset over the whole report, calm axes, labels that keep apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, ALARM = "#1f2933", "#5d6975", "#e6eaed", "#b42318"
BASELINE = "#4a5560"
DPI, WIDTH, HEIGHT = 170, 6.2, 4.5
# Told apart with any colour vision by hue and lightness, and by marker in print.
COLOURS = (
    "#0077bb", "#d9601a", "#009988", "#c2347e", "#a07a00", "#6a51a3", "#4c8c2b", "#8c5a3c", "#1a9cc7", "#d4596e",
)  # fmt: skip
MARKERS = ("s", "^", "D", "v", "P", "X", "p", "h", "<", ">")


class Palette:
    """Colours and markers of the presets of a report.

    Args:
        presets: in the order of the report.
        baseline: the preset drawn in grey.
    """

    def __init__(self, presets: Sequence[str], baseline: str) -> None:
        others = [p for p in dict.fromkeys(presets) if p != baseline]
        self.colours = {p: COLOURS[i % len(COLOURS)] for i, p in enumerate(others)} | {baseline: BASELINE}
        self.markers = {p: MARKERS[i % len(MARKERS)] for i, p in enumerate(others)} | {baseline: "o"}


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure (inches) with one pair of calm axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Labels are placed in pixels, so the figure is drawn at the resolution it is saved at.
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.115, 0.125, 0.855, 0.775))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b8c1c9")
    axes.tick_params(colors=SOFT, labelsize=9, length=3, color="#b8c1c9")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def percent_axis(axis: Any, largest: int = 7) -> None:
    """Ticks of shares in per cent, with as many digits as they need."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(largest, steps=[1, 2, 5, 10]))
    low, high = sorted(axis.get_view_interval())
    digits = 0 if high - low > 0.05 else 1 if high - low > 0.005 else 2
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f}"))


def png_of(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def escape(text: str) -> str:
    """Names may hold dollar signs, which would start mathematics."""
    return text.replace("$", r"\$")


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as can be to the wanted ones, at least ``gap`` apart, inside [low, high] where they fit.

    Neighbours that would collide are set around their common middle (pool adjacent violators).
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of wanted start positions, members]
    for place, i in enumerate(order):
        blocks.append([wanted[i] - place * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    starts = [total / members for total, members in blocks for _ in range(int(members))]
    room = max(low, high - gap * (len(order) - 1))
    placed = [min(max(start, low), room) + place * gap for place, start in enumerate(starts)]
    result = [0.0] * len(order)
    for place, i in enumerate(order):
        result[i] = placed[place]
    return result
