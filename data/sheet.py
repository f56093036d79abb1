"""A contact sheet: what a data set looks like, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitrarium.data.source import Split

_GAP = 4
_PAPER, _INK = (255, 255, 255), (40, 44, 52)


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
    rows = [np.flatnonzero(labels == c)[:per_class] for c in range(len(class_names))]
    first = next((row[0] for row in rows if len(row)), None)
    if first is None:
        raise ValueError("a contact sheet needs at least one image")
    cell = split.sample(int(first)).image.shape[0] * scale
    font = ImageFont.load_default(size=max(12, min(cell // 6, 28)))
    margin = _GAP * 4 + max(int(font.getlength(name)) for name in class_names)
    wide = margin + per_class * (cell + _GAP)
    sheet = Image.new("RGB", (wide, len(rows) * (cell + _GAP) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for r, (name, row) in enumerate(zip(class_names, rows, strict=True)):
        top = _GAP + r * (cell + _GAP)
        pen.text((margin - 2 * _GAP, top + cell // 2), name, fill=_INK, font=font, anchor="rm")
        for k, index in enumerate(row):
            picture = Image.fromarray(split.sample(int(index)).image)
            enlarged = picture.resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (margin + k * (cell + _GAP), top))
    return sheet
