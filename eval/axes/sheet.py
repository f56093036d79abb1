"""A compact sheet: the images on which each axis says most, framed by whether the concept is really there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from vitrarium.data.ink import INK, PAPER, SOFT, letters
from vitrarium.data.sheet import lay_out
from vitrarium.eval.axes.looking import Seen
from vitrarium.eval.explanations.heat import enlarge
from vitrarium.eval.metrics.layout import known_values

FRAMES = {"there": (0, 119, 187), "not there": (217, 96, 26), "nobody knows": (170, 178, 186)}
"""Colour of a frame by what the annotation says of the concept."""


def top_images(seen: Seen, concepts: int, count: int) -> tuple[Tensor, list[list[str]]]:
    """Of each axis the images of the split on which it says most.

    Returns:
        (K, n) positions in the split, strongest first; and for each the name of its frame. Among equals the first image
        wins.
    """
    assert seen.said is not None
    rows = seen.said[:, :concepts].argsort(dim=0, descending=True, stable=True)[:count].T
    present, known = known_values(seen.truth)
    frames = [
        ["nobody knows" if not known[i, k] else "there" if present[i, k] else "not there" for i in rows[k].tolist()]
        for k in range(concepts)
    ]
    return seen.index[rows], frames


def draw_top_images(
    image_of: Callable[[int], np.ndarray],
    positions: Tensor,
    frames: Sequence[Sequence[str]],
    names: Sequence[str],
    title: str,
    credit: str | None = None,
    size: int = 72,
) -> Image.Image:
    """The sheet: a row for each axis.

    Args:
        image_of: position in the split to an RGB image (H, W, 3) uint8.
        positions: (K, n).
        frames: for each its frame.
        names: of the K axes.
        title: heading.
        credit: line of credit of the pictures.
        size: of a picture in pixels, without frame.
    """
    rows = []
    for row, framed in zip(positions.tolist(), frames, strict=True):
        tiles = [Image.fromarray(enlarge(image_of(i), size)).resize((size, size)) for i in row]
        rows.append([ImageOps.expand(t, 4, FRAMES[f]) for t, f in zip(tiles, framed, strict=True)])
    shares = [f"{framed.count('there')} of {len(framed)}" for framed in frames]
    said = [f"{name.replace('_', ' ')}\n{share}" for name, share in zip(names, shares, strict=True)]
    body = lay_out(rows, said, letters(13), columns=positions.shape[1])
    head, foot = 76, 30 if credit else 0
    sheet = Image.new("RGB", (max(body.width, 620), head + body.height + foot), PAPER)
    sheet.paste(body, (0, head))
    pen, left = ImageDraw.Draw(sheet), 16.0
    pen.text((left, 12), title, fill=INK, font=letters(19, bold=True))
    small = letters(13)
    for word, colour in FRAMES.items():
        if not any(word in framed for framed in frames):
            continue
        said_here = f"the concept is {word}" if word != "nobody knows" else word
        pen.rectangle((left, 46, left + 16, 62), outline=colour, width=4)
        pen.text((left + 24, 46), said_here, fill=SOFT, font=small)
        left += 44 + small.getlength(said_here)
    if credit:
        pen.text((16, head + body.height + 6), credit, fill=SOFT, font=letters(11))
    return sheet


def share_there(frames: Sequence[Sequence[str]]) -> Tensor:
    """(K,) share of an axis's top images that have its concept, of those whose truth is known; NaN where none is."""
    found = []
    for framed in frames:
        known = [f for f in framed if f != "nobody knows"]
        found.append(known.count("there") / len(known) if known else float("nan"))
    return torch.tensor(found, dtype=torch.float64)
