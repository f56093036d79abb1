"""A tiny data set in the layout of CUB-200-2011, as its files really look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrarium.data import build_source
from vitrarium.data.source import DataSource

SIZE = (40, 30)
"""Width and height of the images."""

ATTRIBUTES = (
    "has_bill_shape::dagger",
    "has_bill_shape::hooked",
    "has_bill_shape::curved_(up_or_down)",
    "has_wing_color::blue",
    "has_wing_color::red",
    "has_wing_color::white",
    "sings",
)
"""A group of which exactly one is true, a group of independent ones, and one alone."""

PARTS = ("left eye", "tail", "beak")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        place: the folder with the tables.
        ids: (N,) ids of the images.
        files: their paths relative to ``images/``.
        labels: (N,) classes.
        train: (N,) bool, as in ``train_test_split.txt``.
        present: (N, A) of ``image_attribute_labels.txt``; None without it.
        certainty: (N, A), likewise.
        percent: (C, A) of ``class_attribute_labels_continuous.txt``.
        points: (N, P, 3) of ``part_locs.txt``.
        boxes: (N, 4) of ``bounding_boxes.txt``.
    """

    place: Path
    ids: np.ndarray
    files: list[str]
    labels: np.ndarray
    train: np.ndarray
    present: np.ndarray | None
    certainty: np.ndarray | None
    percent: np.ndarray
    points: np.ndarray
    boxes: np.ndarray


