"""``folder``: class folders of images, with whatever else is known about them beside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.duplicates import Duplicates, find_duplicates
from vitrarium.data.files import check_headers, digests, existing_folder
from vitrarium.data.preprocessing import Preprocessing, open_map, open_rgb
from vitrarium.data.sets.class_concepts import CLASS_CONCEPTS
from vitrarium.data.sets.folder_concepts import CONCEPTS, Known, read_known
from vitrarium.data.sets.folder_keypoints import Keypoints, read_keypoints
from vitrarium.data.sets.folder_layout import Layout, class_folders, find_maps, read_layout, stray_tables
from vitrarium.data.sets.folder_splits import assign_splits
from vitrarium.data.sets.stored import check_whole
from vitrarium.data.source import DATASETS, LAYOUTS, SPLITS, DataSource, Recognition, Split

KEYPOINTS = "keypoints.csv"

VERSION = 1
"""Part of the fingerprint: raised whenever the same files give other pixels or labels."""


@dataclass(kw_only=True)
class FolderSplit(Split):
    """One split; see :class:`~vitrarium.data.source.Split`.

    Attributes:
        labels: (N,) int64.
        truth: (N, K) float32 with NaN for unknown concepts, or None.
        root: the data folder.
        files: of the images, relative to ``root``.
        maps: of the human maps, relative to ``root``, None where there is none.
        places: (N,) int64 row of each image in ``keypoints``.
        keypoints: parts of all images of the folder, or None.
        preprocessing: from file to pixels.
        leaked: (N,) bool, images of val and test with an exact copy in another split.
        lines: (N,) line of ``concepts.csv`` that tells of each image, 0 where there is none.
    """

    labels: np.ndarray
    truth: np.ndarray | None
    root: Path
    files: list[str]
    maps: list[str | None]
    places: np.ndarray
    keypoints: Keypoints | None
    preprocessing: Preprocessing
    leaked: np.ndarray
    lines: np.ndarray

    def sample(self, index: int) -> Sample:
        """Decode and resize image ``index``, and its map and keypoints with it."""
        picture = open_rgb(self.root / self.files[index])
        given, size = self.maps[index], self.preprocessing.size
        points = None
        if self.keypoints is not None:
            points = self.keypoints.of(int(self.places[index]), *picture.size, size)
        return Sample(
            image=self.preprocessing.fit(picture),
            label=int(self.labels[index]),
            concepts=None if self.truth is None else self.truth[index].copy(),
            human_map=None if given is None else self.preprocessing.fit(open_map(self.root / given, picture.size)),
            keypoints=points,
            index=index,
        )

    def origin(self, index: int) -> str:
        """Path relative to the data folder."""
        return self.files[index]

    def where(self, index: int) -> str:
        """The line of ``concepts.csv`` if there is one, else the path."""
        return f"{self.root / CONCEPTS} line {self.lines[index]}" if self.lines[index] else self.files[index]

    def file(self, index: int) -> Path:
        """The image file."""
        return self.root / self.files[index]


@LAYOUTS.register("folder")
def recognise_folder(root: Path) -> Recognition | None:
    """Two or more folders, or train/ with them, that hold images; concepts.csv, keypoints.csv or maps/ beside."""
    train, classes = class_folders(root)
    if len(classes) < 2:
        return None
    named = ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")
    beside = [name for name in (CONCEPTS, CLASS_CONCEPTS, KEYPOINTS, "maps") if (root / name).exists()]
    because = f"{f'{train}/ with ' if train else ''}{len(classes)} folders of images ({named})"
    return Recognition({"name": "folder", "root": str(root)}, ", ".join([because, *beside]))


@DATASETS.register("folder")
def folder(
    root: str,
    size: int = 64,
    split: str = "auto",
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    split_seed: int = 0,
    categorical: Sequence[str] = (),
    ignore: Sequence[str] = (),
    credit: str | None = None,
) -> DataSource:
    """A folder with a folder of images for each class: your own data.

    Beside the class folders may lie ``concepts.csv`` (a column ``image``, optionally ``split``, and a column for each
    concept), or ``class_concepts.csv`` (a column ``class`` and one for each concept) where all images of a class have
    the same; ``maps/`` (grey pictures, bright = look here, called like their images) and ``keypoints.csv`` (image,
    part, x, y, visible, in pixels of the upright image).

    Args:
        root: the folder, with ``CLASS/image.jpg`` or ``{train,val,test}/CLASS/image.jpg``.
        size: height and width the images are brought to: the shorter side is resized, the centre square is kept.
        split: where the splits come from: "folders", "column" (``split`` in ``concepts.csv``), "random", or "auto" for
            the first of these that is there. What is not given is drawn from train, class by class.
        val_fraction: share that is drawn for validation.
        test_fraction: share that is drawn for testing.
        split_seed: of the draw, at least 0.
        categorical: columns of concepts whose numbers are names of values (3, 4 or 5 petals).
        ignore: columns that are no concepts, such as remarks.
        credit: line of credit; give it if pictures of the set may appear in reports.

    Returns:
        A data source that gives what lies there: concepts, human maps, keypoints.

    Raises:
        UserError: whatever is missing, damaged or contradictory, with file, line and cure.
    """
    check_whole("folder", size=(size, 1), split_seed=(split_seed, 0))
    place = existing_folder(root, "the data folder", "set data.root to a folder that holds a folder for each class")
    _refuse_other_layout(place)
    layout = read_layout(place)
    known = read_known(place, layout, _listed(categorical), _listed(ignore))
    keypoints = read_keypoints(place / KEYPOINTS, layout)
    strays = stray_tables(place, (CONCEPTS, CLASS_CONCEPTS, KEYPOINTS))
    maps = find_maps(place, layout.files)
    assigned, note = assign_splits(layout, known.splits, split, (val_fraction, test_fraction), split_seed)
    check_headers([place / path for path in (*layout.files, *filter(None, maps))])
    hashes = digests([place / file for file in layout.files])
    splits, duplicates = _splits(place, layout, known, keypoints, maps, assigned, hashes, size)
    notes = [note, *layout.notes, *known.notes, *([duplicates.note] if duplicates.note else [])]
    if strays:
        notes.append(f"tables that nobody reads: {', '.join(strays)}")
    gives = {"concepts": known.concepts, "human_map": any(maps), "keypoints": keypoints}
    return DataSource(
        name="folder",
        splits=dict(splits),
        class_names=layout.class_names,
        concepts=known.concepts,
        gives=frozenset(name for name, given in gives.items() if given),
        size=size,
        fingerprint=_fingerprint(place, (layout.class_names, known.concepts), splits, hashes, maps, keypoints, size),
        part_names=keypoints.parts if keypoints else (),
        notes=notes,
        duplicates=duplicates,
        pictures=credit,
    )


def _listed(columns: Sequence[str]) -> Sequence[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _refuse_other_layout(root: Path) -> None:
    """A folder in the layout of another data set would lose the tables that only that one reads."""
    for name in LAYOUTS.list():
        seen = None if name == "folder" else LAYOUTS.get(name)(root)
        if seen is not None:
            raise UserError(
                f"'{root}' is laid out like the data set '{name}': {seen.because}",
                f"set data={name} data.root={seen.spec.get('root', root)}, or move the class folders to another place",
            )


def _splits(
    root: Path,
    layout: Layout,
    known: Known,
    keypoints: Keypoints | None,
    maps: list[str | None],
    assigned: np.ndarray,
    hashes: list[str],
    size: int,
) -> tuple[dict[str, FolderSplit], Duplicates]:
    """The three splits, and the exact copies among their images."""
    rows = {name: np.flatnonzero(assigned == name) for name in SPLITS}
    duplicates = find_duplicates(
        {name: [hashes[i] for i in rows[name]] for name in SPLITS},
        {name: layout.labels[rows[name]] for name in SPLITS},
    )
    splits = {
        name: FolderSplit(
            labels=layout.labels[rows[name]],
            truth=None if known.truth is None else known.truth[rows[name]],
            root=root,
            files=[layout.files[i] for i in rows[name]],
            maps=[maps[i] for i in rows[name]],
            places=rows[name],
            keypoints=keypoints,
            preprocessing=Preprocessing(size),
            leaked=duplicates.leaked[name],
            lines=known.lines[rows[name]],
        )
        for name in SPLITS
    }
    return splits, duplicates


def _fingerprint(
    root: Path,
    names: tuple[object, ...],
    splits: dict[str, FolderSplit],
    hashes: list[str],
    maps: list[str | None],
    keypoints: Keypoints | None,
    size: int,
) -> str:
    """Hash of all names and of all that decides pixels, labels, concepts, maps and keypoints; not of the place."""
    drawn = digests([root / path for path in maps if path])
    text = repr((VERSION, size, names, hashes, [path is not None for path in maps], drawn))
    total = hashlib.sha256(text.encode())
    for split in splits.values():
        total.update(split.places.tobytes() + split.labels.tobytes())
        if split.truth is not None:
            total.update(split.truth.tobytes())
    if keypoints is not None:
        total.update(repr(keypoints.parts).encode() + keypoints.points.tobytes())
    return total.hexdigest()[:16]
