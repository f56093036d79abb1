"""Data sets that come as a training and a test part: where their images are, and how validation is drawn from them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.duplicates import Duplicates, find_duplicates
from vitrarium.data.files import digests, existing_folder
from vitrarium.data.preprocessing import Preprocessing, centre_square, open_rgb
from vitrarium.data.source import SPLITS, Split
from vitrarium.data.splitting import draw_splits


class Pictures(ABC):
    """The images of one part, whatever holds them."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """Image ``index`` as RGB."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What image ``index`` is called."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What to mend if image ``index`` is wrong."""

    @abstractmethod
    def digests(self) -> list[str]:
        """SHA-256 of the stored content of each image."""

    def file(self, index: int) -> Path | None:
        """The file of image ``index``; None where it has none of its own."""
        return None


@dataclass(frozen=True)
class FilePictures(Pictures):
    """Images in files.

    Attributes:
        root: the data folder.
        files: relative to it.
        lines: table and line of each; empty where no table names them.
    """

    root: Path
    files: Sequence[str]
    lines: Sequence[str]

    def open(self, index: int) -> Image.Image:
        """Decode file ``index``."""
        return open_rgb(self.file(index))

    def name(self, index: int) -> str:
        """Path relative to the data folder."""
        return self.files[index]

    def where(self, index: int) -> str:
        """Table and line, or the path."""
        return self.lines[index] or self.files[index]

    def digests(self) -> list[str]:
        """Of the files."""
        return digests([self.root / file for file in self.files], [self.where(i) for i in range(len(self.files))])

    def file(self, index: int) -> Path:
        """The image file."""
        return self.root / self.files[index]


@dataclass(frozen=True)
class Part:
    """The training or the test part of a data set.

    Attributes:
        pictures: its images.
        labels: (N,) int64.
        boxes: (N, 4) float32 left, top, right, bottom of the object in pixels of the image, counted from its corner; or
            None.
        groups: (N,) what images are of; those of one group are kept together. None: each stands alone.
    """

    pictures: Pictures
    labels: np.ndarray
    boxes: np.ndarray | None = None
    groups: np.ndarray | None = None


@dataclass(kw_only=True)
class StoredSplit(Split):
    """One split; see :class:`~vitrarium.data.source.Split`.

    Attributes:
        labels: (N,) int64.
        truth: (N, K) float32, or None.
        leaked: (N,) bool, images of val and test with an exact copy in another split.
        rows: (N,) the images of ``part``.
        part: where they are.
        boxes: what happens to boxes: "map", "crop" or "ignore".
        preprocessing: from image to pixels.
    """

    labels: np.ndarray
    truth: np.ndarray | None
    leaked: np.ndarray
    rows: np.ndarray
    part: Part
    boxes: str
    preprocessing: Preprocessing

    def sample(self, index: int) -> Sample:
        """Decode and resize image ``index``."""
        row = int(self.rows[index])
        picture = self.part.pictures.open(row)
        box: tuple[float, float, float, float] | None = None
        if self.part.boxes is not None and self.boxes != "ignore":
            left, top, right, bottom = self.part.boxes[row].tolist()
            box = (left, top, right, bottom)
        return Sample(
            image=self.preprocessing.fit(picture, box if self.boxes == "crop" else None),
            label=int(self.labels[index]),
            concepts=None if self.truth is None else self.truth[index].copy(),
            human_map=box_map(box, picture.size, self.preprocessing.size) if box and self.boxes == "map" else None,
            index=index,
        )

    def origin(self, index: int) -> str:
        """What the data set calls the image."""
        return self.part.pictures.name(int(self.rows[index]))

    def where(self, index: int) -> str:
        """Table and line, or file and position."""
        return self.part.pictures.where(int(self.rows[index]))

    def file(self, index: int) -> Path | None:
        """The image file, where it has one of its own."""
        return self.part.pictures.file(int(self.rows[index]))


def box_map(box: Sequence[float], picture: tuple[int, int], size: int) -> np.ndarray:
    """A human map (size, size) uint8 of an image that was fitted: 255 for pixels whose centre lies in the box.

    Args:
        box: left, top, right, bottom in pixels of the image, counted from its corner.
        picture: width and height of the image.
        size: side of the fitted image.
    """
    left, top, right, _ = centre_square(*picture)
    centres = (np.arange(size) + 0.5) * (right - left) / size
    across = (centres + left >= box[0]) & (centres + left < box[2])
    down = (centres + top >= box[1]) & (centres + top < box[3])
    return (down[:, None] & across).astype(np.uint8) * np.uint8(255)


def split_parts(
    train: Part,
    test: Part,
    of_classes: np.ndarray | None,
    val_fraction: float,
    seed: int,
    boxes: str,
    preprocessing: Preprocessing,
) -> tuple[dict[str, StoredSplit], Duplicates, str]:
    """Draw validation from the training part, class by class, groups whole.

    Args:
        train: the training part.
        test: the test part, which stays whole.
        of_classes: (C, K) concepts of each class, or None.
        val_fraction: share of the groups of each class that is drawn.
        seed: of the draw.
        boxes: what happens to boxes: "map", "crop" or "ignore".
        preprocessing: from image to pixels.

    Returns:
        The splits, the exact copies among their images, and a hash of all images, labels, boxes and concepts.
    """
    assigned = np.full(len(train.labels), "train", "<U5")
    draw_splits(assigned, train.labels, {"val": val_fraction}, seed, train.groups)
    if not (assigned == "val").any():
        raise UserError(
            f"the split val got none of the {len(assigned)} images", "give more images, or a larger val_fraction"
        )
    parts = {"train": train, "val": train, "test": test}
    rows = {name: np.flatnonzero(assigned == name) for name in SPLITS[:2]} | {"test": np.arange(len(test.labels))}
    hashes = {id(part): part.pictures.digests() for part in (train, test)}
    named = {name: [hashes[id(parts[name])][r] for r in rows[name]] for name in SPLITS}
    labels = {name: parts[name].labels[rows[name]] for name in SPLITS}
    duplicates = find_duplicates(named, labels)
    total = hashlib.sha256(repr((named, boxes, preprocessing)).encode())
    splits = {}
    for name in SPLITS:
        truth = None if of_classes is None else of_classes[labels[name]]
        splits[name] = StoredSplit(
            labels=labels[name],
            truth=truth,
            leaked=duplicates.leaked[name],
            rows=rows[name],
            part=parts[name],
            boxes=boxes,
            preprocessing=preprocessing,
        )
        given = parts[name].boxes
        for array in (labels[name], truth, None if given is None else given[rows[name]]):
            total.update(b"" if array is None else array.tobytes())
    return splits, duplicates, total.hexdigest()


def data_root(name: str, root: str | None, folder: str, where_from: str) -> Path:
    """The folder of a data set: ``root``, or ``folder`` in ``$VITRARIUM_DATA``.

    Raises:
        UserError: neither is given, or it is not there.
    """
    if root is None:
        data = os.environ.get("VITRARIUM_DATA")
        if not data:
            raise UserError(f"{name} does not know where its data lie", where_from)
        root = str(Path(data) / folder)
    return existing_folder(root, f"the folder of {name}", where_from)


def check_whole(name: str, **options: tuple[Any, int]) -> None:
    """Refuse options that are no whole numbers of at least their least value: ``size=(size, 1)``."""
    for option, (value, least) in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} with {option}={value!r}", f"give a whole number of at least {least}")
