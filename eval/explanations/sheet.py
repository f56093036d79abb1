"""A sheet of paper measured in inches, and text that fits it: what pictures are drawn on."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, PALE = "#1f2933", "#66727f", "#f1f4f6"


class Sheet:
    """A matplotlib figure measured in inches from its top left corner.

    Args:
        width: of the sheet, in inches.
        height: of the sheet, in inches.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure: Figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text whose top left corner lies at (x, y); ``style`` as matplotlib's ``Figure.text`` takes it."""
        style = {"va": "top", "ha": "left", "color": INK, "size": 10, **style}
        self.figure.text(x / self.width, 1 - y / self.height, escape(text), **style)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without frame whose top left corner lies at (x, y)."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def png(self, dpi: int) -> bytes:
        """The bytes of a PNG file."""
        import io

        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


def escape(text: str) -> str:
    """Names may hold dollar signs, which would start mathematics."""
    return text.replace("$", r"\$")


@functools.lru_cache(maxsize=4096)
def width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in inches when set in the standard font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    if not text:
        return 0.0
    font = FontProperties(size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(escape(text), font, ismath=False)[0]) / 72


def short(text: str, room: float, size: float, weight: str = "normal") -> str:
    """The text, or as much of it as fits ``room`` inches, with an ellipsis."""
    if width(text, size, weight) <= room:
        return text
    while text and width(text + "…", size, weight) > room:
        text = text[:-1].rstrip()
    return text + "…"


def wrap(text: str, room: float, size: float) -> list[str]:
    """The text in lines of at most ``room`` inches; a longer word is shortened."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(short(word, room, size))
    return lines
