"""``keypoints.csv``: where the parts of each image are."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.naming import ImageNames
from vitrarium.data.preprocessing import fitted
from vitrarium.data.sets.folder_layout import Layout
from vitrarium.data.tables import OpenTable, Row, open_table

MAX_PARTS = 1000
"""Parts of an image; a table that names more holds something else in the column."""


@dataclass(frozen=True)
class Keypoints:
    """Parts in pixels of the upright images.

    Attributes:
        path: of the table.
        parts: names of the P parts, sorted.
        points: (N, P, 3) float32: x, y, visible; zeros where the table has no line.
        lines: (N, P) int64 line of the table, 0 where there is none.
    """

    path: Path
    parts: tuple[str, ...]
    points: np.ndarray
    lines: np.ndarray

    def of(self, index: int, width: int, height: int, size: int) -> np.ndarray:
        """Keypoints (P, 3) of image ``index`` after it was fitted into ``size`` x ``size`` pixels.

        Raises:
            UserError: a visible keypoint outside the image.
        """
        points = self.points[index]
        x, y, visible = points[:, 0], points[:, 1], points[:, 2] > 0
        outside = visible & ((x < 0) | (x > width) | (y < 0) | (y > height))
        if outside.any():
            p = int(outside.argmax())
            raise UserError(
                f"{self.path} line {self.lines[index, p]}: the keypoint '{self.parts[p]}' at ({x[p]:g}, {y[p]:g}) lies "
                f"outside its image of {width} x {height} pixels",
                "give pixels of the upright original image from its top left corner, or visible=0",
            )
        return fitted(points, width, height, size)


def read_keypoints(path: Path, layout: Layout) -> Keypoints | None:
    """Read ``keypoints.csv`` with the columns image, part, x, y and optionally visible; None if it is not there.

    Raises:
        UserError: an unknown image, a part twice in an image, a position that is no number, ``visible`` other than
            0 and 1.
    """
    if not path.exists():
        return None
    table = open_table(path)
    table.require("image", "part", "x", "y")
    names, codes = ImageNames(layout.files), dict[str, int]()
    images, parts, lines, places = array("q"), array("q"), array("q"), array("f")
    for row in table:
        index = names.find(row["image"])
        if index is None:
            names.refuse(row["image"], table.where(row))
        images.append(index)
        parts.append(_part(table, row, codes))
        lines.append(row.line)
        places.extend(_point(table, row))
    if not lines:
        raise UserError(f"{path} lists no keypoints", "add some, or remove the file")
    ordered = sorted(codes)
    position = np.empty(len(ordered), np.int64)
    position[[codes[part] for part in ordered]] = np.arange(len(ordered))
    at = np.frombuffer(images, np.int64), position[np.frombuffer(parts, np.int64)]
    _refuse_repeated(table, ordered, *at, np.frombuffer(lines, np.int64))
    points = np.zeros((len(layout.files), len(ordered), 3), np.float32)
    line_of = np.zeros(points.shape[:2], np.int64)
    points[at] = np.frombuffer(places, np.float32).reshape(-1, 3)
    line_of[at] = np.frombuffer(lines, np.int64)
    return Keypoints(path, tuple(ordered), points, line_of)


def _part(table: OpenTable, row: Row, codes: dict[str, int]) -> int:
    """The number of the row's part, in the order of their first lines."""
    part = row["part"]
    if not part:
        raise UserError(f"{table.where(row)}: the part has no name", "name it")
    code = codes.setdefault(part, len(codes))
    if code >= MAX_PARTS:
        raise UserError(
            f"{table.where(row)}: the column 'part' holds more than {MAX_PARTS:,} different names",
            "give the same part the same name in every image",
        )
    return code


def _refuse_repeated(
    table: OpenTable, names: list[str], images: np.ndarray, parts: np.ndarray, lines: np.ndarray
) -> None:
    """A part may be once in an image; the first line that repeats one is told, and the line that it repeats."""
    keys = images * len(names) + parts
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(again):
        first = again[np.argmin(order[again + 1])]
        one, other = order[first], order[first + 1]
        raise UserError(
            f"{table.where(int(lines[other]))}: the part '{names[parts[other]]}' of this image is in line {lines[one]} "
            "already",
            "keep one of the two",
        )


def _point(table: OpenTable, row: Row) -> tuple[float, float, float]:
    """x, y, visible of a line; an invisible part needs no position."""
    visible = row["visible"] if "visible" in table.columns else "1"
    if visible not in ("0", "1"):
        raise UserError(f"{table.where(row)}: visible is '{visible}'", "write 1 or 0")
    if visible == "0" and not (row["x"] or row["y"]):
        return 0.0, 0.0, 0.0
    try:
        x, y = float(row["x"]), float(row["y"])
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise UserError(
            f"{table.where(row)}: the position ('{row['x']}', '{row['y']}') is no pair of numbers",
            "give pixels of the upright original image from its top left corner",
        )
    return x, y, float(visible)
