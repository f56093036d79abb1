"""``wbcatt``: white blood cells with eleven attributes that people wrote down for every image."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.duplicates import Duplicates, find_duplicates, redundant
from vitrarium.data.files import digests, inside
from vitrarium.data.preprocessing import Preprocessing, open_rgb
from vitrarium.data.sets.stored import check_whole, data_root
from vitrarium.data.sets.wbcatt_tables import Annotations, read_annotations, read_second, second_truth
from vitrarium.data.source import DATASETS, LAYOUTS, SPLITS, DataSource, Recognition, Split

VERSION = 1
"""Part of the fingerprint: raised whenever the same files give other pixels or labels."""

PICTURES = "images: Acevedo et al., Data in Brief 30 (2020) 105474, CC BY 4.0"

_FRACTION_SEED = 20231210
_ORIGINAL_SIDE = 360
_WHERE_FROM = (
    "set data.root, or VITRARIUM_DATA to the folder that holds 'wbcatt'; the attributes come from "
    "github.com/apple2373/wbcatt (folder submission), the images from Mendeley Data snkd93bnjr"
)


@dataclass(kw_only=True)
class WbcattSplit(Split):
    """One split; see :class:`~vitrarium.data.source.Split`.

    Attributes:
        labels: (N,) int64.
        truth: (N, 31) float32, one-hot per attribute.
        root: the data folder.
        paths: of the images, relative to ``root``.
        preprocessing: from file to pixels.
        leaked: (N,) bool, images of val and test with an exact copy in another split.
        second_truth: (N, 31) float32, what the second annotators wrote; NaN where they were not asked.
        second_labels: (N,) int64, their class; -1 where they were not asked.
        lines: table and line of each image.
    """

    labels: np.ndarray
    truth: np.ndarray
    root: Path
    paths: list[str]
    preprocessing: Preprocessing
    leaked: np.ndarray
    second_truth: np.ndarray
    second_labels: np.ndarray
    lines: list[str]

    def sample(self, index: int) -> Sample:
        """Decode and resize image ``index``."""
        image = self.preprocessing.fit(open_rgb(self.root / self.paths[index]))
        return Sample(image, int(self.labels[index]), self.truth[index].copy(), index=index)

    def origin(self, index: int) -> str:
        """Path relative to the data folder."""
        return self.paths[index]

    def where(self, index: int) -> str:
        """Table and line."""
        return self.lines[index]

    def file(self, index: int) -> Path:
        """The image file."""
        return self.root / self.paths[index]


def stratified_fraction(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Positions of a fixed part of each class, at least one example each, in their original order.

    The same labels give the same part in every process and version; a smaller fraction is a part of a larger one.
    """
    kept = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        order = np.random.Generator(np.random.PCG64([_FRACTION_SEED, int(c)])).random(len(members)).argsort()
        kept.append(members[order[: max(1, round(len(members) * fraction))]])
    return np.sort(np.concatenate(kept))


def _build(name: str, root: str | None, size: int, fraction: float, drop_duplicates: bool) -> DataSource:
    if not 0 < fraction <= 1:
        raise UserError(f"{name} with fraction={fraction}", "give a fraction of the training split above 0, up to 1")
    check_whole(name, size=(size, 1))
    folder = data_root("wbcatt", root, "wbcatt", _WHERE_FROM)
    annotations = read_annotations(folder)
    second = read_second(folder, annotations)
    hashes = _hashes(folder, annotations)
    rows = {split: np.arange(len(table.rows)) for split, table in annotations.tables.items()}
    if drop_duplicates:
        rows["train"] = rows["train"][~redundant(hashes)]
    if fraction < 1:
        labels = annotations.labels(annotations.tables["train"])[rows["train"]]
        rows["train"] = rows["train"][stratified_fraction(labels, fraction)]
    hashes = {split: [hashes[split][r] for r in rows[split]] for split in SPLITS}
    splits, duplicates = _splits(folder, annotations, rows, hashes, second, size)
    fingerprint = hashlib.sha256(
        repr((name, VERSION, size, annotations.class_names, annotations.concepts, hashes)).encode()
    )
    for one in splits.values():
        fingerprint.update(one.labels.tobytes() + one.truth.tobytes())
    return DataSource(
        name=name,
        splits=dict(splits),
        class_names=annotations.class_names,
        concepts=annotations.concepts,
        gives=frozenset({"concepts"}),
        size=size,
        fingerprint=fingerprint.hexdigest()[:16],
        notes=_notes(splits, duplicates, fraction, drop_duplicates),
        duplicates=duplicates,
        pictures=PICTURES,
    )


