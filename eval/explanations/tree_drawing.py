"""A path through a tree as a picture and as a piece of a page."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vitrarium.data.corrections import Box
from vitrarium.eval.explanations import heat, words
from vitrarium.eval.explanations.bars import AGAINST, FOR, SET
from vitrarium.eval.explanations.sheet import INK, PALE, SOFT, Sheet, short, wrap
from vitrarium.eval.explanations.tree import Stop, Walk

# The picture in inches: columns for the image, each question and the leaf.
WIDTH, MARGIN, COLUMNS = 12.0, 0.45, 7
PITCH = (WIDTH - 2 * MARGIN) / COLUMNS
SIDE, BARS, ROW, LEAF = PITCH - 0.36, 3, 0.24, 7
# From the top of a column: the source patch, the image, the answer, the classes, and the next row.
PATCH = 0.6
FOUND = PATCH + SIDE + 0.36
ANSWER = FOUND + SIDE + 0.07
CLASSES = ANSWER + 0.3
HEIGHT = CLASSES + 0.16 + BARS * ROW + 0.3
PIXELS = 224


def path_picture(walk: Walk, dpi: int = 150) -> bytes:
    """The bytes of a PNG file, 12 inches wide: the image, each question from left to right, the leaf."""
    said = wrap(walk.sentence(), WIDTH - 2 * MARGIN, 11)
    top, count = MARGIN + 0.55 + 0.235 * len(said) + 0.2, len(walk.stops) + 2
    rows, alone = divmod(count - 1, COLUMNS)
    last = 0.56 + ROW * min(len(walk.answer), LEAF) + 0.2 if alone == 0 else HEIGHT
    sheet = Sheet(WIDTH, top + HEIGHT * rows + last + 0.35)
    sheet.text(MARGIN, MARGIN - 0.05, f"The path to {walk.label}", size=19, weight="bold")
    for place, line in enumerate(said):
        sheet.text(MARGIN, MARGIN + 0.46 + 0.235 * place, line, size=11)
    for place in range(count):
        x, y = MARGIN + PITCH * (place % COLUMNS), top + HEIGHT * (place // COLUMNS)
        if place == 0:
            _image(sheet, walk, x, y)
        elif place <= len(walk.stops):
            _stop(sheet, walk, place, x, y)
        else:
            _leaf(sheet, walk, x, y)
    sheet.text(MARGIN, sheet.height - 0.27, "Vitrarium · research use, not a medical device", size=7.5, color=SOFT)
    return sheet.png(dpi)


def _image(sheet: Sheet, walk: Walk, x: float, y: float) -> None:
    sheet.text(x, y, "the image", size=9.5, weight="bold")
    sheet.axes(x, y + PATCH, SIDE, SIDE).imshow(heat.enlarge(walk.image), interpolation="antialiased")
    _bars(sheet, "before any question", walk.after(0), x, y + CLASSES)
    _arrow(sheet, x, y, INK)


def _stop(sheet: Sheet, walk: Walk, number: int, x: float, y: float) -> None:
    """Name, source patch, place in the image, answer, and what the tree thinks after it."""
    stop = walk.stops[number - 1]
    colour = SET if stop.corrected else FOR if stop.present else AGAINST
    sheet.text(x, y, short(f"{number}. {stop.title}?", PITCH - 0.08, 9.5, "bold"), size=9.5, weight="bold")
    for place, line in enumerate(_from(stop)):
        sheet.text(x, y + 0.22 + 0.16 * place, short(line, PITCH - 0.1, 8), size=8, color=SOFT)
    sheet.axes(x, y + PATCH, SIDE, SIDE).imshow(_patch(stop), interpolation="antialiased")
    for place, line in enumerate(_here(stop)):
        line = short(line, PITCH - 0.1, 8)
        sheet.text(x, y + PATCH + SIDE + 0.03 + 0.16 * place, line, size=8, color=SOFT)
    sheet.axes(x, y + FOUND, SIDE, SIDE).imshow(_found(walk, stop), interpolation="antialiased")
    sheet.text(x, y + ANSWER, _answer(stop), size=10, weight="bold", color=colour)
    _bars(sheet, "after it", walk.after(number), x, y + CLASSES)
    _arrow(sheet, x, y, colour)


def _leaf(sheet: Sheet, walk: Walk, x: float, y: float) -> None:
    sheet.text(x, y, "the leaf", size=9.5, weight="bold")
    sheet.text(x, y + 0.2, f"path probability {walk.probability:.2f}", size=8, color=SOFT)
    _bars(sheet, "", walk.answer, x, y + 0.4, most=LEAF)


def _arrow(sheet: Sheet, x: float, y: float, colour: str) -> None:
    """From a column to the next."""
    axes = sheet.axes(x + SIDE + 0.06, y + PATCH + SIDE / 2 - 0.1, PITCH - SIDE - 0.12, 0.2)
    axes.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.6})


def _bars(sheet: Sheet, title: str, shares: dict[str, float], x: float, y: float, most: int = BARS) -> None:
    """The most probable classes, as thin bars."""
    sheet.text(x, y, title, size=8, color=SOFT)
    for place, (name, share) in enumerate(_first(shares, most)):
        line = y + 0.16 + place * ROW
        sheet.text(x, line, short(name, SIDE - 0.45, 8), size=8)
        sheet.text(x + SIDE, line, words.percent(share), size=8, ha="right")
        axes = sheet.axes(x, line + 0.15, SIDE, 0.04)
        axes.barh([0], [1], color=PALE, height=1)
        axes.barh([0], [share], color=INK if place == 0 else "#aab4bd", height=1)
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))


def path_html(walk: Walk) -> str:
    """A piece of a page that needs nothing else: the same as the picture, from left to right, wrapping as it must."""
    columns = [_Column("the image", "", [heat.enlarge(walk.image, PIXELS)], "", INK, walk.after(0))]
    for number, stop in enumerate(walk.stops, 1):
        colour = SET if stop.corrected else FOR if stop.present else AGAINST
        pictures, title = [_patch(stop), _found(walk, stop)], f"{number}. {stop.title}?"
        small = "; ".join([*_from(stop), *_here(stop)])
        columns.append(_Column(title, small, pictures, _answer(stop), colour, walk.after(number)))
    small = f"path probability {walk.probability:.2f}"
    columns.append(_Column("the leaf", small, [], walk.label, INK, walk.answer, LEAF))
    style = "display:flex;flex-wrap:wrap;gap:1.2rem;align-items:flex-start"
    cells = "\n".join(column.html() for column in columns)
    return f'<p>{escape(walk.sentence())}</p>\n<div class="path" style="{style}">\n{cells}\n</div>\n'


class _Column(NamedTuple):
    """One column of the page: title, small print, pictures, what is said in which colour, the first classes."""

    title: str
    small: str
    pictures: list[np.ndarray]
    said: str
    colour: str
    shares: dict[str, float]
    most: int = BARS

    def html(self) -> str:
        """As a box that stands beside others."""
        soft = f"color:{SOFT};font-size:.82rem;line-height:1.3"
        images = "".join(
            f'<img src="{heat.data_address(heat.png(p))}" alt="" style="width:100%;display:block;margin:.3rem 0">'
            for p in self.pictures
        )
        rows = "".join(
            f'<div style="display:flex;justify-content:space-between;font-size:.82rem"><span>{escape(name)}</span>'
            f"<span>{words.percent(share)}</span></div>"
            f'<div style="height:4px;background:{PALE}"><div style="height:100%;width:{100 * share:.1f}%;'
            f'background:{INK if place == 0 else "#aab4bd"}"></div></div>'
            for place, (name, share) in enumerate(_first(self.shares, self.most))
        )
        return (
            f'<div style="width:9.5rem"><b>{escape(self.title)}</b>'
            f'<div style="{soft}">{escape(self.small)}</div>{images}'
            f'<div style="color:{self.colour};font-weight:600">{escape(self.said)}</div>{rows}</div>'
        )


def _first(shares: dict[str, float], most: int) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])[:most]


def _answer(stop: Stop) -> str:
    """The answer as in "present (0.83)", and that it was set by hand where it was."""
    return f"{stop.answer} ({stop.similarity:.2f})" + (" as set" if stop.corrected else "")


def _from(stop: Stop) -> list[str]:
    """Where the prototype comes from, and whether its picture still tells the truth."""
    if stop.source is None:
        return ["from no training patch"]
    return [f"from {stop.source.label}" if stop.source.label else "from a training image", stop.source.state]


def _here(stop: Stop) -> list[str]:
    """What the box in the image is, and whether it accounts for the similarity."""
    if stop.match is None or stop.match.box is None:
        return ["may look nowhere"] if stop.match is not None else []
    holds = {True: "the box holds", False: "the box does not hold", None: "box not tested"}
    return ["best place here" if stop.present else "nearest place here", holds[stop.match.holds]]


def _patch(stop: Stop) -> np.ndarray:
    """The source image with its box; an empty tile where the model keeps none."""
    if stop.source is None or stop.source.picture is None:
        return np.full((PIXELS, PIXELS, 3), 241, dtype=np.uint8)
    return boxed(stop.source.picture, stop.source.box)


def _found(walk: Walk, stop: Stop) -> np.ndarray:
    """The image with the box of the best place."""
    return boxed(walk.image, None if stop.match is None else stop.match.box)


def boxed(image: np.ndarray, box: Box | None, size: int = PIXELS) -> np.ndarray:
    """An image enlarged to a height of ``size``, outside a box paler, and the box outlined.

    Args:
        image: (H, W, 3) uint8.
        box: left, top, right, bottom in [0, 1], or None.
        size: height of the result.
    """
    wide = max(1, round(size * image.shape[1] / image.shape[0]))
    picture = Image.fromarray(image).resize((wide, size), Image.Resampling.BICUBIC)
    if box is None:
        return np.asarray(picture)
    edges = tuple(round(e * side) for e, side in zip(box, (wide, size, wide, size), strict=True))
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.45)
    pale.paste(picture.crop(edges), edges[:2])
    left, top, right, bottom = edges
    outline = (left, top, max(right - 1, left), max(bottom - 1, top))
    ImageDraw.Draw(pale).rectangle(outline, outline="#f0b400", width=max(2, size // 80))
    return np.asarray(pale)
