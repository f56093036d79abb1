"""Where things are in an image: boxes, parts, segmentations; and the window that a crop shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.files import inside
from vitrarium.data.preprocessing import fitted
from vitrarium.data.sets.cub_layout import first_of
from vitrarium.data.sets.cub_tables import Names, read_lines, read_names, read_values, real
from vitrarium.data.sets.folder_layout import SUFFIXES

Size = tuple[int, int]
"""Width and height of an image."""

Window = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels, as Pillow crops."""


@dataclass(frozen=True)
class Boxes:
    """``bounding_boxes.txt``.

    Attributes:
        path: of the table.
        boxes: (N, 4) float64 left, top, width, height in pixels; NaN where there is no line.
        lines: (N,) line of each, 0 where there is none.
    """

    path: Path
    boxes: np.ndarray
    lines: np.ndarray


def read_boxes(path: Path, images: Names, sizes: Sequence[Size]) -> tuple[Boxes | None, list[str]]:
    """Read the boxes, and what there is to note about them; None without the file.

    Raises:
        UserError: by line: something that is no number, an empty box, a box that lies with its larger part outside of
            its image, two boxes for an image.
    """
    if not path.exists():
        return None, []
    fields, lines = read_values(path, images, "12 60.0 27.0 325.0 304.0")
    boxes = np.full((len(images), 4), np.nan)
    outside = []
    for index in np.flatnonzero(lines).tolist():
        where = f"{path} line {lines[index]}"
        names = ("left", "top", "width", "height")
        boxes[index] = [real(f, where, n) for f, n in zip(fields[index], names, strict=True)]
        left, top, wide, high = boxes[index]
        width, height = sizes[index]
        about = f"the box ({left:g}, {top:g}, {wide:g}, {high:g})"
        cure = "write left, top, width and height in pixels of the image"
        if wide <= 0 or high <= 0:
            raise UserError(f"{where}: {about} is empty", cure)
        shown = max(0.0, min(left + wide, width) - max(left, 0)) * max(0.0, min(top + high, height) - max(top, 0))
        if shown < 0.5 * wide * high:
            raise UserError(f"{where}: {about} lies outside its image of {width} x {height} pixels", cure)
        if left < 0 or top < 0 or left + wide > width or top + high > height:
            outside.append(lines[index])
    notes = []
    if outside:
        notes.append(f"{len(outside)} boxes reach beyond their images (line {outside[0]} first): they are clipped")
    missing = int((lines == 0).sum())
    if missing:
        notes.append(f"{missing} of {len(images)} images have no box")
    return Boxes(path, boxes, lines), notes


