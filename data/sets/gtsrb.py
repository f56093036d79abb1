"""``gtsrb``: German traffic signs with the box of each sign and, if a table is there, concepts of each class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.class_concepts import CLASS_CONCEPTS, grouped_by_prefix, read_class_concepts
from vitrarium.data.sets.gtsrb_files import PACKED, Signs, find_place, read_packed_signs, read_unpacked_signs
from vitrarium.data.sets.stored import check_whole, data_root, split_parts
from vitrarium.data.source import DATASETS, LAYOUTS, DataSource, Recognition

VERSION = 1
"""Part of the fingerprint: raised whenever the same files give other pixels or labels."""

BOXES = ("map", "crop", "ignore")

# By the official number of the class.
CLASS_NAMES = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80",
    "end of speed limit 80", "speed limit 100", "speed limit 120", "no overtaking", "no overtaking by trucks",
    "priority at next crossing", "priority road", "give way", "stop", "no vehicles", "no trucks", "no entry",
    "general danger", "bend left", "bend right", "double bend", "uneven road", "slippery road", "road narrows right",
    "road works", "traffic signals", "pedestrians", "children", "bicycles", "snow or ice", "wild animals",
    "end of all limits", "turn right ahead", "turn left ahead", "straight ahead only", "straight or right",
    "straight or left", "keep right", "keep left", "roundabout", "end of no overtaking",
    "end of no overtaking by trucks",
)  # fmt: skip

_WHERE_FROM = (
    "set data.root, or VITRARIUM_DATA to the folder that holds 'gtsrb32'; the images come from "
    "benchmark.ini.rub.de (GTSRB), as torchvision unpacks them: gtsrb/GTSRB/Training/00000/..."
)


@LAYOUTS.register("gtsrb")
def recognise_gtsrb(root: Path) -> Recognition | None:
    """gtsrb/GTSRB/Training/00000/GT-00000.csv and gtsrb/GT-final_test.csv, or gtsrb32_train_jpeg.npz with _test_."""
    place = find_place(root)
    if place is not None:
        because = f"{place.train.relative_to(root).as_posix()}/"
    elif (root / PACKED["train"]).is_file():
        because = PACKED["train"]
    else:
        return None
    beside = f" and {CLASS_CONCEPTS}" if (root / CLASS_CONCEPTS).is_file() else ""
    return Recognition({"name": "gtsrb", "root": str(root)}, because + beside)


@DATASETS.register("gtsrb")
def gtsrb(
    root: str | None = None,
    size: int = 32,
    boxes: str = "map",
    concepts: str | None = None,
    val_fraction: float = 0.15,
    split_seed: int = 0,
) -> DataSource:
    """Traffic signs of 43 classes, several frames of each of some 1,300 signs; validation is drawn by sign.

    Stallkamp, Schlipsing, Salmen, Igel, "Man vs. computer: benchmarking machine learning algorithms for traffic sign
    recognition", Neural Networks 32 (2012). Published for research.

    Concepts belong to classes: one row of 0 and 1 for each. Columns that share what stands before the first underscore
    and of which exactly one is true for every class become a categorical group (``shape_circle``, ``shape_octagon`` ...
    -> ``shape``); all others stay yes/no concepts.

    Args:
        root: folder with ``gtsrb/`` (as torchvision unpacks it), or with ``gtsrb32_train_jpeg.npz`` and
            ``gtsrb32_test_jpeg.npz``; by default ``$VITRARIUM_DATA/gtsrb32``. Nothing is downloaded.
        size: height and width in pixels.
        boxes: what happens to the box that people drew around the sign: "map" = human map, white inside; "crop" = only
            the inside is seen; "ignore".
        concepts: table with the columns ``class_id``, optionally ``class_name``, and one for each concept; by default
            ``class_concepts.csv`` in ``root`` if it is there, else there are no concepts.
        val_fraction: share of the signs (tracks) of each class that is drawn for validation.
        split_seed: of the draw, at least 0.

    Raises:
        UserError: a missing or damaged file, with line and cure; an option outside its range.
    """
    check_whole("gtsrb", size=(size, 1), split_seed=(split_seed, 0))
    if boxes not in BOXES:
        raise UserError(f"gtsrb with boxes={boxes!r}", closest(str(boxes), BOXES))
    folder = data_root("gtsrb", root, "gtsrb32", _WHERE_FROM)
    place = find_place(folder)
    if place is None and not (folder / PACKED["train"]).is_file():
        raise UserError(f"'{folder}' holds neither gtsrb/GTSRB/Training/ nor {PACKED['train']}", _WHERE_FROM)
    signs = read_packed_signs(folder) if place is None else read_unpacked_signs(folder, place, boxes != "ignore")
    table = _table(folder, concepts)
    names, known, truth, told = _concepts(table, signs.ids)
    splits, duplicates, content = split_parts(
        signs.train, signs.test, truth, val_fraction, split_seed, boxes, Preprocessing(size)
    )
    gives = {"concepts": known is not None, "human_map": boxes == "map"}
    ours = concepts is None and signs.packed
    return DataSource(
        name="gtsrb",
        splits=dict(splits),
        class_names=names,
        concepts=known,
        gives=frozenset(name for name, given in gives.items() if given),
        size=size,
        fingerprint=hashlib.sha256(repr(("gtsrb", VERSION, names, known, content)).encode()).hexdigest()[:16],
        notes=[
            f"{val_fraction:.0%} of the tracks of each class for val drawn from train with split_seed={split_seed}: "
            "frames of a track are near copies",
            *_notes(signs, boxes, known is not None, ours),
            *told,
            *([duplicates.note] if duplicates.note else []),
        ],
        duplicates=duplicates,
    )


def _table(folder: Path, given: str | None) -> Path | None:
    """Where the concepts are, or None."""
    if given is None:
        found = folder / CLASS_CONCEPTS
        return found if found.is_file() else None
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"the table of concepts '{path}' does not exist or is no file", "check data.concepts")
    return path


def _concepts(
    table: Path | None, ids: np.ndarray
) -> tuple[tuple[str, ...], ConceptSet | None, np.ndarray | None, tuple[str, ...]]:
    """Names of the classes, concepts and truth (C, K) of the classes with these numbers, and notes."""
    names = tuple(CLASS_NAMES[i] if i < len(CLASS_NAMES) else f"class {i}" for i in ids)
    if table is None:
        return names, None, None, ()
    said = read_class_concepts(table, [str(i) for i in ids], key="class_id")
    names = said.titles or names
    if len(set(names)) < len(names):
        raise UserError(f"{table}: two classes have the same class_name", "give each a name of its own")
    if said.concepts is None or said.truth is None:
        return names, None, None, said.notes
    grouped, truth = grouped_by_prefix(said.concepts, said.truth)
    return names, grouped, truth, said.notes


def _notes(signs: Signs, boxes: str, concepts: bool, ours: bool) -> list[str]:
    """What a reader of numbers must know."""
    notes = []
    if signs.packed:
        notes.append(
            f"images are a lossy JPEG copy at 32 x 32 pixels of {len(signs.train.labels):,} training and "
            f"{len(signs.test.labels):,} test images, their shape not kept: numbers do not compare with those of the "
            "original set"
        )
    if boxes == "crop":
        notes.append("images are cropped to the sign's box: a model trained on them expects cropped signs")
    if concepts:
        written = " and were written by this project from the design of the signs" if ours else ""
        notes.append(f"concepts belong to classes{written}: no image was annotated on its own")
    return notes
