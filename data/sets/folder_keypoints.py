"""``keypoints.csv``: where the parts of each image are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import centre_square
from vitrarium.data.sets.folder_concepts import ImageNames
from vitrarium.data.sets.folder_layout import Layout
from vitrarium.data.tables import Row, Table, read_table


@dataclass(frozen=True)
class Keypoints:
    """Parts in pixels of the original images.

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
                "give pixels of the original image from its top left corner, or visible=0",
            )
        return fitted(points, width, height, size)


def fitted(points: np.ndarray, width: int, height: int, size: int) -> np.ndarray:
    """Move keypoints along with :meth:`vitrarium.data.preprocessing.Preprocessing.fit`.

    Args:
        points: (P, 3) x, y, visible in pixels of an image of ``width`` x ``height``; (0, 0) is the centre of the first
            pixel.
        width: of the original image.
        height: of the original image.
        size: side of the fitted image.

    Returns:
        (P, 3) float32 in pixels of the fitted image; what was cropped away is invisible.
    """
    moved = points.astype(np.float32)
    left, top, right, _ = centre_square(width, height)
    scale = size / (right - left)
    moved[:, 0] = (points[:, 0] + 0.5 - left) * scale - 0.5
    moved[:, 1] = (points[:, 1] + 0.5 - top) * scale - 0.5
    kept = ((moved[:, :2] >= -0.5) & (moved[:, :2] < size - 0.5)).all(axis=1)
    moved[:, 2] *= kept
    return moved


def read_keypoints(path: Path, layout: Layout) -> Keypoints | None:
    """Read ``keypoints.csv`` with the columns image, part, x, y and optionally visible; None if it is not there.

    Raises:
        UserError: an unknown image, a part twice in an image, a position that is no number, ``visible`` other than
            0 and 1.
    """
    if not path.exists():
        return None
    table = read_table(path)
    table.require("image", "part", "x", "y")
    if not table.rows:
        raise UserError(f"{path} lists no keypoints", "add some, or remove the file")
    parts = tuple(sorted({row["part"] for row in table.rows}))
    if "" in parts:
        nameless = next(row for row in table.rows if not row["part"])
        raise UserError(f"{table.where(nameless)}: the part has no name", "name it")
    names = ImageNames(layout.files)
    points = np.zeros((len(layout.files), len(parts), 3), np.float32)
    lines = np.zeros(points.shape[:2], np.int64)
    for row in table.rows:
        index, p = names.find(row["image"], table.where(row)), parts.index(row["part"])
        if lines[index, p]:
            raise UserError(
                f"{table.where(row)}: the part '{row['part']}' of this image is in line {lines[index, p]} already",
                "keep one of the two",
            )
        lines[index, p] = row.line
        points[index, p] = _point(table, row)
    return Keypoints(path, parts, points, lines)


def _point(table: Table, row: Row) -> tuple[float, float, float]:
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
            "give pixels of the original image from its top left corner",
        )
    return x, y, float(visible)
