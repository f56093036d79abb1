"""``cifar10``: small photographs of ten kinds of animals and vehicles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.packed import read_packed
from vitrarium.data.sets.safe_pickle import read_pickle
from vitrarium.data.sets.stored import Part, Pictures, check_whole, data_root, split_parts
from vitrarium.data.source import DATASETS, LAYOUTS, DataSource, Recognition

VERSION = 1
"""Part of the fingerprint: raised whenever the same files give other pixels or labels."""

SIDE = 32

BATCHES = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
PACKED = {"train": "cifar10_train_jpeg.npz", "test": "cifar10_test_jpeg.npz"}

_WHERE_FROM = (
    "set data.root, or VITRARIUM_DATA to the folder that holds 'cifar10'; the images come from "
    "www.cs.toronto.edu/~kriz/cifar.html (CIFAR-10 python version, unpacked)"
)


@dataclass(frozen=True)
class BatchPictures(Pictures):
    """The images of some batches.

    Attributes:
        paths: of the batches.
        data: for each of them (n, 3072) uint8: red, green and blue plane of 32 x 32 pixels.
        names: of all images.
    """

    paths: Sequence[Path]
    data: Sequence[np.ndarray]
    names: Sequence[str]

    def _place(self, index: int) -> tuple[int, int]:
        for batch, rows in enumerate(self.data):
            if index < len(rows):
                return batch, index
            index -= len(rows)
        raise IndexError(index)

    def _row(self, index: int) -> np.ndarray:
        batch, row = self._place(index)
        return self.data[batch][row]

    def open(self, index: int) -> Image.Image:
        """Image ``index`` as RGB."""
        return Image.fromarray(np.ascontiguousarray(self._row(index).reshape(3, SIDE, SIDE).transpose(1, 2, 0)))

    def name(self, index: int) -> str:
        """Its file name in the set that CIFAR-10 was made from."""
        return self.names[index]

    def where(self, index: int) -> str:
        """Batch and number."""
        batch, row = self._place(index)
        return f"{self.paths[batch]} image {row}"

    def digests(self) -> list[str]:
        """Of the pixels."""
        return [hashlib.sha256(row.tobytes()).hexdigest() for rows in self.data for row in rows]


def _batches(folder: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """The original batches."""
    meta = read_pickle(folder / "batches.meta")
    classes = meta.get("label_names")
    if not isinstance(classes, list) or len(classes) < 2:
        raise UserError(f"'{folder / 'batches.meta'}' has no label_names", "get it again from its official source")
    train = _part([folder / name for name in TRAIN_BATCHES], len(classes))
    return train, _part([folder / "test_batch"], len(classes)), tuple(str(name) for name in classes)


def _part(paths: Sequence[Path], classes: int) -> Part:
    found = [_batch(path, classes) for path in paths]
    pictures = BatchPictures(paths, [data for data, _, _ in found], [name for _, _, names in found for name in names])
    return Part(pictures, np.concatenate([labels for _, labels, _ in found]))


def _batch(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pixels, labels and names of a batch."""
    batch: dict[str, Any] = read_pickle(path)
    again = "get it again from its official source"
    data, given = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE**2:
        raise UserError(f"'{path}' holds no array 'data' of images with {3 * SIDE**2} bytes each", again)
    labels = np.asarray(given if given is not None else [], dtype=object)
    right = len(labels) == len(data) and all(isinstance(c, int) and 0 <= c < classes for c in labels)
    if not right or not len(data):
        raise UserError(f"'{path}' has no label from 0 to {classes - 1} for each of its {len(data)} images", again)
    names = batch.get("filenames")
    if not isinstance(names, list) or len(names) != len(data):
        names = [f"{path.name} #{row}" for row in range(len(data))]
    return data, labels.astype(np.int64), [str(name) for name in names]


def _packed(root: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """The copy in npz files."""
    files = {split: read_packed(root / name, ["labels"], ["class_names"]) for split, name in PACKED.items()}
    classes = [str(name) for name in files["train"].fields["class_names"]]
    parts = []
    for file in files.values():
        labels = file.fields["labels"].astype(np.int64)
        if file.fields["class_names"].tolist() != classes or labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"'{file.path}' has labels of other classes", "copy both files from the same place")
        parts.append(Part(file, labels))
    return parts[0], parts[1], tuple(classes)


def _batches_folder(root: Path) -> Path | None:
    """Where the original batches are: in the folder that torchvision makes, or right here."""
    return next((f for f in (root / BATCHES, root) if (f / "batches.meta").is_file()), None)


@LAYOUTS.register("cifar10")
def recognise_cifar10(root: Path) -> Recognition | None:
    """cifar-10-batches-py/ with data_batch_1 to 5, test_batch, batches.meta; or cifar10_train_jpeg.npz and _test_."""
    batches = _batches_folder(root)
    if batches is not None and (batches / TRAIN_BATCHES[0]).is_file():
        because = f"{BATCHES}/" if batches != root else "batches.meta and data_batch_1"
    elif (root / PACKED["train"]).is_file():
        because = PACKED["train"]
    else:
        return None
    return Recognition({"name": "cifar10", "root": str(root)}, because)


@DATASETS.register("cifar10")
def cifar10(root: str | None = None, size: int = SIDE, val_fraction: float = 0.1, split_seed: int = 0) -> DataSource:
    """60,000 photographs of 32 x 32 pixels, 10 classes, without concepts.

    Krizhevsky, "Learning multiple layers of features from tiny images", technical report, University of Toronto, 2009.
    No formal licence: to be cited.

    Args:
        root: folder with ``cifar-10-batches-py/`` (as torchvision unpacks it), or with ``cifar10_train_jpeg.npz`` and
            ``cifar10_test_jpeg.npz``; by default ``$VITRARIUM_DATA/cifar10``. Nothing is downloaded, and nothing in the
            pickled batches is executed.
        size: height and width in pixels.
        val_fraction: share of each class of the training part that is drawn for validation.
        split_seed: of the draw, at least 0.

    Raises:
        UserError: a missing or damaged file, a batch that holds anything but arrays and text, an option outside its
            range.
    """
    check_whole("cifar10", size=(size, 1), split_seed=(split_seed, 0))
    folder = data_root("cifar10", root, "cifar10", _WHERE_FROM)
    batches = _batches_folder(folder)
    if batches is None and not (folder / PACKED["train"]).is_file():
        raise UserError(f"'{folder}' holds neither {BATCHES}/ nor {PACKED['train']}", _WHERE_FROM)
    train, test, classes = _packed(folder) if batches is None else _batches(batches)
    splits, duplicates, content = split_parts(
        train, test, None, val_fraction, split_seed, "ignore", Preprocessing(size)
    )
    notes = [f"{val_fraction:.0%} of each class for val drawn from train with split_seed={split_seed}"]
    if batches is None:
        notes.append(
            f"images are a lossy JPEG copy of {len(train.labels):,} training and {len(test.labels):,} test images: "
            "numbers do not compare with those of the original set"
        )
    return DataSource(
        name="cifar10",
        splits=dict(splits),
        class_names=classes,
        concepts=None,
        gives=frozenset(),
        size=size,
        fingerprint=hashlib.sha256(repr(("cifar10", VERSION, classes, content)).encode()).hexdigest()[:16],
        notes=[*notes, *([duplicates.note] if duplicates.note else [])],
        duplicates=duplicates,
    )
