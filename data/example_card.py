"""One example as a person reads it: the picture, what is marked in it, and its concepts as chips."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vitrarium.data.batch import Sample
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.ink import INK, PAPER, PARTS, SOFT, dot, letters, shortened
from vitrarium.data.sheet import enlarged

CELL, LARGEST = 160, 256
"""Side of a picture in pixels that enlargement aims at, and beyond which a picture is made smaller."""

_FRAME = (205, 209, 214)

GLOW = (255, 120, 0)
"""Colour of a human map."""

_COLUMN = 230
"""Width of the chips beside a single picture."""

_LINES, _CHIP, _GAP = 11, 17, 4
"""Lines of chips at most, their height and their distance."""


@dataclass(frozen=True)
class Chip:
    """A concept in words: ``name: value`` or one of the two; ``look`` is "true", "degree" or "unknown"."""

    name: str
    value: str
    look: str


def chips(concepts: ConceptSet, truth: np.ndarray) -> list[Chip]:
    """What is true of an example (K,), then what nobody knows; what is false is left out.

    A categorical group gives one chip, a degree of truth its number with two decimals.
    """
    found = [chip for group in concepts.groups for chip in _of_group(group, truth[list(group.members)])]
    return sorted(found, key=lambda chip: chip.look == "unknown")


def _of_group(group: ConceptGroup, truth: np.ndarray) -> list[Chip]:
    if not group.categorical:
        single = len(group.members) == 1
        named = [(group.name, "") if single else (group.name, value) for value in group.values]
        return [chip for (name, value), t in zip(named, truth, strict=True) for chip in _yes_no(name, value, float(t))]
    if np.isnan(truth).any():
        return [Chip(group.name, "?", "unknown")]
    best = int(truth.argmax())
    if truth[best] == 1:
        return [Chip(group.name, group.values[best], "true")]
    if truth[best] == 0:
        return [Chip(group.name, "none", "true")]
    shares = [f"{value} {t:.2f}" for value, t in zip(group.values, truth, strict=True) if t > 0]
    return [Chip(group.name, ", ".join(shares), "degree")]


def _yes_no(name: str, value: str, truth: float) -> list[Chip]:
    if truth != truth:
        return [Chip(name, f"{value} ?".strip(), "unknown")]
    if truth == 1:
        return [Chip(name, value, "true")]
    return [Chip(name, f"{value} {truth:.2f}".strip(), "degree")] if truth > 0 else []


MARKS = frozenset({"human_map", "part_masks", "keypoints"})
"""What is shown in a second picture."""


def card(sample: Sample, concepts: ConceptSet | None, gives: frozenset[str]) -> Image.Image:
    """One example: its picture, beside it what is marked in it, and its concepts below or to the right.

    Args:
        sample: the example.
        concepts: what its concepts are called, or None.
        gives: what the data set gives; with maps, parts or keypoints every card has the second picture.
    """
    scale, marked = scale_for(sample.image.shape[0]), bool(gives & MARKS)
    panels = [_shown(sample.image, scale)]
    if marked:
        panels.append(annotated(sample, scale))
    if "human_map" in gives and sample.human_map is None:
        ImageDraw.Draw(panels[1]).text((5, 4), "no map", fill=INK, font=letters(10))
    pictures = _beside(panels)
    if concepts is None or sample.concepts is None:
        return pictures
    words = chips(concepts, sample.concepts)
    if marked:
        below = _chip_rows(words, pictures.width)
        made = Image.new("RGB", (pictures.width, pictures.height + _GAP + below.height), PAPER)
        made.paste(below, (0, pictures.height + _GAP))
    else:
        right = _chip_rows(words, _COLUMN)
        made = Image.new("RGB", (pictures.width + 2 * _GAP + _COLUMN, max(pictures.height, right.height)), PAPER)
        made.paste(right, (pictures.width + 2 * _GAP, 0))
    made.paste(pictures, (0, 0))
    return made


def unreadable(size: int, why: str) -> Image.Image:
    """The card of an example that cannot be read."""
    side = min(size * scale_for(size), LARGEST)
    made = Image.new("RGB", (side, side), (238, 238, 238))
    font = letters(11)
    pen = ImageDraw.Draw(made)
    pen.text((side / 2, side / 2 - 8), "cannot be read", fill=(170, 30, 30), font=font, anchor="mm")
    pen.text((side / 2, side / 2 + 8), shortened(why, font, side - 8), fill=SOFT, font=font, anchor="mm")
    return made


def scale_for(size: int) -> int:
    """The whole number by which an image of ``size`` pixels is enlarged."""
    return max(1, int(CELL / size + 0.5))


def _shown(image: np.ndarray, scale: int) -> Image.Image:
    return _limited(enlarged(image, scale))


def _limited(picture: Image.Image) -> Image.Image:
    if picture.width <= LARGEST:
        return picture
    return picture.resize((LARGEST, LARGEST), Image.Resampling.LANCZOS)


def annotated(sample: Sample, scale: int) -> Image.Image:
    """The picture, pale and grey, with the human map as a glow, parts as outlines, visible keypoints as dots."""
    image = np.asarray(_shown(sample.image, scale)).astype(np.float32)
    side = image.shape[0]
    pale = 110 + 0.57 * (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, axis=2)
    if sample.human_map is not None:
        glow = np.asarray(_limited(enlarged(sample.human_map, scale)), np.float32)[..., None] / 255 * 0.7
        pale = pale * (1 - glow) + glow * np.array(GLOW, np.float32)
    drawn: np.ndarray = pale.clip(0, 255).astype(np.uint8)
    for p, mask in enumerate(sample.part_masks if sample.part_masks is not None else ()):
        whole = np.asarray(_limited(enlarged(mask, scale)))
        outlines, _ = cv2.findContours((whole > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        drawn = cv2.drawContours(np.ascontiguousarray(drawn), outlines, -1, PARTS[p % len(PARTS)], 1)
    picture = Image.fromarray(drawn)
    pen, ratio = ImageDraw.Draw(picture), side / sample.image.shape[0]
    for p, (x, y, visible) in enumerate(sample.keypoints if sample.keypoints is not None else ()):
        if visible:
            # (0, 0) is the centre of the first pixel.
            dot(pen, (x + 0.5) * ratio - 0.5, (y + 0.5) * ratio - 0.5, p + 1)
    return picture


def _beside(panels: list[Image.Image]) -> Image.Image:
    """Pictures side by side, framed: a white one has an edge, too."""
    wide, tall = panels[0].width + 2, panels[0].height + 2
    made = Image.new("RGB", (wide * len(panels) + _GAP * (len(panels) - 1), tall), PAPER)
    for place, panel in enumerate(panels):
        left = place * (wide + _GAP)
        made.paste(_FRAME, (left, 0, left + wide, tall))
        made.paste(panel, (left + 1, 1))
    return made


_LOOKS = {
    "true": ((226, 238, 252), (226, 238, 252), (20, 60, 120), (85, 115, 155)),
    "degree": (PAPER, (150, 180, 220), (20, 60, 120), (85, 115, 155)),
    "unknown": (PAPER, (215, 218, 222), (165, 170, 178), (165, 170, 178)),
}
"""Ground, border, letters of the value or of a name alone, letters of a name before its value."""


def _chip_rows(words: list[Chip], width: int) -> Image.Image:
    """Chips in lines of ``width`` pixels, cut with "+12 more" where there are too many."""
    font = letters(11)
    placed: list[tuple[int, int, Chip | None, tuple[str, str], int]] = []
    x = y = 0
    for count, chip in enumerate(words):
        name, value = _texts(chip, width - 12)
        wide = int(font.getlength(name) + font.getlength(value)) + 12
        if x and x + wide > width:
            x, y = 0, y + _CHIP + _GAP
        if y // (_CHIP + _GAP) >= _LINES - 1 and len(words) - count > 1:
            placed.append((0 if x == 0 else x, y, None, (f"+{len(words) - count} more", ""), 0))
            break
        placed.append((x, y, chip, (name, value), wide))
        x += wide + _GAP
    made = Image.new("RGB", (width, y + _CHIP + 1), PAPER)
    pen = ImageDraw.Draw(made)
    for one in placed:
        _draw_chip(pen, *one)
    return made


def _texts(chip: Chip, room: float) -> tuple[str, str]:
    """Name and value as they are written, shortened to the room there is; the value keeps at least half of it."""
    font = letters(11)
    if not chip.value:
        return shortened(chip.name, font, room), ""
    value = shortened(chip.value, font, max(room / 2, room - font.getlength(chip.name + ": ")))
    mark = " " if chip.value == "?" or (chip.look == "degree" and chip.value.replace(".", "").isdigit()) else ": "
    return shortened(chip.name, font, room - font.getlength(value + mark)) + mark, value


def _draw_chip(pen: ImageDraw.ImageDraw, x: int, y: int, chip: Chip | None, texts: tuple[str, str], wide: int) -> None:
    font, middle = letters(11), y + _CHIP / 2
    if chip is None:
        pen.text((x + 2, middle), texts[0], fill=SOFT, font=font, anchor="lm")
        return
    ground, border, strong, weak = _LOOKS[chip.look]
    pen.rounded_rectangle((x, y, x + wide - 1, y + _CHIP - 1), 5, fill=ground, outline=border)
    pen.text((x + 6, middle), texts[0], fill=weak if texts[1] else strong, font=font, anchor="lm")
    pen.text((x + 6 + font.getlength(texts[0]), middle), texts[1], fill=strong, font=font, anchor="lm")