def window(box: np.ndarray, size: Size, margin: float) -> Window:
    """The square around a box that a crop shows.

    Its side is the longer side of the box, widened by ``margin`` of it on each side, because a square is what models
    see: the centre square of the box itself would cut off head and tail. Where the square sticks out it is moved into
    the image; what is larger than the image is clipped to it.

    Args:
        box: (4,) left, top, width, height.
        size: width and height of the image.
        margin: share of the longer side.
    """
    left, top, wide, high = (float(v) for v in box)
    side = math.ceil(max(wide, high) * (1 + 2 * margin))
    ends = []
    for start, length, limit in ((left, wide, size[0]), (top, high, size[1])):
        first = math.floor(start + (length - side) / 2 + 0.5)
        first = max(0, min(first, limit - side))
        ends.append((first, min(first + side, limit)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


@dataclass(frozen=True)
class Parts:
    """``parts/parts.txt`` and ``parts/part_locs.txt``.

    Attributes:
        names: of the P parts.
        points: (N, P, 3) float32 x, y, visible in pixels of the image; zeros for an invisible part or without a line.
    """

    names: tuple[str, ...]
    points: np.ndarray

    def of(self, index: int, shown: Window, size: int) -> np.ndarray:
        """Parts (P, 3) of an image of which a window was fitted into ``size`` x ``size`` pixels."""
        left, top, right, bottom = shown
        return fitted(self.points[index] - np.array([left, top, 0], np.float32), right - left, bottom - top, size)


def read_parts(folder: Path, images: Names, sizes: Sequence[Size]) -> tuple[Parts | None, list[str]]:
    """Read names and places of parts, and what there is to note about them; None without the files.

    ``part_click_locs.txt``, the clicks of single annotators, is not read.

    Raises:
        UserError: by line: an unknown image or part, a part of an image twice, something that is no number, a visible
            part outside of its image; places without names.
    """
    places = folder / "part_locs.txt"
    if not places.exists():
        return None, [f"{folder.name}/parts.txt has no part_locs.txt beside it"] if folder.exists() else []
    names = read_names(folder / "parts.txt", "part", "3 left eye")
    points = np.zeros((len(images), len(names), 3), np.float32)
    lines = np.zeros(points.shape[:2], np.int32)
    for line, (image, part, *rest) in read_lines(places, "12 3 151.0 88.5 1"):
        where = f"{places} line {line}"
        i, p = images.find(image, where), names.find(part, where)
        if lines[i, p]:
            raise UserError(
                f"{where}: the part '{names.values[p]}' of '{images.values[i]}' is in line {lines[i, p]} already",
                "keep one of them",
            )
        lines[i, p] = line
        points[i, p] = _point(rest, sizes[i], names.values[p], where)
    if not lines.any():
        raise UserError(f"{places} is empty", "fill or remove it")
    without = int((~lines.any(1)).sum())
    notes = [f"{without} of {len(images)} images have no annotated parts"] if without else []
    return Parts(names.values, points), notes


def _point(fields: Sequence[str], size: Size, name: str, where: str) -> tuple[float, float, float]:
    """x, y, visible of a line; where an invisible part would be does not matter."""
    if fields[2] not in ("0", "1"):
        raise UserError(f"{where}: visible is '{fields[2]}'", "write 1 or 0")
    if fields[2] == "0":
        return 0.0, 0.0, 0.0
    x, y = real(fields[0], where, "x"), real(fields[1], where, "y")
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        raise UserError(
            f"{where}: the part '{name}' at ({x:g}, {y:g}) lies outside its image of {size[0]} x {size[1]} pixels",
            "give pixels of the image from its top left corner, or 0 as visible",
        )
    return x, y, 1.0


def find_segmentations(place: Path, files: Sequence[str]) -> tuple[Path, list[str | None], list[str]]:
    """The segmentation of each image: ``segmentations/`` and the image's path, with any image suffix.

    Args:
        place: the folder with the tables; segmentations lie in it or beside it.
        files: of the images, relative to ``images/``.

    Returns:
        The folder of the segmentations, their paths relative to it (None where there is none), and notes.

    Raises:
        UserError: two segmentations of one image, none at all though the folder lies in ``place``, a link out of it.
    """
    folder = first_of(place, "segmentations")
    if folder is None or not folder.is_dir():
        return place, [None] * len(files), []
    listed: dict[str, dict[str, str]] = {}
    found: list[str | None] = []
    for file in files:
        path = PurePosixPath(file)
        parent = path.parent.as_posix()
        if parent not in listed:
            listed[parent] = _pictures(folder, parent)
        name = listed[parent].get(path.stem)
        found.append(name and inside(folder, f"{parent}/{name}", "segmentation").relative_to(folder).as_posix())
    have = sum(name is not None for name in found)
    if not have and folder.parent != place:
        # What lies beside need not belong to this set.
        return place, found, []
    if not have:
        raise UserError(
            f"'{folder}' holds no segmentation of any image",
            f"call them like the images, as in {PurePosixPath(files[0]).with_suffix('.png')}, or remove the folder",
        )
    notes = [f"{have} of {len(files)} images have a segmentation"] if have < len(files) else []
    return folder, found, notes


def _pictures(folder: Path, parent: str) -> dict[str, str]:
    """Names of the pictures in a class folder of the segmentations, by name without suffix."""
    if not (folder / parent).is_dir():
        return {}
    pictures: dict[str, str] = {}
    for path in sorted((folder / parent).iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in pictures:
                raise UserError(
                    f"'{folder / parent}' holds two segmentations, {pictures[path.stem]} and {path.name}", "remove one"
                )
            pictures[path.stem] = path.name
    return pictures
