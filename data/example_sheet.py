"""A sheet of examples with all that is known about them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.example_card import GLOW, card, scale_for, unreadable
from vitrarium.data.ink import INK, PAPER, SOFT, broken_lines, dot, letters, shortened
from vitrarium.data.sheet import lay_out
from vitrarium.data.source import DataSource, Split

MOST = 1000
"""Examples on one sheet."""

_WIDE, _GAP, _NAME, _PAD = 2000, 18, 150, 12
"""Pixels: width that rows are wrapped at, between cards, for the names of classes, around the heading."""

_ROWS = 4
"""Rows from which on a second block is begun."""


def example_sheet(
    source: DataSource,
    which: str = "train",
    count: int = 24,
    only: str | None = None,
    seed: int = 0,
    title: str | None = None,
) -> Image.Image:
    """Examples class by class, chosen by chance, each as a :func:`~vitrarium.data.example_card.card`.

    Args:
        source: the data set.
        which: the split.
        count: examples in all, shared out evenly; with more classes than that, a choice of classes.
        only: name of the only class that is shown.
        seed: of the choice.
        title: what the data set is called in the heading.

    Returns:
        RGB picture.

    Raises:
        UserError: an unknown split or class, a class without images in the split, a count outside 1 .. 1000.
    """
    if which not in source.splits:
        raise UserError(f"unknown split '{which}'", closest(which, source.splits))
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise UserError(f"{count} examples on a sheet", f"give a number from 1 to {MOST}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"a choice by seed {seed!r}", "give a whole number of at least 0")
    split = source.splits[which]
    chosen = choose(split, _wanted(source, split, which, only), count, seed)
    cards = {c: [_card(source, split, index) for index in indices] for c, indices in chosen.items()}
    head = _head(source, title or source.name, which, sum(map(len, cards.values())), len(cards))
    return _joined(head, _blocks([(source.class_names[c], row) for c, row in cards.items()]))


def _blocks(cards: list[tuple[str, list[Image.Image]]]) -> list[Image.Image]:
    """Rows of cards with their classes in front, in as many blocks side by side as there is room for."""
    widest, most = max(one.width for _, row in cards for one in row), max(len(row) for _, row in cards)
    fitting = max(1, (_WIDE - _NAME) // (widest + _GAP))
    # Rows that must be wrapped are wrapped into even parts.
    columns = math.ceil(most / math.ceil(most / fitting))
    font, lines = letters(14), []
    for name, row in cards:
        named = "\n".join(broken_lines(name, font, _NAME)[:4])
        lines += [(row[at : at + columns], "" if at else named) for at in range(0, len(row), columns)]
    side = min(max(1, _WIDE // (_NAME + columns * (widest + _GAP))), math.ceil(len(lines) / _ROWS))
    tall = math.ceil(len(lines) / side)
    parts = [lines[at : at + tall] for at in range(0, len(lines), tall)]
    return [lay_out([row for row, _ in part], [name for _, name in part], font, columns, _GAP) for part in parts]


def _joined(head: Image.Image, blocks: list[Image.Image]) -> Image.Image:
    wide, tall = sum(block.width for block in blocks), max(block.height for block in blocks)
    made = Image.new("RGB", (max(wide, head.width), head.height + tall), PAPER)
    made.paste(head, (0, 0))
    left = 0
    for block in blocks:
        made.paste(block, (left, head.height))
        left += block.width
    return made


def choose(split: Split, classes: list[int], count: int, seed: int) -> dict[int, list[int]]:
    """Which examples are shown: class to positions in order; the same seed chooses the same.

    Args:
        split: which to choose from.
        classes: that have examples in it.
        count: of examples in all.
        seed: of the choice.
    """
    if count < len(classes):
        classes = sorted(np.random.default_rng([seed, 0]).permutation(classes)[:count].tolist())
    chosen = {}
    for place, c in enumerate(classes):
        share = count // len(classes) + (place < count % len(classes))
        members = np.flatnonzero(np.asarray(split.labels) == c)
        chosen[c] = sorted(np.random.default_rng([seed, 1, c]).permutation(members)[:share].tolist())
    return chosen


def _wanted(source: DataSource, split: Split, which: str, only: str | None) -> list[int]:
    """The classes that have examples in the split, or the one that was asked for."""
    present = np.unique(split.labels).tolist()
    if only is None:
        if not present:
            raise UserError(f"the split {which} is empty", "choose another one")
        return present
    if only not in source.class_names:
        raise UserError(f"unknown class '{only}'", closest(only, source.class_names))
    if source.class_names.index(only) not in present:
        raise UserError(f"the class '{only}' has no image in {which}", "choose another split")
    return [source.class_names.index(only)]


def _card(source: DataSource, split: Split, index: int) -> Image.Image:
    try:
        sample = split.sample(index)
    except UserError:
        return unreadable(source.size, split.origin(index))
    return card(sample, source.concepts, source.gives)


def _head(source: DataSource, name: str, which: str, shown: int, classes: int) -> Image.Image:
    """Name, split and numbers; the line of credit; what colours and numbers mean."""
    total, scale = len(source.splits[which]), scale_for(source.size)
    title = f"{name}, {which}: {shown:,} of {total:,} images, {classes} of {len(source.class_names)} classes"
    facts = f"{source.size} x {source.size} pixels" + (f", enlarged {scale} times" if scale > 1 else "")
    if source.pictures:
        facts += f"     {source.pictures}"
    key = _key(source)
    wide = int(max(letters(18, bold=True).getlength(title), letters(12).getlength(facts))) + 2 * _PAD
    made = Image.new("RGB", (max(wide, key.width if key else 0), 60 + (key.height if key else 0)), PAPER)
    pen = ImageDraw.Draw(made)
    pen.text((_PAD, 12), title, fill=INK, font=letters(18, bold=True))
    pen.text((_PAD, 38), facts, fill=SOFT, font=letters(12))
    if key:
        made.paste(key, (0, 60))
    return made


def _key(source: DataSource) -> Image.Image | None:
    """What the glow and the numbered dots and outlines mean."""
    font, entries = letters(12), []
    if "human_map" in source.gives:
        entries.append((0, "human map: where to look"))
    if source.gives & {"keypoints", "part_masks"}:
        entries += [(p, shortened(name, font, 240)) for p, name in enumerate(source.part_names, start=1)]
    if not entries:
        return None
    places, x, y = [], _PAD, 0
    for number, name in entries:
        wide = 22 + int(font.getlength(name)) + 16
        if x > _PAD and x + wide > 1000:
            x, y = _PAD, y + 22
        places.append((x, y, number, name))
        x += wide
    made = Image.new("RGB", (max(at + 40 + int(font.getlength(name)) for at, _, _, name in places), y + 24), PAPER)
    pen = ImageDraw.Draw(made)
    for left, top, number, name in places:
        if number:
            dot(pen, left + 8, top + 11, number)
        else:
            pen.rounded_rectangle((left, top + 4, left + 15, top + 18), 4, fill=GLOW)
        pen.text((left + 22, top + 11), name, fill=INK, font=font, anchor="lm")
    return made
