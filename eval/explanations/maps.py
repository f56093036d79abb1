"""A row of maps: the image under the heat of the weightiest units."""

from __future__ import annotations

import numpy as np

from vitrarium.eval.explanations import heat, words
from vitrarium.eval.explanations.bars import AGAINST, FOR, SET
from vitrarium.eval.explanations.reasons import Explanation, Reason
from vitrarium.eval.explanations.sheet import INK, SOFT, Sheet, short, width


def mapped(e: Explanation, most: int) -> list[Reason]:
    """The weightiest reasons that have a map."""
    return [r for r in e.shown if r.map is not None][:most]


def draw_maps(sheet: Sheet, e: Explanation, reasons: list[Reason], x: float, y: float, side: float, gap: float,
              size: float = 8.5) -> None:  # fmt: skip
    """Square maps of ``side`` inches, the first with its top left corner at (x, y), names above them."""
    for place, reason in enumerate(reasons):
        left = x + place * (side + gap)
        difference, said = reason.share.difference, reason.probability is not None
        number = words.signed(difference)
        colour = FOR if difference > 0 else AGAINST if difference < 0 else SOFT
        sheet.text(left, y - 0.38, short(reason.title, side, size), size=size, color=SOFT if said else INK)
        room, value = side - 0.06 * size, reason.value if said else f"response {reason.value}"
        value = short(value if said or width(value, size, "bold") <= room else reason.value, room, size, "bold")
        sheet.text(left, y - 0.2, value, size=size, weight="bold", color=SET if reason.corrected else INK)
        sheet.text(left + side, y - 0.2, number, size=size, color=colour, ha="right")
        assert reason.map is not None
        sheet.axes(left, y, side, side).imshow(heat.overlay(e.image, reason.map), interpolation="antialiased")


def draw_scale(sheet: Sheet, right: float, y: float) -> None:
    """The colour scale of the maps, ending at ``right``."""
    scale = sheet.axes(right - 2.0, y + 0.06, 1.0, 0.09)
    scale.imshow(heat.colours(np.linspace(0, 1, 128)[None]) / 255, aspect="auto")
    sheet.text(right - 2.08, y + 0.02, "weak", size=8, color=SOFT, ha="right")
    sheet.text(right - 0.92, y + 0.02, "strong response", size=8, color=SOFT)
