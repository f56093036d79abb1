"""Which images a folder holds, of which classes, in which split."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.files import inside
from vitrarium.data.source import SPLITS

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_JUNK = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})

_EXPECTED = "expected {root}/CLASS/image.jpg or {root}/{{train,val,test}}/CLASS/image.jpg"


@dataclass(frozen=True)
class Layout:
    """What lies in a folder.

    Attributes:
        files: paths of the N images relative to the root, with ``/``, sorted.
        labels: (N,) int64.
        class_names: names of the class folders, sorted.
        splits: split of each image as the folders say, or None where they say nothing.
    """

    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: list[str] | None


def read_layout(root: Path) -> Layout:
    """Find classes and images.

    Raises:
        UserError: no or only one class, an empty class folder, a class of val or test that train does not have, a file
            that is no image, a link out of the folder.
    """
    tops = [folder for folder in _folders(root, root) if folder.name != "maps"]
    given = {folder: SPLIT_WORDS[folder.name.lower()] for folder in tops if folder.name.lower() in SPLIT_WORDS}
    if "train" not in given.values():
        return _layout(root, {None: tops})
    others = [folder.name for folder in tops if folder not in given]
    if others:
        raise UserError(
            f"'{root}' holds 'train' and '{others[0]}' side by side: a split and a class",
            _EXPECTED.format(root=root),
        )
    if len(set(given.values())) < len(given):
        raise UserError(f"'{root}' holds two folders for one split: {', '.join(f.name for f in given)}", "keep one")
    for folder in given:
        _refuse_loose_images(root, folder)
    return _layout(root, {split: _folders(root, folder) for folder, split in given.items()})


def _layout(root: Path, classes_of: dict[str | None, list[Path]]) -> Layout:
    known = [folder.name for folder in classes_of.get("train", classes_of.get(None, []))]
    if len(known) < 2:
        found = f"only one class folder, '{known[0]}'," if known else "no class folders"
        raise UserError(f"found {found} in '{root}'", _EXPECTED.format(root=root))
    found_images: list[tuple[str, int, str]] = []
    for split, folders in classes_of.items():
        for folder in folders:
            _refuse_class_of_classes(root, folder, known)
            if folder.name not in known:
                raise UserError(
                    f"'{folder}' is none of the classes of train: {', '.join(known[:8])}", closest(folder.name, known)
                )
            images = list(_images(root, folder))
            if not images:
                raise UserError(f"the class folder '{folder}' holds no image", "put images into it, or remove it")
            found_images += [(image, known.index(folder.name), split or "") for image in images]
    found_images.sort(key=lambda found: PurePosixPath(found[0]).parts)
    return Layout(
        files=[file for file, _, _ in found_images],
        labels=np.array([label for _, label, _ in found_images], np.int64),
        class_names=tuple(known),
        splits=None if None in classes_of else [split for _, _, split in found_images],
    )


def _refuse_class_of_classes(root: Path, folder: Path, known: Sequence[str]) -> None:
    """A folder that holds the classes again is no class but something beside the images, such as misnamed maps."""
    again = sorted({inner.name for inner in _folders(root, folder)} & set(known))
    if again:
        raise UserError(
            f"'{folder}' holds a folder '{again[0]}' like the class",
            "if these are human maps call it 'maps', if they are images of a split call it train, val or test; "
            "else move it away",
        )


def stray_tables(root: Path, known: Sequence[str]) -> list[str]:
    """CSV files beside the class folders that nobody reads; one that is nearly called like a known one is refused."""
    strays = [e.name for e in _entries(root, root) if e.suffix.lower() == ".csv" and e.name not in known]
    for stray in strays:
        meant = difflib.get_close_matches(stray.lower(), known, n=1, cutoff=0.75)
        if meant and not (root / meant[0]).exists():
            raise UserError(f"'{root / stray}' would not be read", f"call it {meant[0]}, or move it away")
    return strays


def _entries(root: Path, folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files and system junk; a link out of the root is refused."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"'{folder}' cannot be read ({error.strerror or error})", "check its permissions") from error
    entries = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _JUNK]
    for entry in entries:
        if entry.is_symlink():
            inside(root, entry.relative_to(root).as_posix(), "link")
            if entry.is_dir():
                raise UserError(f"'{entry}' is a link to a folder", "put the folder itself there")
    return entries


def _folders(root: Path, folder: Path) -> list[Path]:
    return [entry for entry in _entries(root, folder) if entry.is_dir()]


def _images(root: Path, folder: Path) -> Iterator[str]:
    """Images below a class folder, relative to the root."""
    for entry in _entries(root, folder):
        if entry.is_dir():
            yield from _images(root, entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry.relative_to(root).as_posix()
        else:
            raise UserError(f"'{entry}' is no image file", f"move it away; images end in {', '.join(sorted(SUFFIXES))}")


def _refuse_loose_images(root: Path, folder: Path) -> None:
    for entry in _entries(root, folder):
        if not entry.is_dir() and entry.suffix.lower() in SUFFIXES:
            raise UserError(f"the image '{entry}' lies in no class folder", _EXPECTED.format(root=root))


def find_maps(root: Path, files: Sequence[str]) -> list[str | None]:
    """The human map of each image: ``maps/`` and the image's path, with any image suffix.

    Raises:
        UserError: a map of no image, or of two.
    """
    folder = root / "maps"
    maps: list[str | None] = [None] * len(files)
    if not folder.exists() and not folder.is_symlink():
        return maps
    inside(root, "maps", "link")
    images: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        images.setdefault(_stem(file), []).append(index)
    for path in _images(root, folder):
        stem = _stem(PurePosixPath(path).relative_to("maps").as_posix())
        owners = images.get(stem, [])
        if len(owners) != 1:
            whose = "no image" if not owners else " and ".join(files[i] for i in owners)
            raise UserError(
                f"the map '{root / path}' belongs to {whose}",
                f"call it like its image, as in maps/{_stem(files[0])}.png",
            )
        if maps[owners[0]] is not None:
            raise UserError(f"the image '{files[owners[0]]}' has two maps: {maps[owners[0]]}, {path}", "remove one")
        maps[owners[0]] = path
    return maps


def _stem(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def assign_splits(
    layout: Layout, column: list[str] | None, way: str, fractions: tuple[float, float], seed: int
) -> tuple[np.ndarray, str]:
    """The split of every image.

    Args:
        layout: what lies in the folder.
        column: the column ``split`` of ``concepts.csv``, or None.
        way: "folders", "column", "random", or "auto" for the first of them that is there.
        fractions: share of val and of test, for those that neither folders nor column name.
        seed: of the draw.

    Returns:
        (N,) array of split names, and a note on how they came about.
    """
    offered = {"folders": layout.splits, "column": column, "random": [""] * len(layout.files)}
    if way == "auto":
        way = next(name for name, splits in offered.items() if splits is not None)
    if way not in offered:
        raise UserError(f"unknown way to split '{way}'", closest(way, ["auto", *offered]))
    chosen = offered[way]
    if chosen is None:
        missing = "train/, val/ and test/" if way == "folders" else "a column 'split' in concepts.csv"
        raise UserError(f"split={way} needs {missing}", "add it, or set split=random")
    _refuse_contradiction(layout, column, way)
    splits = np.array(["train" if way == "random" else split for split in chosen], dtype="<U5")
    absent = {name: f for name, f in zip(SPLITS[1:], fractions, strict=True) if name not in splits}
    if absent:
        _draw(splits, layout.labels, absent, seed)
    _check_splits(splits, layout)
    notes = (
        [] if way == "random" else ["splits as given by " + {"folders": "its folders", "column": "concepts.csv"}[way]]
    )
    if absent:
        drawn = " and ".join(f"{share:.0%} of each class for {name}" for name, share in absent.items())
        notes.append(f"{drawn} drawn from the rest with split_seed={seed}")
    return splits, "; ".join(notes)


def _refuse_contradiction(layout: Layout, column: list[str] | None, way: str) -> None:
    """Folders and a column that both name splits must agree, unless the user chose one of them."""
    if way != "folders" or layout.splits is None or column is None or layout.splits == column:
        return
    first = next(i for i, (a, b) in enumerate(zip(layout.splits, column, strict=True)) if a != b)
    raise UserError(
        f"'{layout.files[first]}' lies in {layout.splits[first]}, but concepts.csv puts it into {column[first]}",
        "move the image or mend the cell, or set split=column",
    )


def _draw(splits: np.ndarray, labels: np.ndarray, shares: dict[str, float], seed: int) -> None:
    """Move a share of each class from train to the absent splits, at least one image each while train keeps one."""
    for name, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"{name}_fraction is {share}", "give a share between 0 and 1")
    if sum(shares.values()) >= 1:
        raise UserError(
            "val_fraction and test_fraction leave nothing to train on", "give shares that sum to less than 1"
        )
    for c in np.unique(labels):
        members = np.flatnonzero((labels == c) & (splits == "train"))
        members = members[np.random.default_rng([seed, int(c)]).permutation(len(members))]
        spare, count = len(members) - 1, len(members)
        for name, share in sorted(shares.items()):
            take = min(max(1, round(count * share)), spare)
            splits[members[:take]] = name
            members, spare = members[take:], spare - take


def _check_splits(splits: np.ndarray, layout: Layout) -> None:
    for name in SPLITS:
        if not (splits == name).any():
            raise UserError(
                f"the split {name} got none of the {len(splits)} images", "give more images, or a larger fraction"
            )
    for c, name in enumerate(layout.class_names):
        if not ((layout.labels == c) & (splits == "train")).any():
            raise UserError(f"the class '{name}' has no training image", "put at least one into train")
