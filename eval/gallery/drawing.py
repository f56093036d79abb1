"""Small pictures: an image with a box, a contour or heat where a unit answers, and words below."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw

from vitrarium.data.ink import INK, PAPER, SOFT, letters, shortened
from vitrarium.eval.explanations import heat
from vitrarium.models.prototypes.boxes import percentile_boxes, upsampled

BOX, FIELD = (255, 209, 40), (255, 255, 255)
"""Colours of where a unit answers most, and of the true receptive field."""

WHERE = ("contour", "heat", "box")

LEVEL = 0.95
"""Percentile of a map from which on a place counts as one where the unit answers most."""


def scaled(picture: np.ndarray, size: int) -> Image.Image:
    """An image (H, W, 3) uint8 as a square of ``size`` pixels."""
    return Image.fromarray(heat.enlarge(np.ascontiguousarray(picture), size)).resize((size, size))


def outline(pen: ImageDraw.ImageDraw, box: list[float], colour: tuple[int, int, int], width: int = 2) -> None:
    """A rectangle (left, top, right, bottom) that reads on light and dark ground; nothing where it is unknown."""
    if any(v != v for v in box):
        return
    left, top, right, bottom = box
    right, bottom = max(right - 1, left + 1), max(bottom - 1, top + 1)
    pen.rectangle((left, top, right, bottom), outline=INK, width=width + 2)
    pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=width)


def seen_at(
    picture: np.ndarray,
    unit_map: np.ndarray | None,
    grid: tuple[int, int] | None,
    where: Literal["contour", "heat", "box"],
    size: int,
) -> np.ndarray:
    """An image with where a unit answers.

    Args:
        picture: (H, W, 3) uint8.
        unit_map: (h', w') float, or None where that is not known.
        grid: h and w of the map that the unit looks at; see :class:`~vitrarium.models.regions.Places`.
        where: a line around the highest 5 % of the map, heat over a pale image, or the box around the highest 5 %.
        size: of the result.

    Returns:
        (size, size, 3) uint8; the plain image for a map that is the same everywhere.
    """
    drawn = scaled(picture, size)
    if unit_map is None or not float(np.ptp(unit_map)) > 1e-12:
        return np.asarray(drawn)
    if where == "box":
        box = percentile_boxes(torch.from_numpy(unit_map)[None], (size, size), LEVEL, grid)[0]
        outline(ImageDraw.Draw(drawn), [float(edge) * size for edge in box], BOX)
        return np.asarray(drawn)
    large = upsampled(torch.from_numpy(unit_map)[None], (size, size), grid)[0].numpy()
    large = large.clip(unit_map.min(), unit_map.max())
    if where == "heat":
        return heat.overlay(np.asarray(drawn), large, size)
    return _contour(np.asarray(drawn), large)


def _contour(picture: np.ndarray, large: np.ndarray) -> np.ndarray:
    """A line around the highest places, dark and light, so that it reads on any ground."""
    mark, low = float(np.quantile(large, LEVEL)), float(large.min())
    # A map that is at its lowest nearly everywhere is marked where it is not.
    inside = large >= mark if mark > low else large > low + 1e-3 * (float(large.max()) - low)
    outer = _grown(inside)
    line, rim = outer & ~_shrunk(inside), _grown(outer) & ~outer
    drawn = picture.copy()
    drawn[rim], drawn[line] = INK, BOX
    return drawn


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask with one pixel more on each side."""
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """A mask with one pixel less on each side, the borders of the picture among them."""
    return ~_grown(~np.pad(mask, 1))[1:-1, 1:-1]


def empty(size: int, said: str) -> np.ndarray:
    """A grey tile that says why there is no picture."""
    drawn = Image.new("RGB", (size, size), (236, 239, 241))
    ImageDraw.Draw(drawn).multiline_text(
        (size / 2, size / 2), said, fill=SOFT, font=letters(max(9, size // 12)), anchor="mm", align="center"
    )
    return np.asarray(drawn)


def captioned(
    picture: np.ndarray, lines: list[str], colour: tuple[int, int, int] = INK, bold: bool = True
) -> Image.Image:
    """A picture with lines of text under it, the first one bold; what is too wide is cut."""
    size = picture.shape[1]
    letter = max(9, size // 13)
    step = round(letter * 1.35)
    sheet = Image.new("RGB", (size, picture.shape[0] + step * len(lines) + 4), PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for place, line in enumerate(lines):
        font, first = letters(letter, bold=bold and place == 0), bold and place == 0
        text = shortened(line, font, size - 2)
        pen.text((1, picture.shape[0] + 3 + step * place), text, fill=colour if first else SOFT, font=font)
    return sheet
