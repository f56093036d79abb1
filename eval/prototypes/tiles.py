"""One prototype as a small picture: its source image, where it was taken from, and what it looks at."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vitrarium.data.ink import INK, PAPER, SOFT, letters
from vitrarium.eval.explanations.heat import enlarge
from vitrarium.models.prototypes.sources import Sources

BOX, FIELD = (255, 209, 40), (255, 255, 255)
"""Colours of the percentile box and of the true receptive field."""


def tile(sources: Sources, prototype: int, size: int = 160) -> np.ndarray:
    """The source image of a prototype with both boxes, (size, size, 3) uint8; a grey tile where there is none.

    The yellow box holds the highest 5 % of its similarity, the white one is all that the patch can have seen.
    """
    picture = sources.picture[prototype].permute(1, 2, 0).cpu().numpy()
    if not bool(sources.known[prototype]) or not picture.size:
        return _empty(sources, prototype, size)
    drawn = Image.fromarray(enlarge(np.ascontiguousarray(picture), size)).resize((size, size))
    pen = ImageDraw.Draw(drawn)
    for box, colour in ((sources.field[prototype], FIELD), (sources.box[prototype], BOX)):
        outline(pen, [float(v) * size for v in box], colour)
    return np.asarray(drawn)


def outline(pen: ImageDraw.ImageDraw, box: list[float], colour: tuple[int, int, int], width: int = 2) -> None:
    """A rectangle (left, top, right, bottom) that reads on light and dark ground; nothing where it is unknown."""
    if any(v != v for v in box):
        return
    left, top, right, bottom = box
    right, bottom = max(right - 1, left + 1), max(bottom - 1, top + 1)
    pen.rectangle((left, top, right, bottom), outline=INK, width=width + 2)
    pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=width)


def _empty(sources: Sources, prototype: int, size: int) -> np.ndarray:
    drawn = Image.new("RGB", (size, size), (236, 239, 241))
    known = bool(sources.known[prototype])
    said = "no picture\nwas kept" if known else "not projected:\nno picture"
    ImageDraw.Draw(drawn).multiline_text(
        (size / 2, size / 2), said, fill=SOFT, font=letters(max(9, size // 12)), anchor="mm", align="center"
    )
    return np.asarray(drawn)


def captioned(picture: np.ndarray, lines: list[str], colour: tuple[int, int, int] = INK) -> Image.Image:
    """A picture with lines of text under it, the first one bold."""
    size = picture.shape[1]
    letter = max(9, size // 13)
    step = round(letter * 1.35)
    sheet = Image.new("RGB", (size, picture.shape[0] + step * len(lines) + 4), PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for place, line in enumerate(lines):
        font = letters(letter, bold=place == 0)
        pen.text((1, picture.shape[0] + 3 + step * place), line, fill=colour if place == 0 else SOFT, font=font)
    return sheet
