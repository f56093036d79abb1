"""Tiny data sets: generated in memory, or written to disk in their real formats."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitrarium.data import build_source
from vitrarium.data.batch import Sample
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.source import DataSource, Split

WBCATT_HEADER = ("img_name", "label", "cell_size", "nucleus_shape", "granularity", "path")


def coordinates(size: int) -> np.ndarray:
    """An image that says where each pixel was: red = 2 x, green = 2 y, blue = 7 (size up to 128)."""
    y, x = np.mgrid[:size, :size]
    return np.stack([2 * x, 2 * y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


class ArraySplit(Split):
    """Random examples with every field; every third has a human map. Counts how often it is asked."""

    def __init__(self, count: int, size: int = 16, parts: int = 3, concepts: int = 4, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
        self.labels = rng.integers(0, 2, count)
        self.truth = rng.integers(0, 2, (count, concepts)).astype(np.float32)
        self.truth[rng.random(self.truth.shape) < 0.1] = np.nan
        self.weight = rng.random((count, concepts)).astype(np.float32)
        self.maps = rng.integers(0, 256, (count, size, size)).astype(np.uint8)
        self.masks = (rng.random((count, parts, size, size)) < 0.3).astype(np.uint8) * 255
        self.points = np.concatenate(
            [rng.integers(0, size, (count, parts, 2)), rng.integers(0, 2, (count, parts, 1))], axis=-1
        ).astype(np.float32)
        self.asked = 0

    def sample(self, index: int) -> Sample:
        self.asked += 1
        return Sample(
            image=self.images[index],
            label=int(self.labels[index]),
            concepts=self.truth[index],
            concept_weight=self.weight[index],
            human_map=self.maps[index] if index % 3 == 0 else None,
            part_masks=self.masks[index],
            keypoints=self.points[index],
            index=index,
        )

    def origin(self, index: int) -> str:
        return f"generated/{index}.png"


def array_source(train: int = 20, val: int = 7, test: int = 9, size: int = 16, fingerprint: str = "abc") -> DataSource:
    """A data source of :class:`ArraySplit`."""
    counts = {"train": train, "val": val, "test": test}
    return DataSource(
        name="arrays",
        splits={name: ArraySplit(count, size, seed=s) for s, (name, count) in enumerate(counts.items())},
        class_names=("no", "yes"),
        concepts=ConceptSet.binary(["a", "b", "c", "d"]),
        gives=frozenset({"concepts", "human_map", "part_masks", "keypoints"}),
        size=size,
        fingerprint=fingerprint,
        part_names=("head", "wing", "tail"),
    )


def same_samples(a: Sample, b: Sample) -> bool:
    """Whether two samples agree in every field."""
    for name in vars(a):
        one, other = getattr(a, name), getattr(b, name)
        if (one is None) != (other is None):
            return False
        if one is not None and not np.array_equal(one, other, equal_nan=_real(one)):
            return False
    return True


def _real(value: object) -> bool:
    return np.asarray(value).dtype.kind == "f"


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20)) -> Path:
    """A random picture; the same seed gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(path)
    return path


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Path:
    """A table as a user would save it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_wbcatt(root: Path, counts: Mapping[str, int] | None = None) -> Path:
    """Two kinds of cells, three attributes (7 values), official tables and second annotators, in the real layout.

    Image ``i`` of the whole set has seed ``i``, except for these copies: train 1 = train 0; test 0 = train 2 (same
    class); test 1 = val 1, where the classes differ.
    """
    counts = dict(counts or {"train": 24, "val": 6, "test": 8})
    rng, number, rows = np.random.default_rng(3), 0, {}
    for split, count in counts.items():
        rows[split] = []
        for index in range(count):
            kind = ("Lymphocyte", "Monocyte")[index % 2]
            if (split, index) == ("test", 1):
                kind = "Lymphocyte"
            name = f"{kind[:2].upper()}_{number}.jpg"
            path = f"PBC_dataset_normal_DIB/{kind.lower()}/{name}"
            twins = {("train", 1): 0, ("test", 0): 2, ("test", 1): counts["train"] + 1}
            write_image(root / path, twins.get((split, index), number), (20, 21))
            size, shape = ("big", "small")[rng.integers(2)], ("round", "band", "irregular")[index % 3]
            rows[split].append((name, kind, size, shape, ("no", "yes")[rng.integers(2)], path))
            number += 1
        write_csv(root / f"pbc_attr_v1_{split}.csv", WBCATT_HEADER, rows[split])
    second = [rows["train"][3], rows["test"][2], rows["test"][5]]
    changed = [(*row[:2], "big", "band", *row[4:]) for row in second]
    write_csv(root / "pbc_attr_reannotations.csv", WBCATT_HEADER, changed)
    return root


def write_folder(
    root: Path,
    classes: Iterable[str] = ("cat", "dog"),
    count: int = 10,
    base: str = "",
    size: tuple[int, int] = (24, 20),
) -> list[str]:
    """Class folders with ``count`` images each; returns their paths relative to ``root``."""
    files = []
    for c, name in enumerate(classes):
        for index in range(count):
            file = f"{base}{name}/{name}{index}.png"
            write_image(root / file, seed=hash_seed(base) + 1000 * c + index, size=size)
            files.append(file)
    return files


def hash_seed(text: str) -> int:
    """A number for a text, the same in every process."""
    return sum(ord(letter) * 10_000 for letter in text)


def build_folder(root: Path, **options: object) -> DataSource:
    """The data set ``folder`` at 16 pixels."""
    return build_source({"name": "folder", "root": str(root), "size": 16, **options})


def places(source: DataSource) -> dict[str, tuple[str, int]]:
    """File to (split, position)."""
    return {split.origin(i): (name, i) for name, split in source.splits.items() for i in range(len(split))}


def sample_of(source: DataSource, file: str) -> Sample:
    """The sample of a file, whichever split it is in."""
    name, index = places(source)[file]
    return source.splits[name].sample(index)


FOLDER_FILES = tuple(f"{name}/{name}{index}.png" for name in ("cat", "dog") for index in range(10))
"""What :func:`write_folder` writes when nothing else is said."""
