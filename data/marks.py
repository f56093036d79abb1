"""Places in training images that somebody has marked: to be looked at, or not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource, Split
from vitrarium.data.tables import Row, Table, read_table

KINDS = ("forbid", "remember")
BOX = ("left", "top", "right", "bottom")


@dataclass
class Marks:
    """Marked places.

    Attributes:
        image: (n,) int64, position in the training split.
        box: (n, 4) float32 in [0, 1], left, top, right, bottom as shares of width and height; a point has no extent.
        label: (n,) int64, the class whose prototypes are meant.
    """

    image: Tensor
    box: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.image)


def read_marks(path: str | Path, source: DataSource, kind: str) -> Marks:
    """The marks of one kind from a CSV file.

    A line is a mark. Columns: ``image``, the position in the training split, the path relative to the data folder, or
    the file name where only one image has it; ``x`` and ``y``, a point, or ``left``, ``top``, ``right`` and ``bottom``,
    a box, in pixels of the image at the size it is loaded with (``data.size``); ``kind``, "forbid" or "remember"; and,
    if one likes, ``class``: whose prototypes are meant, by default those of the image's class.

    Args:
        path: of the file.
        source: the data.
        kind: "forbid" or "remember"; lines of the other kind are checked and left out.

    Raises:
        UserError: with file and line: unknown images, classes and kinds, places outside the image.
    """
    table = read_table(Path(path))
    table.require("image", "kind")
    columns = ("x", "y") if "x" in table.columns else BOX
    table.require(*columns)
    split = source.splits["train"]
    names: dict[str, list[int]] = {}
    images, boxes, labels = [], [], []
    for row in table.rows:
        if row["kind"] not in KINDS:
            raise UserError(f"{table.where(row)}: '{row['kind']}' is no kind of mark", closest(row["kind"], KINDS))
        image = _image(table, row, split, names)
        box = _box(table, row, columns, source.size)
        label = _label(table, row, source, int(split.labels[image]))
        if row["kind"] == kind:
            images.append(image)
            boxes.append(box)
            labels.append(label)
    if not images:
        raise UserError(f"{path} has no mark of kind '{kind}'", f"write lines whose kind is {kind}, or leave it out")
    return Marks(torch.tensor(images), torch.tensor(boxes), torch.tensor(labels))


def _image(table: Table, row: Row, split: Split, names: dict[str, list[int]]) -> int:
    """The position of an image; names are looked up only if there are any."""
    given = row["image"]
    if given.isdigit():
        if int(given) >= len(split):
            raise UserError(
                f"{table.where(row)}: image {given} of a training split of {len(split)}", f"0 to {len(split) - 1}"
            )
        return int(given)
    if not names:
        found: dict[str, list[int]] = defaultdict(list)
        for index in range(len(split)):
            origin = split.origin(index)
            for name in {origin, PurePosixPath(origin).name}:
                found[name].append(index)
        names.update(found)
    places = names.get(given, [])
    if len(places) != 1:
        raise UserError(
            f"{table.where(row)}: {len(places) or 'no'} training images are called '{given}'",
            "give the path relative to the data folder" if places else closest(given, names),
        )
    return places[0]


def _box(table: Table, row: Row, columns: tuple[str, ...], size: int) -> tuple[float, ...]:
    try:
        numbers = [float(row[column]) for column in columns]
    except ValueError as error:
        raise UserError(f"{table.where(row)}: {', '.join(columns)} must be numbers", "give pixels") from error
    left, top, right, bottom = numbers * 2 if len(numbers) == 2 else numbers
    if not (0 <= left <= right <= size and 0 <= top <= bottom <= size):
        raise UserError(
            f"{table.where(row)}: {', '.join(f'{c}={n:g}' for c, n in zip(columns, numbers, strict=True))} in an image "
            f"of {size} x {size} pixels",
            "give pixels of the image as it is loaded (data.size), left before right and top before bottom",
        )
    return left / size, top / size, right / size, bottom / size


def _label(table: Table, row: Row, source: DataSource, own: int) -> int:
    given = row["class"] if "class" in table.columns else ""
    if not given:
        return own
    if given not in source.class_names:
        raise UserError(f"{table.where(row)}: '{given}' is no class", closest(given, source.class_names))
    return source.class_names.index(given)