def _hashes(folder: Path, annotations: Annotations) -> dict[str, list[str]]:
    """The content hash of each image of each table."""
    named = [(row["path"], table.where(row)) for table in annotations.tables.values() for row in table.rows]
    found = iter(digests([inside(folder, *one) for one in named], [where for _, where in named]))
    return {split: list(itertools.islice(found, len(table.rows))) for split, table in annotations.tables.items()}


def _splits(
    root: Path,
    annotations: Annotations,
    rows: Mapping[str, np.ndarray],
    hashes: Mapping[str, Sequence[str]],
    second: Mapping[str, tuple[np.ndarray, int]],
    size: int,
) -> tuple[dict[str, WbcattSplit], Duplicates]:
    tables = annotations.tables
    labels = {split: annotations.labels(tables[split])[rows[split]] for split in SPLITS}
    duplicates = find_duplicates(hashes, labels)
    splits = {}
    for split in SPLITS:
        chosen = [tables[split].rows[r] for r in rows[split]]
        again = second_truth(second, [row["img_name"] for row in chosen], len(annotations.concepts))
        splits[split] = WbcattSplit(
            labels=labels[split],
            truth=annotations.truth(tables[split])[rows[split]],
            root=root,
            paths=[row["path"] for row in chosen],
            preprocessing=Preprocessing(size),
            leaked=duplicates.leaked[split],
            second_truth=again[0],
            second_labels=again[1],
            lines=[tables[split].where(row) for row in chosen],
        )
    return splits, duplicates


def _notes(splits: Mapping[str, WbcattSplit], duplicates: Duplicates, fraction: float, dropped: bool) -> list[str]:
    """What a reader of numbers must know."""
    notes = [duplicates.note] if duplicates.note else []
    if dropped:
        notes.append("training images with an exact copy elsewhere were left out")
    if fraction < 1:
        notes.append(f"a fixed {fraction:.0%} of the training split, of each class alike; val and test are whole")
    asked = ", ".join(f"{int((split.second_labels >= 0).sum())} {name}" for name, split in splits.items())
    notes.append(f"second annotators saw {asked} images")
    first = splits["train"]
    try:
        with Image.open(first.root / first.paths[0]) as picture:
            side = min(picture.size)
    except OSError:
        return notes
    if side < _ORIGINAL_SIDE:
        notes.append(f"images are a copy of {side} pixels on the shorter side, the originals have {_ORIGINAL_SIDE}")
    return notes


@LAYOUTS.register("wbcatt")
def recognise_wbcatt(root: Path) -> Recognition | None:
    """pbc_attr_v1_train.csv, pbc_attr_v1_val.csv, pbc_attr_v1_test.csv, pbc_attr_reannotations.csv and their images."""
    tables = [table for split in SPLITS if (root / (table := f"pbc_attr_v1_{split}.csv")).is_file()]
    return Recognition({"name": "wbcatt", "root": str(root)}, ", ".join(tables)) if tables else None


@DATASETS.register("wbcatt")
def wbcatt(root: str | None = None, size: int = 64, fraction: float = 1.0, drop_duplicates: bool = False) -> DataSource:
    """10,298 microscope images of white blood cells, 5 classes, 11 attributes with 31 values, official split.

    Attributes: Tsutsui, Pang, Wen, "WBCAtt: a white blood cell dataset annotated with detailed morphological
    attributes", NeurIPS 2023 Datasets and Benchmarks (MIT). Images: Acevedo et al., "A dataset of microscopic
    peripheral blood cell images", Data in Brief 30 (2020) 105474 (CC BY 4.0).

    Args:
        root: folder with the ``pbc_attr_*.csv`` and the images; by default ``$VITRARIUM_DATA/wbcatt``.
        size: height and width in pixels.
        fraction: share of the training split, a fixed choice of each class; val and test stay whole.
        drop_duplicates: leave out training images whose exact copy is in train, val or test already.

    Returns:
        A data source that gives concepts. Its splits tell ``leaked`` images and what the second annotators wrote.

    Raises:
        UserError: a missing folder, table or image, a damaged table, an option outside its range.
    """
    return _build("wbcatt", root, size, fraction, drop_duplicates)


@DATASETS.register("wbcatt_small")
def wbcatt_small(root: str | None = None, size: int = 64, drop_duplicates: bool = False) -> DataSource:
    """:func:`wbcatt` with a fixed tenth of the training split; val and test are whole.

    Args:
        root: as for :func:`wbcatt`.
        size: height and width in pixels.
        drop_duplicates: as for :func:`wbcatt`; the tenth is taken from what remains.

    Raises:
        UserError: as for :func:`wbcatt`.
    """
    return _build("wbcatt_small", root, size, 0.1, drop_duplicates)
