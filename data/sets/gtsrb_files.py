"""Where GTSRB keeps its images, labels, sign boxes and tracks: as torchvision unpacks it, or packed into npz files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.files import check_headers, inside
from vitrarium.data.sets.packed import Packed, read_packed
from vitrarium.data.sets.stored import FilePictures, Part
from vitrarium.data.tables import open_table

PACKED = {"train": "gtsrb32_train_jpeg.npz", "test": "gtsrb32_test_jpeg.npz"}

_TRAIN = ("Training", "Final_Training/Images")
_TEST = "Final_Test/Images"
_TEST_TABLE = "GT-final_test.csv"

_BOX = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")


@dataclass(frozen=True)
class Signs:
    """What was found.

    Attributes:
        ids: (C,) numbers of the classes, as the official tables have them.
        train: the training part; its groups are tracks, labels count the ``ids``.
        test: the test part.
        packed: whether it is the copy in npz files.
    """

    ids: np.ndarray
    train: Part
    test: Part
    packed: bool


@dataclass(frozen=True)
class Place:
    """The unpacked archives.

    Attributes:
        train: holds a folder for each class ("00014").
        test: holds the test images.
        table: the annotation of the test images.
    """

    train: Path
    test: Path
    table: Path


def find_place(root: Path) -> Place | None:
    """The archives as torchvision unpacks them below ``root`` (``gtsrb/GTSRB/...``), or one level deeper."""
    for base in (root / "gtsrb", root):
        for folder in _TRAIN:
            if (base / "GTSRB" / folder).is_dir():
                test = base / "GTSRB" / _TEST
                inner = test / _TEST_TABLE
                return Place(base / "GTSRB" / folder, test, inner if inner.is_file() else base / _TEST_TABLE)
    return None


def read_packed_signs(root: Path) -> Signs:
    """The copy in npz files.

    Raises:
        UserError: a missing or damaged file, a label of the test part that training does not have.
    """
    found = {
        split: read_packed(root / name, ["labels", "roi_xyxy", "track"], names="files")
        for split, name in PACKED.items()
    }
    ids = np.unique(found["train"].fields["labels"].astype(np.int64))
    parts = {split: _packed_part(file, ids) for split, file in found.items()}
    return Signs(ids, parts["train"], parts["test"], packed=True)


def _packed_part(file: Packed, ids: np.ndarray) -> Part:
    labels, boxes = file.fields["labels"].astype(np.int64), file.fields["roi_xyxy"].astype(np.float32)
    for row in np.flatnonzero(~np.isin(labels, ids)):
        raise UserError(
            f"{file.where(int(row))} has the class {labels[row]}, which no training image has", "copy it again"
        )
    if boxes.shape != (len(labels), 4) or not (np.isfinite(boxes).all() and (boxes[:, :2] < boxes[:, 2:]).all()):
        raise UserError(
            f"'{file.path}': roi_xyxy holds no box (left, top, right, bottom) for each image", "copy it again"
        )
    return Part(file, np.searchsorted(ids, labels), boxes, file.fields["track"].astype(np.int64))


def read_unpacked_signs(root: Path, place: Place, with_boxes: bool) -> Signs:
    """The official images and tables.

    Args:
        root: the data folder, which paths are relative to.
        place: where they are below it.
        with_boxes: whether boxes are needed; without them the tables of the training classes may be missing.

    Raises:
        UserError: a missing or damaged table or image, an image that its table does not name, a box outside its image.
    """
    folders = sorted(f for f in place.train.iterdir() if f.is_dir() and f.name.isdigit())
    if len(folders) < 2:
        raise UserError(
            f"'{place.train}' holds {len(folders)} class folders called by a number", "expected 00000/, 00001/, ..."
        )
    ids = np.array([int(folder.name) for folder in folders])
    found = _Collected(root, with_boxes)
    for folder in folders:
        table = folder / f"GT-{folder.name}.csv"
        on_disk = {path.name for path in folder.glob("*.ppm")}
        if table.is_file():
            named = found.read(table, folder, int(folder.name))
            if on_disk - named:
                raise UserError(f"{table} has no row for '{min(on_disk - named)}'", "copy or unpack both again")
        elif with_boxes:
            raise UserError(f"the file '{table}' is missing", "unpack it again, or set data.boxes=ignore")
        else:
            for name in sorted(on_disk):
                found.add((folder / name).relative_to(root).as_posix(), int(folder.name), "")
    train = found.part(ids, tracks=True)
    if not place.table.is_file():
        raise UserError(f"the file '{place.table}' is missing", "unpack GTSRB_Final_Test_GT.zip there")
    found = _Collected(root, with_boxes)
    found.read(place.table, place.test)
    return Signs(ids, train, found.part(ids, tracks=False), packed=False)


class _Collected:
    """Files, classes and boxes of one part, table by table."""

    def __init__(self, root: Path, with_boxes: bool) -> None:
        self.root, self.with_boxes = root, with_boxes
        self.files: list[str] = []
        self.lines: list[str] = []
        self.classes: list[int] = []
        self.boxes: list[tuple[float, ...]] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, file: str, label: int, line: str) -> None:
        self.files.append(file)
        self.lines.append(line)
        self.classes.append(label)

    def read(self, path: Path, folder: Path, label: int | None = None) -> set[str]:
        """The rows of a table in the official format; ``label`` is the class they must have. The names in it."""
        table = open_table(path, separator=";")
        table.require("Filename", "ClassId", *(("Width", "Height", *_BOX) if self.with_boxes else ()))
        lines: dict[str, int] = {}
        within = folder.relative_to(self.root).as_posix()
        for row in table:
            name, where = row["Filename"], table.where(row)
            if name in lines:
                raise UserError(f"{where}: '{name}' has a row already, in line {lines[name]}", "keep one of the two")
            lines[name] = row.line
            given = _whole(row["ClassId"], "ClassId", where)
            if label is not None and given != label:
                raise UserError(f"{where}: ClassId is {given} in the table of class {label}", "unpack it again")
            self.add(f"{within}/{name}", given, where)
            inside(self.root, self.files[-1], where)
            if self.with_boxes:
                self._box(*(_whole(row[column], column, where) for column in ("Width", "Height", *_BOX)), where=where)
        return set(lines)

    def _box(self, width: int, height: int, *box: int, where: str) -> None:
        # The official margins of 10 % are symmetric when the far side is read as the first pixel outside.
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UserError(
                f"{where}: the box ({left}, {top}, {right}, {bottom}) does not lie in {width} x {height} pixels",
                "mend it, or set data.boxes=ignore",
            )
        self.boxes.append((left, top, right, bottom))
        self.sizes.append((width, height))

    def part(self, ids: np.ndarray, tracks: bool) -> Part:
        if not self.files:
            raise UserError(f"'{self.root}' lists no {'training' if tracks else 'test'} images", "unpack it again")
        classes = np.array(self.classes)
        for row in np.flatnonzero(~np.isin(classes, ids)):
            raise UserError(
                f"{self.lines[row]}: ClassId is {classes[row]}, which no training image has",
                "unpack the folders of all classes",
            )
        pictures = FilePictures(self.root, self.files, self.lines)
        where = [pictures.where(index) for index in range(len(self.files))]
        self._check_sizes(check_headers([self.root / file for file in self.files], where))
        boxes = np.array(self.boxes, np.float32) if self.with_boxes else None
        return Part(pictures, np.searchsorted(ids, classes), boxes, self._tracks() if tracks else None)

    def _check_sizes(self, actual: Sequence[tuple[int, int]]) -> None:
        """Boxes are in pixels of images of a certain size."""
        for line, said, found in zip(self.lines, self.sizes, actual, strict=False):
            if said != found:
                raise UserError(
                    f"{line}: the image has {found[0]} x {found[1]} pixels, the table says {said[0]} x {said[1]}: its "
                    "box would lie elsewhere",
                    "use the original images, or set data.boxes=ignore",
                )

    def _tracks(self) -> np.ndarray:
        """(N,) number of the track of each image: 00014/00003_00012.ppm is frame 12 of track 3 of class 14."""
        named = []
        for file in self.files:
            folder, name = file.rsplit("/", 1)
            track, _, frame = name.partition("_")
            if not (track.isdigit() and frame):
                raise UserError(f"'{file}' is not called TRACK_FRAME.ppm, as in 00003_00012.ppm", "unpack it again")
            named.append(f"{folder}/{track}")
        return np.unique(named, return_inverse=True)[1]


def _whole(cell: str, column: str, where: str) -> int:
    if not (cell.isascii() and cell.isdigit()):
        raise UserError(f"{where}: {column} is '{cell}', no whole number", "unpack the table again")
    return int(cell)
