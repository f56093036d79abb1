"""Where the CUB layout keeps its files, and which images, classes and splits they list."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.files import existing_folder
from vitrarium.data.sets.cub_tables import Names, read_names, read_values, refuse_absent
from vitrarium.data.source import SPLITS
from vitrarium.data.splitting import draw_splits

NESTED = "CUB_200_2011"
"""The folder in the official archive; ``attributes.txt`` and segmentations lie beside it."""

IMAGES, CLASSES, LABELS, SPLIT = "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"


@dataclass(frozen=True)
class Listing:
    """What the tables list.

    Attributes:
        place: the folder that holds the tables.
        images: the N images, as they are written.
        files: their paths relative to ``place/images``, with ``/``.
        labels: (N,) int64.
        classes: the C classes, as they are written.
        class_names: the same without the numbers in front ("001.").
        training: (N,) bool, what ``train_test_split.txt`` says, or None without it.
    """

    place: Path
    images: Names
    files: tuple[str, ...]
    labels: np.ndarray
    classes: Names
    class_names: tuple[str, ...]
    training: np.ndarray | None


def find_place(folder: Path) -> Path | None:
    """The folder with the tables: ``folder``, or ``CUB_200_2011`` in it; None if neither has two of the three.

    With one table missing the layout is still recognised, so that its absence can be told.
    """
    for place in (folder, folder / NESTED):
        if sum((place / name).is_file() for name in (IMAGES, CLASSES, LABELS)) >= 2:
            return place
    return None


def first_of(place: Path, *names: str) -> Path | None:
    """The first of these files or folders that exists, in ``place`` or beside it as in the official archive."""
    candidates = [folder / name for folder in (place, place.parent) for name in names]
    return next((path for path in candidates if path.exists()), None)


def read_listing(root: str | Path) -> Listing:
    """Read the tables of images, classes, labels and splits.

    Raises:
        UserError: a missing table, an image twice (by id or path), an unknown or missing class, a label that
            contradicts the image's folder, a split that is not 0 or 1.
    """
    folder = existing_folder(root, "the data folder", f"set data.root to the folder that holds {IMAGES}")
    place = find_place(folder)
    if place is None:
        raise UserError(
            f"'{folder}' holds no CUB layout: {IMAGES}, {CLASSES} and {LABELS} are neither there nor in {NESTED}/",
            "set data.root to the folder that holds them",
        )
    images = read_names(place / IMAGES, "image", "12 class_folder/picture.jpg", repeated=True)
    classes = read_names(place / CLASSES, "class", "3 003.Sooty_Albatross")
    if len(classes) < 2:
        raise UserError(
            f"{classes.path} names only one class, '{classes.values[0]}'", "a classifier needs at least two"
        )
    labels = _labels(place / LABELS, images, classes)
    files = tuple(_as_on_disk(place / "images", value) for value in images.values)
    _refuse_twice(images, files, labels, classes)
    _refuse_contradiction(images, files, labels, classes)
    return Listing(place, images, files, labels, classes, _class_names(classes), _training(place / SPLIT, images))


def _as_on_disk(folder: Path, written: str) -> str:
    """A path with ``/``; letters with accents as the file system composes them, which may differ from the table."""
    path = posixpath.normpath(written.replace("\\", "/"))
    if path.isascii() or (folder / path).exists():
        return path
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((form for form in forms if (folder / form).exists()), path)


def _labels(path: Path, images: Names, classes: Names) -> np.ndarray:
    fields, lines = read_values(path, images, "12 3")
    refuse_absent(path, images, lines)
    return np.array(
        [classes.find(field, f"{path} line {line}") for (field,), line in zip(fields, lines, strict=True)], np.int64
    )


def _refuse_twice(images: Names, files: tuple[str, ...], labels: np.ndarray, classes: Names) -> None:
    seen: dict[str, int] = {}
    for index, file in enumerate(files):
        first = seen.setdefault(file, index)
        if first != index:
            one, other = (classes.values[labels[i]] for i in (first, index))
            differ = f", as '{one}' there and as '{other}' here" if one != other else ""
            raise UserError(
                f"{images.where(index)}: the image '{file}' is listed already, in line {images.lines[first]}{differ}",
                f"keep one of the lines, and one in {LABELS}",
            )


def _refuse_contradiction(images: Names, files: tuple[str, ...], labels: np.ndarray, classes: Names) -> None:
    """Images lie in folders called like classes or otherwise; if like a class, it must be their own."""
    known = set(classes.values)
    for index, file in enumerate(files):
        top, own = file.split("/")[0], classes.values[labels[index]]
        if top in known and top != own:
            raise UserError(
                f"{images.where(index)}: '{file}' lies in the folder of the class '{top}', but {LABELS} says '{own}'",
                "one of them is wrong; are the ids those of this set?",
            )


def _class_names(classes: Names) -> tuple[str, ...]:
    """Names without a number and a dot in front, where all have them and still differ."""
    found = [re.fullmatch(r"\d+\.(.+)", name) for name in classes.values]
    short = tuple(match[1] for match in found if match)
    return short if len(set(short)) == len(classes) else classes.values


def _training(path: Path, images: Names) -> np.ndarray | None:
    if not path.exists():
        return None
    fields, lines = read_values(path, images, "12 1")
    for (field,), line in ((f, n) for f, n in zip(fields, lines, strict=True) if n):
        if field not in ("0", "1"):
            raise UserError(f"{path} line {line}: the split is '{field}'", "write 1 for training, 0 for testing")
    refuse_absent(path, images, lines, "; without the file the splits are drawn")
    return np.array([field == "1" for (field,) in fields])


def assign_splits(listing: Listing, fractions: tuple[float, float], seed: int) -> tuple[np.ndarray, list[str]]:
    """The split of every image: the official test split stays, validation is drawn from training.

    Args:
        listing: what the tables say.
        fractions: share of val, and of test where there is no ``train_test_split.txt``.
        seed: of the draw.

    Returns:
        (N,) array of split names, and notes on how they came about.

    Raises:
        UserError: an empty split, a class without a training image, a share outside (0, 1).
    """
    splits = np.full(len(listing.labels), "train", dtype="<U5")
    shares = {"val": fractions[0]}
    if listing.training is None:
        shares["test"] = fractions[1]
    else:
        splits[~listing.training] = "test"
    _refuse_untrained(listing, splits)
    draw_splits(splits, listing.labels, shares, seed)
    drawn = " and ".join(f"{share:.0%} of each class for {name}" for name, share in shares.items())
    official = f"test as given by {SPLIT}" if listing.training is not None else f"no {SPLIT}"
    notes = [f"{official}; {drawn} drawn from the training images with split_seed={seed}"]
    for name in SPLITS:
        if not (splits == name).any():
            cure = f"remove {SPLIT} to have it drawn" if listing.training is not None else "give more images"
            raise UserError(f"the split {name} got none of the {len(splits)} images", cure)
    tested = np.bincount(listing.labels[splits == "test"], minlength=len(listing.classes))
    untested = [listing.class_names[c] for c in np.flatnonzero(tested == 0)]
    if untested:
        notes.append(f"{len(untested)} classes have no test image: {_shown(untested)}")
    return splits, notes


def _refuse_untrained(listing: Listing, splits: np.ndarray) -> None:
    trained = np.bincount(listing.labels[splits == "train"], minlength=len(listing.classes))
    for c in np.flatnonzero(trained == 0):
        some = bool((listing.labels == c).any())
        raise UserError(
            f"{listing.classes.where(int(c))}: the class '{listing.classes.values[c]}' has no "
            f"{'training ' if some else ''}image",
            f"put one of its images into training in {SPLIT}" if some else "remove the class, or list its images",
        )


def _shown(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
