"""This looks like that, drawn: for each prototype the place in the image beside the training patch it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vitrarium.data.corrections import Box
from vitrarium.eval.explanations import heat, words
from vitrarium.eval.explanations.bars import AGAINST, FOR, SET
from vitrarium.eval.explanations.reasons import Entry, Explanation
from vitrarium.eval.explanations.sheet import INK, PALE, SOFT, Sheet, short, width, wrap

BOX, FIELD, FAILS, DARK = "#ffb000", "#ffffff", "#98a2ab", "#11181f"
LEGEND = (
    (BOX, "-", "where it responded most (95th percentile)"),
    (FIELD, "--", "all that this place can see (receptive field)"),
    (FAILS, "x", "a box that does not hold: it keeps or loses less than half of the similarity"),
)
HEAD, TEXT, SMALL = 0.42, 0.68, 8.0


def weightiest(e: Explanation, most: int) -> list[Entry]:
    """The lines to draw: those that a person changed, then the first ones; in the order of the ledger."""
    found = e.looks
    chosen = sorted(range(len(found)), key=lambda k: (not _changed(found[k]), k))[:most]
    return [found[k] for k in sorted(chosen)]


def _changed(entry: Entry) -> bool:
    return entry.reason is not None and entry.reason.changed


def height(side: float) -> float:
    """Of a pair with its words, in inches, for pictures of ``side`` inches."""
    return HEAD + side + TEXT


def draw_pairs(sheet: Sheet, e: Explanation, entries: list[Entry], x: float, y: float, side: float, gap: float,
               columns: int) -> None:  # fmt: skip
    """Pairs of square pictures in rows, the first with its top left corner at (x, y)."""
    room = 2 * side + 0.08
    for place, entry in enumerate(entries):
        left, top = x + (place % columns) * (room + gap), y + (place // columns) * (height(side) + 0.12)
        _pair(sheet, e, entry, left, top, side, room)


def _pair(sheet: Sheet, e: Explanation, entry: Entry, x: float, y: float, side: float, room: float) -> None:
    """One prototype: name, share, both pictures, what they are worth."""
    reason = entry.reason
    assert reason is not None
    assert reason.match is not None
    match, source, difference = reason.match, reason.source, entry.share.difference
    number = words.signed(difference)
    name = short(reason.title, room - 0.8, SMALL + 0.5, "bold")
    sheet.text(x, y, name, size=SMALL + 0.5, weight="bold", color=SET if reason.changed else INK)
    if match.owner is not None:
        start = x + width(name, SMALL + 0.5, "bold") + 0.07
        sheet.text(start, y, short(f"of {match.owner}", x + room - 0.55 - start, SMALL), size=SMALL, color=SOFT)
    colour = FOR if difference > 0 else AGAINST if difference < 0 else SOFT
    sheet.text(x + room, y, number, size=SMALL + 0.5, weight="bold", color=colour, ha="right")
    second = x + side + 0.08
    sheet.text(x, y + 0.2, "here", size=SMALL - 0.5, color=SOFT)
    origin = "training patch" if source is None else f"image {source.index}, {source.label or 'class unknown'}"
    sheet.text(second, y + 0.2, short(origin, side, SMALL - 0.5), size=SMALL - 0.5, color=SOFT)
    axes = sheet.axes(x, y + HEAD, side, side)
    picture(axes, heat.enlarge(e.image, 256), match.box, match.field, match.holds, (*e.bans, *reason.bans))
    axes = sheet.axes(second, y + HEAD, side, side)
    if source is None or source.picture is None:
        _nothing(axes, "not projected:\nno picture" if source is None else "no picture kept")
    else:
        picture(axes, heat.enlarge(source.picture, 256), source.box, source.field)
    _said(sheet, words.look_words(e, entry), entry, x, y + HEAD + side + 0.06, room)


def _said(sheet: Sheet, said: list[str], entry: Entry, x: float, y: float, room: float) -> None:
    """The words below a pair; what cannot be believed stands out."""
    reason = entry.reason
    assert reason is not None
    assert reason.match is not None
    saw, adds, drift, claim = said
    stale = reason.source is None or not reason.source.current
    lines = [(saw, INK), (adds, INK), (claim, AGAINST if reason.match.holds is False else SOFT)]
    sheet.text(x + room, y, short(drift, 0.62 * room, SMALL - 0.5), size=SMALL - 0.5, color=SET if stale else SOFT,
               ha="right")  # fmt: skip
    for place, (line, colour) in enumerate(lines):
        size = SMALL if colour == INK else SMALL - 0.5
        free = room - (0.08 + width(drift, SMALL - 0.5) if place == 0 else 0.0)
        sheet.text(x, y + 0.175 * place, short(line, max(free, 0.38 * room), size), size=size, color=colour)


def draw_columns(sheet: Sheet, e: Explanation, entries: list[Entry], x: float, y: float, side: float, gap: float,
                 size: float = 7.0) -> None:  # fmt: skip
    """One narrow column for each prototype: name, share, the place in the image, and below it the training patch."""
    for place, entry in enumerate(entries):
        reason, left = entry.reason, x + place * (side + gap)
        assert reason is not None
        assert reason.match is not None
        number, difference = words.signed(entry.share.difference), entry.share.difference
        colour = FOR if difference > 0 else AGAINST if difference < 0 else SOFT
        name = short(reason.title, side - width(number, size) - 0.05, size)
        sheet.text(left, y - 0.17, name, size=size, color=SET if reason.changed else INK)
        sheet.text(left + side, y - 0.17, number, size=size, color=colour, ha="right")
        match, source = reason.match, reason.source
        axes = sheet.axes(left, y, side, side)
        picture(axes, heat.enlarge(e.image, 256), match.box, match.field, match.holds, (*e.bans, *reason.bans))
        axes = sheet.axes(left, y + side + 0.06, side, side)
        if source is None or source.picture is None:
            _nothing(axes, "no picture")
        else:
            picture(axes, heat.enlarge(source.picture, 256), source.box, source.field)
        drift = "" if source is None else source.state.partition(":")[0]
        stale = source is not None and not source.current
        sheet.text(
            left, y + 2 * side + 0.1, short(drift, side, size - 0.5), size=size - 0.5, color=SET if stale else SOFT
        )


def picture(
    axes: Any,
    image: np.ndarray,
    box: Box | None,
    field: Box | None,
    holds: bool | None = None,
    bans: Iterable[Box] = (),
) -> None:
    """An image with its boxes: solid where the similarity is high, dashed what the place can see, hatched bans.

    Args:
        axes: matplotlib axes.
        image: (H, W, 3) uint8.
        box: where it responded most; grey and crossed out if its claim fails.
        field: the receptive field.
        holds: whether the claim of the box holds; None = nobody knows.
        bans: places that must not be looked at.
    """
    axes.imshow(image, interpolation="antialiased", aspect="auto")
    for ban in bans:
        _rectangle(axes, ban, 0, facecolor=DARK, alpha=0.6, hatch="////", edgecolor="#8b949c", linewidth=0)
    if field is not None:
        _outline(axes, field, FIELD, "--", 1.3)
    if box is not None and holds is False:
        _crossed(axes, box)
    elif box is not None:
        _outline(axes, box, BOX, "-", 1.9)


def _outline(axes: Any, box: Box, colour: str, style: str, line: float) -> None:
    """A line that is seen on light and on dark."""
    _rectangle(axes, box, line, facecolor="none", edgecolor=DARK, linewidth=line + 1.4, alpha=0.75)
    _rectangle(axes, box, line, facecolor="none", edgecolor=colour, linewidth=line, linestyle=style)


def _crossed(axes: Any, box: Box) -> None:
    """A grey box that is crossed out."""
    _rectangle(axes, box, 1.0, facecolor="none", edgecolor=FAILS, linewidth=1.4)
    left, top, right, bottom = box
    axes.plot([left, right], [1 - bottom, 1 - top], transform=axes.transAxes, color=FAILS, linewidth=1.0)


def _rectangle(axes: Any, box: Box, line: float, **style: Any) -> None:
    """A rectangle whose line lies inside the picture."""
    from matplotlib.patches import Rectangle

    points = axes.get_window_extent().width / axes.figure.dpi * 72
    inset = (line + 1.4) / 2 / max(points, 1.0) if line else 0.0
    left, top, right, bottom = box
    left, top = max(left, inset), max(top, inset)
    right, bottom = min(right, 1 - inset), min(bottom, 1 - inset)
    axes.add_patch(Rectangle((left, 1 - bottom), right - left, bottom - top, transform=axes.transAxes, **style))


def _nothing(axes: Any, said: str) -> None:
    """An empty tile that says why."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor=PALE, edgecolor="#d5dbe0"))
    axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", size=SMALL - 0.5, color=SOFT)


