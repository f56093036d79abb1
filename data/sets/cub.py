"""``cub``: CUB-200-2011, and any data set in its layout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.duplicates import Duplicates, find_duplicates
from vitrarium.data.files import check_headers, digests, inside
from vitrarium.data.preprocessing import Preprocessing, open_map, open_rgb
from vitrarium.data.sets.cub_concepts import Known, Wanted, read_concepts
from vitrarium.data.sets.cub_layout import IMAGES, LABELS, Listing, assign_splits, find_place, read_listing
from vitrarium.data.sets.cub_parts import (
    Boxes,
    Parts,
    Size,
    Window,
    find_segmentations,
    read_boxes,
    read_parts,
    window,
)
from vitrarium.data.sets.cub_tables import refuse_absent
from vitrarium.data.sets.stored import check_whole
from vitrarium.data.source import DATASETS, LAYOUTS, SPLITS, DataSource, Recognition, Split

VERSION = 1
"""Part of the fingerprint: raised whenever the same files give other pixels or labels."""


@dataclass(frozen=True)
class _Found:
    """All that lies in the folder, image by image."""

    listing: Listing
    known: Known
    maps: Path
    map_files: list[str | None]
    parts: Parts | None
    boxes: Boxes | None
    margin: float
    preprocessing: Preprocessing


@dataclass(kw_only=True)
class CubSplit(Split):
    """One split; see :class:`~vitrarium.data.source.Split`.

    Attributes:
        labels: (N,) int64.
        truth: (N, K) float32 with NaN for unknown concepts, or None.
        rows: (N,) int64 place of each image among all of the set.
        found: what lies in the folder.
        leaked: (N,) bool, images of val and test with an exact copy in another split.
    """

    labels: np.ndarray
    truth: np.ndarray | None
    rows: np.ndarray
    found: _Found
    leaked: np.ndarray

    def sample(self, index: int) -> Sample:
        """Decode, crop and resize image ``index``, and its segmentation and parts with it."""
        try:
            return self._sample(index)
        except UserError as error:
            raise UserError(f"{self.where(index)}: {error.problem}", error.cure) from error

    def origin(self, index: int) -> str:
        """Path relative to the folder of the tables."""
        return f"images/{self.found.listing.files[self.rows[index]]}"

    def where(self, index: int) -> str:
        """The line of ``images.txt``."""
        return self.found.listing.images.where(int(self.rows[index]))

    def file(self, index: int) -> Path:
        """The image file."""
        return self.found.listing.place / self.origin(index)

    def _sample(self, index: int) -> Sample:
        found, row = self.found, int(self.rows[index])
        picture = open_rgb(self.file(index))
        shown, given = self._window(row, picture.size), found.map_files[row]
        drawn = None
        if given is not None:
            drawn = found.preprocessing.fit(open_map(found.maps / given, picture.size).crop(shown))
        weight = found.known.weight
        return Sample(
            image=found.preprocessing.fit(picture.crop(shown)),
            label=int(self.labels[index]),
            concepts=None if self.truth is None else self.truth[index].copy(),
            concept_weight=None if weight is None else weight[row].copy(),
            human_map=drawn,
            keypoints=None if found.parts is None else found.parts.of(row, shown, found.preprocessing.size),
            index=index,
        )

    def _window(self, row: int, size: Size) -> Window:
        if self.found.boxes is None:
            return 0, 0, *size
        return window(self.found.boxes.boxes[row], size, self.found.margin)


@LAYOUTS.register("cub")
def recognise(folder: Path) -> Recognition | None:
    """CUB-200-2011: images.txt, classes.txt and image_class_labels.txt, with pictures in images/.

    Args:
        folder: the folder with the tables, or the one with ``CUB_200_2011`` in it.
    """
    place = find_place(folder)
    if place is None:
        return None
    nested = f"{place.name}/" if place != folder else ""
    there = [name for name in (IMAGES, "classes.txt", LABELS) if (place / name).is_file()]
    return Recognition({"name": "cub", "root": str(folder)}, " and ".join(nested + name for name in there))


@DATASETS.register("cub")
def cub(
    root: str,
    size: int = 64,
    truth: str | None = None,
    attributes: str = "all",
    min_classes: int = 10,
    voters: str = "train",
    threshold: float = 0.5,
    uncertain: str | None = None,
    crop: bool = False,
    margin: float = 0.0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    credit: str | None = None,
) -> DataSource:
    """CUB-200-2011 and any data set in its layout: attributes, parts, boxes and segmentations of images.

    Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 dataset", CNS-TR-2011-001, 2011; its
    images may be used for research and belong to their photographers.

    Needed are ``images.txt``, ``classes.txt``, ``image_class_labels.txt`` and ``images/``; everything else is used
    where it is there. Ids are any integers, numbers of classes, attributes and parts are free.

    Args:
        root: the folder with the tables, or the one with ``CUB_200_2011`` in it.
        size: height and width the images are brought to: the shorter side is resized, the centre square is kept.
        truth: "instance", the concepts of each image as annotated, or "class", those that its class mostly has; by
            default "instance" where there are labels of images.
        attributes: "all", or "koh112" for those that are present in enough classes
            (:func:`vitrarium.data.sets.cub_attributes.koh112`: 112 of CUB's 312).
        min_classes: how many classes are enough for "koh112".
        voters: whose annotations say what a class has: "train" (as in the released processing, which drew its own
            validation images before), or "train_val" for all of the official training split.
        threshold: share of the votes, or value in the matrix of classes, from which an attribute is present.
        uncertain: for truth=instance "weight" (how sure the annotator was is the weight; what is not visible is
            unknown), "soft" (it becomes a degree) or "ignore"; for truth=class "ignore" or "soft" (the share itself).
        crop: show the square around the bounding box instead of the whole image.
        margin: of the crop, as a share of the longer side of the box, on each side.
        val_fraction: share of the training images of each class that is drawn for validation.
        test_fraction: share that is drawn for testing where there is no ``train_test_split.txt``.
        split_seed: of the draw, at least 0.
        credit: line of credit; give it if pictures of the set may appear in reports.

    Returns:
        A data source that gives what lies there: concepts, human maps (segmentations), keypoints (parts).

    Raises:
        UserError: whatever is missing, damaged or contradictory, with file, line and cure.
    """
    _check_options(size, split_seed, crop, margin)
    listing = read_listing(root)
    assigned, notes = assign_splits(listing, (val_fraction, test_fraction), split_seed)
    known = read_concepts(listing, assigned, Wanted(truth, attributes, min_classes, voters, threshold, uncertain))
    where = [listing.images.where(index) for index in range(len(listing.files))]
    paths = [inside(listing.place, f"images/{file}", w) for file, w in zip(listing.files, where, strict=True)]
    hashes = digests(paths, where)
    sizes = check_headers(paths, where)
    boxes, about_boxes = read_boxes(listing.place / "bounding_boxes.txt", listing.images, sizes)
    parts, about_parts = read_parts(listing.place / "parts", listing.images, sizes)
    maps, map_files, about_maps = find_segmentations(listing.place, listing.files)
    check_headers([maps / name for name in map_files if name is not None])
    if crop:
        _require_boxes(boxes, listing)
        about_boxes.append("images are cropped to their boxes: crop images alike before they are predicted")
    found = _Found(
        listing, known, maps, map_files, parts, boxes if crop else None, margin, Preprocessing(size)
    )  # fmt: skip
    splits, duplicates = _splits(found, assigned, hashes)
    gives = {"concepts": known.concepts, "human_map": any(map_files), "keypoints": parts}
    return DataSource(
        name="cub",
        splits=dict(splits),
        class_names=listing.class_names,
        concepts=known.concepts,
        gives=frozenset(name for name, given in gives.items() if given),
        size=size,
        fingerprint=_fingerprint(found, splits, hashes),
        part_names=parts.names if parts else (),
        notes=[*notes, *known.notes, *about_boxes, *about_parts, *about_maps, *filter(None, [duplicates.note])],
        duplicates=duplicates,
        pictures=credit,
    )


def _check_options(size: int, split_seed: int, crop: bool, margin: float) -> None:
    check_whole("cub", size=(size, 1), split_seed=(split_seed, 0))
    if not isinstance(crop, bool):
        raise UserError(f"cub with crop={crop!r}", "give true or false")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < 10:
        raise UserError(f"cub with margin={margin!r}", "give a share of the box, at least 0 and less than 10")
    if margin and not crop:
        raise UserError("margin changes nothing here", "it needs crop=true; leave it out otherwise")


def _require_boxes(boxes: Boxes | None, listing: Listing) -> None:
    if boxes is None:
        raise UserError(
            f"crop=true needs '{listing.place / 'bounding_boxes.txt'}', which is not there", "set crop=false"
        )
    refuse_absent(boxes.path, listing.images, boxes.lines, "; or set crop=false")


def _splits(found: _Found, assigned: np.ndarray, hashes: list[str]) -> tuple[dict[str, CubSplit], Duplicates]:
    """The three splits, and the exact copies among their images."""
    labels, truth = found.listing.labels, found.known.truth
    rows = {name: np.flatnonzero(assigned == name) for name in SPLITS}
    duplicates = find_duplicates(
        {name: [hashes[i] for i in rows[name]] for name in SPLITS}, {name: labels[rows[name]] for name in SPLITS}
    )
    splits = {
        name: CubSplit(
            labels=labels[rows[name]],
            truth=None if truth is None else truth[rows[name]],
            rows=rows[name],
            found=found,
            leaked=duplicates.leaked[name],
        )
        for name in SPLITS
    }
    return splits, duplicates


def _fingerprint(found: _Found, splits: dict[str, CubSplit], hashes: list[str]) -> str:
    """Hash of all names and of all that decides pixels, labels, concepts, maps and keypoints; not of the place."""
    known, parts, boxes = found.known, found.parts, found.boxes
    drawn = digests([found.maps / name for name in found.map_files if name is not None])
    names = (found.listing.class_names, known.concepts, None if parts is None else parts.names)
    crop = None if boxes is None else found.margin
    mapped = [name is not None for name in found.map_files]
    text = repr((VERSION, found.preprocessing.size, crop, names, hashes, mapped, drawn))
    total = hashlib.sha256(text.encode())
    for split in splits.values():
        total.update(split.rows.tobytes() + split.labels.tobytes())
    for array in (
        known.truth,
        known.weight,
        None if parts is None else parts.points,
        None if boxes is None else boxes.boxes,
    ):
        total.update(b"none" if array is None else array.tobytes())
    return total.hexdigest()[:16]
