"""A gallery of any units: the images that each answers to most, where, how much it weighs, what it decodes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Batch
from vitrarium.data.source import Split
from vitrarium.eval.gallery.drawing import BOX, FIELD, WHERE, scaled, seen_at
from vitrarium.eval.gallery.exhibits import Exhibit, Gallery, Tile
from vitrarium.eval.gallery.facts import in_rooms, pruned_note, rooms_of, spoken_for, unit_weights
from vitrarium.eval.gallery.strongest import Answers, strongest_images
from vitrarium.eval.prototypes.tiles import source_tiles
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating

LIMIT = 64
"""Units on show unless somebody asks for more."""


def unit_gallery(
    model: TransparentClassifier,
    batches: Iterable[Batch],
    split: Split,
    name: str = "train",
    *,
    top: int = 8,
    only: Sequence[str] = (),
    limit: int | None = LIMIT,
    where: Literal["contour", "heat", "box"] = "contour",
    title: str = "Units",
    credit: str | None = None,
    size: int = 112,
) -> Gallery:
    """The gallery of a model with any evidence, in one pass over a split.

    A unit that says the same of every image is shown without images: which came first would be chance.

    Args:
        model: any classifier.
        batches: clean images of the split, at the model's size, with their ``index``.
        split: where their pictures come from.
        name: of the split; the gallery says it.
        top: images for each unit.
        only: names of units, or shell patterns of them; empty = all living units.
        limit: units on show at most, those with the largest weight for some class (the first ones where the readout has
            no weights); None = no limit.
        where: how a place is shown: "contour" around the highest 5 % of the map, "heat", or "box".
        title: heading.
        credit: credit line of the pictures.
        size: of the tiles in pixels.

    Raises:
        UserError: a number below 1, an unknown way to show a place, a name or pattern without a unit.
    """
    if top < 1 or (limit is not None and limit < 1):
        raise UserError(f"top={top}, limit={limit} would show nothing", "give numbers of at least 1")
    if where not in WHERE:
        raise UserError(f"places cannot be shown as '{where}'", closest(where, WHERE))
    asked = choose_units(model, only)
    weights = unit_weights(model)
    units = asked if limit is None else _weightiest(asked, weights, limit)
    answers = strongest_images(model, batches, torch.tensor(units), top)
    draw = _Pictures(split, answers, model.class_names, where, size)
    decoded, problem = _decoded(model, units, size)
    rooms, hung = rooms_of(model), dict[str, list[Exhibit]]()
    for place, unit in enumerate(units):
        first = source_tiles(model, unit, size)
        if decoded is not None:
            first.append(Tile(decoded[place], "decoded", ("decoded", "by the model")))
        exhibit = Exhibit(
            model.evidence.units.names[unit],
            first + draw.of(place),
            said=_said(answers, place),
            weights=spoken_for(weights, unit, model.class_names),
        )
        hung.setdefault(rooms[unit], []).append(exhibit)
    notes = [_which_images(model, answers, top, name), *_which_units(model, asked, units, weights)]
    notes += [] if answers.grid is not None else [f"{model.evidence.units.kinds} have no maps: where is unknown"]
    notes += [] if problem is None else [problem]
    legend = [(BOX, "highest 5 % of the unit's map")] if answers.grid is not None and where != "heat" else []
    if "prototypes" in model.evidence.gives:
        legend = [(BOX, "where it answers most (highest 5 %)"), (FIELD, "all that a source patch can have seen")]
    return Gallery(title, [(room, hung[room]) for room in in_rooms(model, list(hung))], credit, notes, legend)


def choose_units(model: TransparentClassifier, only: Sequence[str] = ()) -> list[int]:
    """Positions of the living units with these names or shell patterns, in their order; all for none.

    Raises:
        UserError: a name or pattern without a living unit.
    """
    table = model.evidence.units
    living = [(m, name) for m, name in enumerate(table.names) if bool(table.alive[m])]
    if not only:
        return [m for m, _ in living]
    found = set[int]()
    for wanted in only:
        # A name may itself look like a pattern.
        mine = [m for m, name in living if name == wanted] or [m for m, name in living if fnmatchcase(name, wanted)]
        if not mine:
            raise UserError(
                f"there is no living {table.kind} '{wanted}'", closest(wanted, [name for _, name in living])
            )
        found.update(mine)
    return sorted(found)


def _weightiest(units: list[int], weights: Tensor | None, limit: int) -> list[int]:
    """At most ``limit`` units, those with the largest weight for some class, in their own order."""
    if len(units) <= limit or weights is None:
        return units[:limit]
    largest = weights.abs().amax(0)[units]
    return sorted(units[place] for place in largest.argsort(descending=True, stable=True)[:limit].tolist())


class _Pictures:
    """Draws the images that units answer to; each is read from its split once."""

    def __init__(
        self,
        split: Split,
        answers: Answers,
        class_names: tuple[str, ...],
        where: Literal["contour", "heat", "box"],
        size: int,
    ) -> None:
        self.split, self.answers, self.class_names = split, answers, class_names
        self.where, self.size = where, size
        self._kept: dict[int, np.ndarray] = {}

    def of(self, place: int) -> list[Tile]:
        """The tiles of the unit at a place of the answers, most active first."""
        if bool(self.answers.constant[place]):
            return []
        best, maps = self.answers.best, self.answers.best.extra.get("map")
        tiles = []
        for rank in range(best.count):
            index, label = int(best.index[place, rank]), self.class_names[int(best.label[place, rank])]
            value = float(best.value[place, rank])
            # An image on which the unit is at its lowest shows nothing: which of them comes first is chance.
            if index < 0 or value <= float(self.answers.low[place]):
                break
            unit_map = None if maps is None else maps[place, rank].cpu().numpy()
            picture = seen_at(self._image(index), unit_map, self.answers.grid, self.where, self.size)
            caption = (f"{_number(value)}  {label}", f"image {index}")
            tiles.append(Tile(picture, "image", caption, index, label, value))
        return tiles

    def _image(self, index: int) -> np.ndarray:
        if index not in self._kept:
            # Units share images; at the size of a tile all of them fit into memory.
            self._kept[index] = np.asarray(scaled(self.split.sample(index).image, self.size))
        return self._kept[index]


def _decoded(model: TransparentClassifier, units: list[int], size: int) -> tuple[np.ndarray | None, str | None]:
    """(U, S, S, 3) uint8 what units stand for, from a layer that can draw it, or why it could not."""
    layer = model.evidence
    with evaluating(model):
        try:
            drawn = layer.decode_units(torch.tensor(units, device=layer.alive.device), (size, size))
        except UserError as error:
            return None, f"units are not drawn by the model: {error.problem}"
    if drawn is None:
        return None, None
    colour = drawn.detach().float().clamp(0, 1).expand(-1, 3, -1, -1)
    return (colour.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy(), None


def _said(answers: Answers, place: int) -> list[str]:
    low, mean, high = (_number(float(t[place])) for t in (answers.low, answers.mean, answers.high))
    if bool(answers.constant[place]):
        return [f"the same on every image: {mean}"]
    return [f"from {low} to {high}, {mean} on average"]


def _number(value: float) -> str:
    """Three digits that matter, with a true minus sign."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _which_images(model: TransparentClassifier, answers: Answers, top: int, name: str) -> str:
    words = {"train": "training", "val": "validation"}.get(name, name)
    shown = min(top, answers.images)
    kind = model.evidence.units.kind
    return f"each {kind} with the {shown} of {answers.images:,} images of the {words} split on which it is most active"


def _which_units(model: TransparentClassifier, asked: list[int], shown: list[int], weights: Tensor | None) -> list[str]:
    """What is not on show, in words."""
    living, kinds = int(model.evidence.alive.sum()), model.evidence.units.kinds
    notes = []
    if len(shown) < len(asked):
        why = "the first" if weights is None else "those with the largest weight for a class"
        notes.append(f"{len(shown)} of {len(asked)} {kinds}: {why}; limit and only show others")
    elif len(asked) < living:
        notes.append(f"{len(shown)} of {living} {kinds}, as asked for")
    return [*notes, *pruned_note(model)]
