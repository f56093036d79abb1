"""Which images a folder holds, of which classes, and in which split they lie."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.files import SUFFIXES, inside
from vitrarium.data.naming import Names, composed

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_JUNK = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})

_TABLES = frozenset({".csv", ".tsv", ".xls", ".xlsx", ".xlsm", ".ods"})

_CUB_TABLES = frozenset({"image_class_labels.txt", "train_test_split.txt"})

_EXPECTED = "expected {root}/CLASS/image.jpg or {root}/{{train,val,test}}/CLASS/image.jpg"


@dataclass(frozen=True)
class Layout:
    """What lies in a folder.

    Attributes:
        files: paths of the N images relative to the root, with ``/``, sorted.
        labels: (N,) int64.
        class_names: names of the class folders, sorted.
        splits: split of each image as the folders say, or None where they say nothing.
        notes: what a reader of numbers must know.
    """

    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: list[str] | None
    notes: tuple[str, ...] = ()


def read_layout(root: Path) -> Layout:
    """Find classes and images.

    Raises:
        UserError: no or only one class, an empty class folder, a class of val or test that train does not have, splits
            and classes side by side, an image in no class folder, a file that is no image, a link out of the folder.
    """
    _refuse_cub_tables(root)
    _refuse_loose_images(root, root)
    tops = [folder for folder in _folders(root, root) if folder.name != "maps"]
    given = {folder: SPLIT_WORDS[folder.name.lower()] for folder in tops if folder.name.lower() in SPLIT_WORDS}
    if given and "train" not in given.values():
        named = " and ".join(f"'{folder.name}'" for folder in given)
        raise UserError(f"'{root}' holds {named}, but no 'train'", _EXPECTED.format(root=root))
    if not given:
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


def class_folders(root: Path) -> tuple[str, list[str]]:
    """What looks like classes, by names alone: folders with images right in them, in ``root`` or in its ``train``.

    Returns:
        The name of the folder for training images ("" without one), and the names of the class folders in it.
    """
    tops = [entry for entry in _visible(root) if entry.is_dir() and entry.name != "maps"]
    train = next((top for top in tops if SPLIT_WORDS.get(top.name.lower()) == "train"), None)
    inner = tops if train is None else [entry for entry in _visible(train) if entry.is_dir()]
    classes = [entry.name for entry in inner if any(e.suffix.lower() in SUFFIXES for e in _visible(entry))]
    return "" if train is None else train.name, sorted(classes)


def _layout(root: Path, classes_of: dict[str | None, list[Path]]) -> Layout:
    known = [folder.name for folder in classes_of.get("train", classes_of.get(None, []))]
    if len(known) < 2:
        found = f"only one class folder, '{known[0]}'," if known else "no class folders"
        raise UserError(f"found {found} in '{root}'", _EXPECTED.format(root=root))
    _refuse_twice(root, known)
    names = Names(known)
    found_images: list[tuple[str, int, str]] = []
    for split, folders in classes_of.items():
        for folder in folders:
            _refuse_class_of_classes(root, folder, known)
            label = names.find(folder.name)
            if label is None:
                raise UserError(
                    f"'{folder}' is none of the classes of train: {', '.join(known[:8])}", closest(folder.name, known)
                )
            images = list(_images(root, folder))
            if not images:
                raise UserError(f"the class folder '{folder}' holds no image", "put images into it, or remove it")
            found_images += [(image, label, split or "") for image in images]
    found_images.sort(key=lambda found: PurePosixPath(found[0]).parts)
    return Layout(
        files=[file for file, _, _ in found_images],
        labels=np.array([label for _, label, _ in found_images], np.int64),
        class_names=tuple(known),
        splits=None if None in classes_of else [split for _, _, split in found_images],
        notes=_nested([file for file, _, _ in found_images], depth=2 if None in classes_of else 3),
    )


def _nested(files: Sequence[str], depth: int) -> tuple[str, ...]:
    """A note on folders inside class folders; an image right in a class folder has a path of ``depth`` parts."""
    inner = sorted({PurePosixPath(*parts[:depth]).as_posix() for f in files if len(parts := f.split("/")) > depth})
    if not inner:
        return ()
    named = ", ".join(f"{folder}/" for folder in inner[:3]) + (" ..." if len(inner) > 3 else "")
    note = f"folders inside class folders are part of their class: {named}"
    if all(file.count("/") >= depth for file in files):
        note += "; no class folder holds images itself: if the inner folders are the classes, data.root is too high"
    return (note,)


def _refuse_twice(root: Path, names: Sequence[str]) -> None:
    """Two folders that look the same and are composed of different letters."""
    seen: set[str] = set()
    for form in map(composed, names):
        if form in seen:
            raise UserError(
                f"'{root}' holds two folders '{form}', with letters that are composed differently",
                "rename or join them",
            )
        seen.add(form)


def _refuse_cub_tables(root: Path) -> None:
    """Tables that would be passed over, although they say which image has which class."""
    found = sorted(entry.name for entry in _visible(root) if entry.name in _CUB_TABLES)
    if found:
        raise UserError(
            f"'{root}' holds {' and '.join(found)}, tables of the layout of CUB-200-2011, which 'folder' does not read",
            "use data=cub if images.txt and images/ lie there too; else move these tables away",
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
    """Tables beside the class folders that nobody reads; one that is nearly called like a known one is refused."""
    strays = [e.name for e in _entries(root, root) if e.suffix.lower() in _TABLES and e.name not in known]
    for stray in strays:
        path = PurePosixPath(stray.lower())
        meant = difflib.get_close_matches(f"{path.stem}.csv", known, n=1, cutoff=0.75)
        if meant and not (root / meant[0]).exists():
            cure = "call it" if path.suffix == ".csv" else "save it as CSV in UTF-8 with commas as"
            raise UserError(f"'{root / stray}' would not be read", f"{cure} {meant[0]}, or move it away")
    return strays


def _entries(root: Path, folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files and system junk; a link out of the root is refused."""
    entries = sorted(_visible(folder))
    for entry in entries:
        if entry.is_symlink():
            inside(root, entry.relative_to(root).as_posix(), "link")
            if entry.is_dir():
                raise UserError(f"'{entry}' is a link to a folder", "put the folder itself there")
    return entries


def _visible(folder: Path) -> Iterator[Path]:
    try:
        for entry in folder.iterdir():
            if not entry.name.startswith(".") and entry.name not in _JUNK:
                yield entry
    except OSError as error:
        raise UserError(f"'{folder}' cannot be read ({error.strerror or error})", "check its permissions") from error


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
    loose = [e for e in _entries(root, folder) if not e.is_dir() and e.suffix.lower() in SUFFIXES]
    if loose:
        more = f" (and {len(loose) - 1} more)" if len(loose) > 1 else ""
        raise UserError(
            f"the image '{loose[0]}' lies in no class folder{more}",
            f"{_EXPECTED.format(root=root)}; move it there, or away",
        )


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
                "rename all but one of these images, or remove them: they share the map"
                if owners
                else f"call it like its image, as in maps/{_stem(files[0])}.png",
            )
        if maps[owners[0]] is not None:
            raise UserError(f"the image '{files[owners[0]]}' has two maps: {maps[owners[0]]}, {path}", "remove one")
        maps[owners[0]] = path
    return maps


def _stem(path: str) -> str:
    return composed(PurePosixPath(path).with_suffix("").as_posix())