def legend_rows(e: Explanation, room: float) -> list[str]:
    """What else the pictures need to be understood, in lines."""
    said = (
        "Left: this image; right: the training image that the prototype was taken from. A box claims that it accounts "
        "for the similarity: tested by masking all outside it (what is kept) and all inside it (what is lost)."
    )
    return wrap(said, room, SMALL)


def draw_legend(sheet: Sheet, e: Explanation, x: float, y: float) -> None:
    """The lines of the boxes, in one row."""
    banned = bool(e.bans or any(r.bans for r in e.shown))
    for colour, style, said in LEGEND:
        axes = sheet.axes(x, y + 0.02, 0.26, 0.14)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        if style == "x":
            _crossed(axes, (0.0, 0.0, 1.0, 1.0))
        else:
            axes.plot([0.02, 0.98], [0.5, 0.5], color=DARK, linewidth=3.4, solid_capstyle="butt")
            axes.plot([0.02, 0.98], [0.5, 0.5], color=colour, linewidth=1.9, linestyle=style)
        sheet.text(x + 0.32, y, said, size=SMALL, color=SOFT)
        x += 0.32 + width(said, SMALL) + 0.22
    if banned:
        axes = sheet.axes(x, y + 0.02, 0.26, 0.14)
        _rectangle(axes, (0.0, 0.0, 1.0, 1.0), 0, facecolor=DARK, alpha=0.6, hatch="////", edgecolor="#8b949c")
        sheet.text(x + 0.32, y, "banned", size=SMALL, color=SOFT)
