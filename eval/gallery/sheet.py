"""A gallery as one picture."""

from __future__ import annotations

from PIL import Image, ImageDraw

from vitrarium.data.ink import INK, PAPER, SOFT, broken_lines, letters
from vitrarium.eval.gallery.drawing import captioned
from vitrarium.eval.gallery.exhibits import Exhibit, Gallery

GAP, MARGIN, NAMES = 10, 24, 210
"""Pixels between tiles, around everything, and of the column with the words of a unit."""

MOST = 100
"""Units on one picture; a page has all of them."""


def sheet_of(gallery: Gallery, size: int = 160, columns: int = 10) -> Image.Image:
    """The gallery as a picture.

    Args:
        gallery: its rooms.
        size: of the tiles where each unit has one; in rows they are as large as they are.
        columns: tiles side by side at most.
    """
    shown, hidden = _first(gallery, MOST)
    strips = _strips(shown, columns) if gallery.in_rows else _walls(shown, columns, size)
    # As wide as the longest row, but with room for the heading.
    least = 4 * (size + GAP) - GAP
    wide = 2 * MARGIN + max(least, *(strip.width for _, strip in strips)) if strips else 2 * MARGIN + least
    notes = [*([f"Pictures: {gallery.credit}"] if gallery.credit else []), *gallery.notes]
    notes += [f"{hidden} more units on the page"] if hidden else []
    head = _heading(gallery, notes, wide)
    high = head.height + sum((34 if name else 0) + strip.height + GAP for name, strip in strips) + MARGIN
    sheet = Image.new("RGB", (wide, high), PAPER)
    sheet.paste(head, (0, 0))
    pen, top = ImageDraw.Draw(sheet), head.height
    for name, strip in strips:
        if name:
            pen.text((MARGIN, top + 4), name, fill=INK, font=letters(17, bold=True))
            top += 34
        sheet.paste(strip, (MARGIN, top))
        top += strip.height + GAP
    return sheet


def _first(gallery: Gallery, most: int) -> tuple[list[tuple[str, list[Exhibit]]], int]:
    """The rooms with the first ``most`` exhibits, and how many are left out."""
    rooms, left, count = [], most, 0
    for name, exhibits in gallery.rooms:
        count += len(exhibits)
        if exhibits[:left]:
            rooms.append((name, exhibits[:left]))
        left -= len(exhibits[:left])
    return rooms, max(0, count - most)


def _walls(rooms: list[tuple[str, list[Exhibit]]], columns: int, size: int) -> list[tuple[str, Image.Image]]:
    """Units with one picture each, side by side; a room with more than ``columns`` takes several strips."""
    strips = []
    for name, exhibits in rooms:
        tiles = [captioned(e.tiles[0].picture, _caption(e)) for e in exhibits]
        for start in range(0, len(tiles), columns):
            strips.append((name if start == 0 else "", _side_by_side(tiles[start : start + columns], size)))
    return strips


def _strips(rooms: list[tuple[str, list[Exhibit]]], columns: int) -> list[tuple[str, Image.Image]]:
    """A strip for each unit: its words, then its pictures."""
    strips = []
    for name, exhibits in rooms:
        for place, e in enumerate(exhibits):
            tiles = [captioned(t.picture, list(t.caption), bold=False) for t in e.tiles[:columns]]
            pictures = _side_by_side(tiles, tiles[0].width) if tiles else Image.new("RGB", (1, 1), PAPER)
            words = _words(e)
            strip = Image.new("RGB", (NAMES + pictures.width, max(words.height, pictures.height)), PAPER)
            strip.paste(words, (0, 0))
            strip.paste(pictures, (NAMES, 0))
            strips.append((name if place == 0 else "", strip))
    return strips


def _side_by_side(tiles: list[Image.Image], size: int) -> Image.Image:
    row = Image.new("RGB", (len(tiles) * (size + GAP) - GAP, max(t.height for t in tiles)), PAPER)
    for place, tile in enumerate(tiles):
        row.paste(tile, (place * (size + GAP), 0))
    return row


def _words(e: Exhibit) -> Image.Image:
    """Name and facts of a unit, broken to the width of their column."""
    bold, plain, room = letters(14, bold=True), letters(11), NAMES - 16
    lines = [(line, bold, INK) for line in broken_lines(e.title, bold, room)]
    said = [*([f"speaks: {e.speaks}"] if e.speaks else []), *e.said, *e.findings]
    lines += [(line, plain, SOFT) for text in said for line in broken_lines(text, plain, room)]
    sheet = Image.new("RGB", (NAMES, 4 + sum(round(font.size * 1.4) for _, font, _ in lines)), PAPER)
    pen, top = ImageDraw.Draw(sheet), 0
    for line, font, colour in lines:
        pen.text((0, top), line, fill=colour, font=font)
        top += round(font.size * 1.4)
    return sheet


def _caption(e: Exhibit) -> list[str]:
    return [e.title, e.source or "no source", e.drift.partition(":")[0]]


def _heading(gallery: Gallery, notes: list[str], wide: int) -> Image.Image:
    """Title, legend and notes, in as many lines as they need."""
    small, room = letters(13), wide - 2 * MARGIN
    lines = [line for note in notes for line in broken_lines(note, small, room)]
    legend = 24 if gallery.legend else 0
    sheet = Image.new("RGB", (wide, 62 + legend + 19 * len(lines) + 13), PAPER)
    pen, left, top = ImageDraw.Draw(sheet), float(MARGIN), 62
    title = letters(26, bold=True)
    pen.text((MARGIN, 20), broken_lines(gallery.title, title, room)[0], fill=INK, font=title)
    for colour, said in gallery.legend:
        pen.rectangle((left, top, left + 16, top + 16), outline=INK, width=4)
        pen.rectangle((left + 1, top + 1, left + 15, top + 15), outline=colour, width=2)
        pen.text((left + 24, top), said, fill=SOFT, font=small)
        left += 44 + small.getlength(said)
    for place, line in enumerate(lines):
        pen.text((MARGIN, top + legend + 19 * place), line, fill=SOFT, font=small)
    return sheet