def write_cub(
    folder: Path,
    classes: int = 10,
    per_class: int = 4,
    attributes: Sequence[str] = ATTRIBUTES,
    class_level_only: bool = False,
    parts: Sequence[str] = PARTS,
    boxes: bool = True,
    segmentations: bool = True,
    split: bool = True,
    size: tuple[int, int] = SIZE,
    first_id: int = 1,
    step: int = 1,
    seed: int = 0,
    archive: bool = True,
) -> Written:
    """Write a data set; the same arguments give the same files.

    Args:
        folder: the root. With ``archive`` it looks like the unpacked archive: tables in ``CUB_200_2011/``, attribute
            names and segmentations beside it; otherwise everything lies in ``folder``.
        classes: how many.
        per_class: images of each; the last quarter of them (at least one) is for testing.
        attributes: their names, empty for none.
        class_level_only: write no labels of images.
        parts: their names, empty for none.
        boxes: write bounding boxes.
        segmentations: write segmentations.
        split: write ``train_test_split.txt``.
        size: width and height of the images.
        first_id: id of the first image, class, attribute and part.
        step: from one id to the next.
        seed: of everything that is random.
        archive: see ``folder``.
    """
    place = folder / "CUB_200_2011" if archive else folder
    rng = np.random.default_rng(seed)
    count = classes * per_class
    names = [f"{c + 1:03d}.Bird_{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[c % 26]}{c}" for c in range(classes)]
    labels = np.repeat(np.arange(classes), per_class)
    number = np.tile(np.arange(per_class), classes)
    files = [f"{names[c]}/{names[c][4:]}_{n:04d}.jpg" for c, n in zip(labels, number, strict=True)]
    train = number < per_class - max(1, per_class // 4)
    ids = _ids(count, first_id, step)
    _pictures(place, folder, files, rng, size, segmentations)
    write_lines(place / "images.txt", zip(ids, files, strict=True))
    write_lines(place / "classes.txt", zip(_ids(classes, first_id, step), names, strict=True))
    write_lines(place / "image_class_labels.txt", zip(ids, labels * step + first_id, strict=True))
    if split:
        write_lines(place / "train_test_split.txt", zip(ids, train.astype(int), strict=True))
    width, height = size
    corner = rng.integers(0, (width // 2, height // 2), (count, 2)).astype(float)
    box = np.concatenate([corner, np.round(rng.random((count, 2)) * (np.array(size) - corner - 4) + 4)], axis=1)
    if boxes:
        write_lines(place / "bounding_boxes.txt", ((i, *b) for i, b in zip(ids, box.tolist(), strict=True)))
    points = _points(rng, count, len(parts), size)
    if parts:
        part_ids = _ids(len(parts), first_id, step)
        write_lines(place / "parts" / "parts.txt", zip(part_ids, parts, strict=True))
        rows = [
            (image, part, *at[:2], int(at[2]))
            for image, places in zip(ids, points.tolist(), strict=True)
            for part, at in zip(part_ids, places, strict=True)
        ]
        write_lines(place / "parts" / "part_locs.txt", rows)
        write_lines(place / "parts" / "part_click_locs.txt", [(*row, 1.5) for row in rows])
    present, certainty = _annotations(rng, labels, attributes)
    percent = np.array([present[labels == c].mean(0) * 100 for c in range(classes)]).reshape(classes, len(attributes))
    if attributes:
        _write_attributes(
            folder, place, ids, attributes, present, certainty, percent, class_level_only, (first_id, step)
        )
    told = bool(attributes) and not class_level_only
    return Written(
        place, ids, files, labels, train, present if told else None, certainty if told else None, percent, points, box
    )


def write_lines(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    """A table as the official archive has it: fields and blanks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(str(field) for field in row) + "\n" for row in rows), encoding="utf-8")
    return path


def build(root: Path, **options: object) -> DataSource:
    """The data set ``cub`` at 16 pixels."""
    return build_source({"name": "cub", "root": str(root), "size": 16, **options})


def rows_of(source: DataSource, written: Written) -> dict[str, list[int]]:
    """Row of each image in what was written, split by split."""
    return {
        name: [written.files.index(split.origin(i).removeprefix("images/")) for i in range(len(split))]
        for name, split in source.splits.items()
    }


def _ids(count: int, first: int, step: int) -> np.ndarray:
    return first + step * np.arange(count)


def _pictures(
    place: Path, beside: Path, files: list[str], rng: np.random.Generator, size: tuple[int, int], segmentations: bool
) -> None:
    """Pictures, all different, and soft segmentations: an ellipse in five shades."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    for file in files:
        path = place / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(picture).save(path, quality=95)
        if segmentations:
            far = ((x - width / 2) / (width / 3)) ** 2 + ((y - height / 2) / (height / 3)) ** 2
            drawn = (np.clip(1.5 - far, 0, 1) * 5).round() * 51
            target = beside / "segmentations" / Path(file).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.astype(np.uint8)).save(target)


def _points(rng: np.random.Generator, count: int, parts: int, size: tuple[int, int]) -> np.ndarray:
    """Some parts are not visible; as in the archive they lie at (0, 0)."""
    at = np.round(rng.random((count, parts, 2)) * (np.array(size) - 1), 1)
    visible = (rng.random((count, parts, 1)) < 0.7).astype(float)
    return np.concatenate([at * visible, visible], axis=-1)


def _annotations(
    rng: np.random.Generator, labels: np.ndarray, attributes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Of the first group exactly one is true; whole groups of a few images are not visible, and then absent."""
    groups = [name.partition("::")[0] for name in attributes]
    usual = rng.random((labels.max() + 1, len(attributes)))
    present = (rng.random((len(labels), len(attributes))) < usual[labels]).astype(int)
    certainty = rng.integers(2, 5, present.shape)
    for group in dict.fromkeys(groups):
        members = [k for k, name in enumerate(groups) if name == group]
        if group == "has_bill_shape":
            present[:, members] = 0
            present[np.arange(len(labels)), np.array(members)[rng.integers(len(members), size=len(labels))]] = 1
        invisible = np.flatnonzero(rng.random(len(labels)) < 0.15)
        present[np.ix_(invisible, members)], certainty[np.ix_(invisible, members)] = 0, 1
    return present, certainty


def _write_attributes(
    folder: Path,
    place: Path,
    ids: np.ndarray,
    attributes: Sequence[str],
    present: np.ndarray,
    certainty: np.ndarray,
    percent: np.ndarray,
    class_level_only: bool,
    numbering: tuple[int, int],
) -> None:
    attribute_ids = _ids(len(attributes), *numbering)
    write_lines(folder / "attributes.txt", zip(attribute_ids, attributes, strict=True))
    write_lines(
        place / "attributes" / "class_attribute_labels_continuous.txt", ([f"{v:.6g}" for v in row] for row in percent)
    )
    if class_level_only:
        return
    words = ("not visible", "guessing", "probably", "definitely")
    write_lines(place / "attributes" / "certainties.txt", enumerate(words, start=1))
    write_lines(
        place / "attributes" / "image_attribute_labels.txt",
        (
            (i, a, p, c, 2.5)
            for i, ps, cs in zip(ids, present, certainty, strict=True)
            for a, p, c in zip(attribute_ids, ps, cs, strict=True)
        ),
    )
