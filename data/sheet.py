"""A contact sheet: what a data set looks like, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitrarium.data.ink import INK, PAPER, letters
from vitrarium.data.source import Split

_GAP = 4


def contact_sheet(split: Split, class_names: Sequence[str], per_class: int = 8, scale: int = 2) -> Image.Image:
    """The first images of each class, one row per class with its name in front.

    Args:
        split: any split of any data set; only the shown images are decoded.
        class_names: names of the C classes.
        per_class: images in a row; a class with fewer leaves the rest of its row empty.
        scale: whole-number enlargement, so that pixels stay visible as they are.

    Returns:
        RGB picture.
    """
    labels = np.asarray(split.labels)
    rows = [
        [enlarged(split.sample(int(index)).image, scale) for index in np.flatnonzero(labels == c)[:per_class]]
        for c in range(len(class_names))
    ]
    if not any(rows):
        raise ValueError("a contact sheet needs at least one image")
    cell = next(row[0] for row in rows if row).height
    return lay_out(rows, class_names, letters(max(12, min(cell // 6, 28))), columns=per_class)


def enlarged(image: np.ndarray, scale: int) -> Image.Image:
    """An image (H, W, 3) or (H, W) with every pixel as a square of ``scale`` pixels."""
    picture = Image.fromarray(image)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def lay_out(
    rows: Sequence[Sequence[Image.Image]],
    names: Sequence[str],
    font: ImageFont.FreeTypeFont,
    columns: int,
    gap: int = _GAP,
) -> Image.Image:
    """Pictures in rows, each row with its name in front.

    Args:
        rows: pictures; columns are as wide as the widest of all, rows as high as their own highest.
        names: of the rows, of one line or several.
        font: of the names.
        columns: of the sheet; shorter rows leave the rest empty.
        gap: pixels between pictures.
    """
    cell = max(picture.width for row in rows for picture in row)
    heights = [max((picture.height for picture in row), default=cell) for row in rows]
    longest = max(font.getlength(line) for name in names for line in name.split("\n"))
    margin = 4 * _GAP + int(longest)
    wide, top = margin + columns * (cell + gap), gap
    sheet = Image.new("RGB", (wide, gap + sum(heights) + gap * len(rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for name, row, height in zip(names, rows, heights, strict=True):
        pen.multiline_text(
            (margin - 2 * _GAP, top + height // 2), name, fill=INK, font=font, anchor="rm", align="right", spacing=2
        )
        for column, picture in enumerate(row):
            sheet.paste(picture, (margin + column * (cell + gap), top))
        top += height + gap
    return sheet
