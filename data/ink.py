"""Letters and colours of the pictures that show a data set."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageDraw, ImageFont

PAPER, INK, SOFT = (255, 255, 255), (40, 44, 52), (125, 132, 142)

PARTS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (120, 94, 240),
    (140, 86, 75), (0, 128, 128), (190, 40, 60), (100, 110, 20), (70, 70, 70),
)  # fmt: skip
"""Colours of parts in turn; the first six are those of Okabe and Ito, which people tell apart whatever their sight."""


@functools.lru_cache(64)
def letters(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it: Latin with all accents, Greek, Cyrillic and more."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def broken_lines(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken after blanks, underscores and hyphens."""
    lines, rest = [], text
    while rest and font.getlength(rest) > width:
        fits = next((n for n in range(len(rest) - 1, 0, -1) if font.getlength(rest[:n]) <= width), 1)
        breaks = [n for n in range(1, fits + 1) if rest[n - 1] in " _-"]
        cut = breaks[-1] if breaks else fits
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:]
    return [*lines, rest]


def dot(pen: ImageDraw.ImageDraw, x: float, y: float, number: int) -> None:
    """The numbered dot of a part, number ``1`` for the first."""
    radius, ring = 6, 7
    pen.ellipse((x - ring, y - ring, x + ring, y + ring), fill=PAPER)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PARTS[(number - 1) % len(PARTS)])
    pen.text((x, y), str(number), fill=PAPER, font=letters(9, bold=True), anchor="mm")
