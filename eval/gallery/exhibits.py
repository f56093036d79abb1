"""What hangs in a gallery: tiles, the exhibit of each unit, and rooms of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.eval.explanations import heat
from vitrarium.eval.explanations.saving import write

Colour = tuple[int, int, int]

COLUMNS = ("unit", "rank", "activation", "image", "class")


@dataclass
class Tile:
    """One small picture.

    Attributes:
        picture: (S, S, 3) uint8.
        kind: "source" (the patch that a prototype was taken from), "image" (one that the unit answers to) or "decoded"
            (what the unit stands for, drawn by the model).
        caption: lines below it, where it hangs in a row.
        index: of an image, its position in its split; -1 for others.
        label: name of its class.
        activation: of the unit on it; NaN for others.
    """

    picture: np.ndarray
    kind: Literal["source", "image", "decoded"]
    caption: tuple[str, ...] = ()
    index: int = -1
    label: str = ""
    activation: float = float("nan")


@dataclass
class Exhibit:
    """One unit on show.

    Attributes:
        unit: its name.
        tiles: its pictures.
        source: of a prototype, class of the source image and its position in the training split; empty without one.
        drift: of a prototype, what the drift meter says, in words.
        said: what else is to be said, a line each.
        weights: the classes that it speaks for or against most, with their weights, strongest first.
        findings: of the health report, in words.
    """

    unit: str
    tiles: list[Tile]
    source: str = ""
    drift: str = ""
    said: list[str] = field(default_factory=list)
    weights: list[tuple[str, float]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The name as people read it."""
        return self.unit.replace("_", " ")

    @property
    def speaks(self) -> str:
        """The classes that it speaks for or against most, in words; empty where the readout has no weights."""
        return ", ".join(f"{label} {weight:+.2f}".replace("-", "\N{MINUS SIGN}") for label, weight in self.weights)


@dataclass
class Gallery:
    """Units in rooms; ``save`` writes a picture (``.png``) or a page (``.html``).

    Units with one picture each hang side by side; where they have more, each unit is a row.

    Attributes:
        title: heading.
        rooms: name of a room (a class, a concept group ...) and its exhibits.
        credit: credit line of the data set's pictures, or None where nobody knows.
        notes: what a reader must know.
        legend: colour of a line in the pictures, and what it means.
    """

    title: str
    rooms: list[tuple[str, list[Exhibit]]]
    credit: str | None = None
    notes: list[str] = field(default_factory=list)
    legend: list[tuple[Colour, str]] = field(default_factory=list)

    @property
    def in_rows(self) -> bool:
        """Whether each unit is a row of pictures."""
        return any(len(e.tiles) != 1 for _, exhibits in self.rooms for e in exhibits)

    def save(self, path: str | Path) -> Path:
        """Write it; the file appears whole.

        Raises:
            UserError: another suffix, or a place that cannot be written.
        """
        from vitrarium.eval.gallery.page import page_of
        from vitrarium.eval.gallery.sheet import sheet_of

        path = Path(path)
        if path.suffix.lower() == ".png":
            write(path, heat.png(np.asarray(sheet_of(self))))
        elif path.suffix.lower() == ".html":
            write(path, page_of(self).encode("utf-8"))
        else:
            raise UserError(f"a gallery cannot be saved as '{path.name}'", "end the name in .png or .html")
        return path

    def rows(self) -> list[dict[str, Any]]:
        """The images that units answer to, by :data:`COLUMNS`: a row for each unit and rank (from 1)."""
        return [
            dict(zip(COLUMNS, (e.unit, rank, tile.activation, tile.index, tile.label), strict=True))
            for _, exhibits in self.rooms
            for e in exhibits
            for rank, tile in enumerate([t for t in e.tiles if t.kind == "image"], 1)
        ]
