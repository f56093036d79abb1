"""Look at a data set before training on it: what it holds, what is wrong with it, what it looks like."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrarium.configs.errors import UserError, closest

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrarium.data import DataSource
    from vitrarium.data.check import DataCheck, Finding


def check_data(
    data: str | Path | Mapping[str, Any],
    fast: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> DataCheck:
    """Everything about a data set that one should know before training on it.

    Args:
        data: a folder, whose layout is recognised; the name of a data set; or ``{name, **options}``.
        fast: do not decode the images; nothing is then said of pixels, maps, keypoints and masks.
        progress: told how many images are decoded, of how many.
        options: of the data set (``size=32``); ``name="folder"`` says which layout a folder has.

    Returns:
        Tables and findings. What keeps a folder from being built is a finding of severity "error".

    Raises:
        UserError: no such folder or name, a folder that holds nothing known, an option that the data set does not have.

    Example:
        >>> check = check_data("flowers", train=60, val=24, test=24)
        >>> check.clean, [row["images"] for row in check.splits]
        (True, [60, 24, 24])
    """
    from vitrarium.data import build_source
    from vitrarium.data.check import DataCheck, check_source
    from vitrarium.data.check.findings import by_severity
    from vitrarium.data.source import DATASETS

    place = _place(data, options)
    if place.spec is None:
        return DataCheck(spec={}, findings=place.findings)
    DATASETS.check(place.spec)
    try:
        source = build_source(place.spec)
    except UserError as error:
        if not Path(str(place.spec.get("root"))).is_dir():
            raise
        found = [*_not_built(error), *place.findings]
        return DataCheck(spec=place.spec, because=place.because, findings=by_severity(found))
    check = check_source(source, place.spec, fast, progress)
    check.because = place.because
    check.findings = by_severity([*check.findings, *place.findings, *_unread(place, source)])
    return check


def show_data(
    data: str | Path | Mapping[str, Any],
    which: str = "train",
    count: int = 24,
    only: str | None = None,
    draw: int = 0,
    **options: Any,
) -> Image:
    """A sheet of examples, class by class: pictures with their concepts, maps, parts and keypoints.

    Args:
        data: as for :func:`check_data`.
        which: the split, "train", "val" or "test".
        count: examples on the sheet, shared out evenly among the classes.
        only: a class whose examples alone are shown.
        draw: seed of the choice.
        options: of the data set.

    Returns:
        RGB picture.

    Raises:
        UserError: as for :func:`check_data`; data that cannot be built or decoded; an unknown split or class.
    """
    from vitrarium.data.example_sheet import example_sheet

    source, root = _built(data, options)
    title = f"{Path(root).name} ({source.name})" if root else source.name
    return example_sheet(source, which, count, only, draw, title)


def example(
    data: str | Path | Mapping[str, Any] = "flowers", index: int = 0, which: str = "test", **options: Any
) -> Image:
    """One picture of a data set, to try a model on: flowers are drawn, whoever has no data of his own.

    Args:
        data: as for :func:`check_data`.
        index: position in the split, from 0.
        which: the split, "train", "val" or "test".
        options: of the data set.

    Returns:
        RGB picture as the data set shows it to a model; its ``info`` has "class" and "origin".

    Raises:
        UserError: as for :func:`check_data`; data that cannot be built or decoded; an unknown split, no such example.
    """
    from PIL import Image

    source, _ = _built(data, options)
    if which not in source.splits:
        raise UserError(f"there is no split '{which}'", closest(which, source.splits))
    split = source.splits[which]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(split):
        raise UserError(
            f"the {which} split of '{source.name}' has no example {index}", f"give a number from 0 to {len(split) - 1}"
        )
    image = Image.fromarray(split.sample(index).image)
    image.info.update({"class": source.class_names[int(split.labels[index])], "origin": split.origin(index)})
    return image


def _built(data: str | Path | Mapping[str, Any], options: Mapping[str, Any]) -> tuple[DataSource, str]:
    """A data set that must be there and whole, and its folder ("" if it has none)."""
    from vitrarium.data import build_source
    from vitrarium.data.source import DATASETS

    place = _place(data, options)
    if place.spec is None:
        raise UserError(place.findings[0].message, place.findings[0].cure)
    DATASETS.check(place.spec)
    return build_source(place.spec), str(place.spec.get("root") or "")


@dataclass
class _Place:
    """Where a data set is and how it was recognised; ``spec`` is None where that is not settled.

    ``also`` says by what a plain folder was recognised where another layout was preferred.
    """

    spec: dict[str, Any] | None
    because: str = ""
    also: str = ""
    findings: list[Finding] = field(default_factory=list)


def _place(data: str | Path | Mapping[str, Any], options: Mapping[str, Any]) -> _Place:
    from vitrarium.data.recognition import recognise
    from vitrarium.data.source import DATASETS

    if isinstance(data, Mapping):
        return _Place({**data, **options})
    path = Path(data).expanduser()
    if not path.exists() and str(data) in DATASETS:
        return _Place({"name": str(data), **options})
    if not path.exists() and path.name == str(data):
        near = difflib.get_close_matches(str(data), DATASETS.list(), n=1)
        raise UserError(
            f"there is no folder '{data}', and no data set is called so",
            f"did you mean '{near[0]}'?" if near else f"give a folder, or one of: {', '.join(DATASETS.list())}",
        )
    if "name" in options:
        return _named(path, options)
    return _chosen(path, recognise(path), options)


def _named(path: Path, options: Mapping[str, Any]) -> _Place:
    """A folder whose layout the user names."""
    from vitrarium.data.source import DATASETS

    name = str(options["name"])
    if "root" not in inspect.signature(DATASETS.get(name)).parameters:
        raise UserError(f"the data set '{name}' is not read from a folder", f"leave out '{path}'")
    return _Place({"root": str(path.absolute()), **options})


def _chosen(path: Path, seen: Mapping[str, Any], options: Mapping[str, Any]) -> _Place:
    """Of the layouts that were seen the special one, or none if there are several."""
    from vitrarium.data.check import Finding
    from vitrarium.data.recognition import PLAIN, above
    from vitrarium.data.source import DATASETS

    special = [name for name in seen if name != PLAIN]
    if len(special) > 1:
        said = "; ".join(f"{name} by {seen[name].because}" for name in special)
        cure = f"name one: vitrarium data check '{path}' name={special[0]}"
        return _Place(None, findings=[Finding("error", "mixed_layout", f"mixed layout: {said}", cure, tuple(special))])
    name, recognition = next(iter(seen.items()))
    found = []
    if str(path) in DATASETS:
        said = f"'{path}' is a folder here and also the name of a data set; the folder was taken"
        found.append(Finding("note", "folder_taken", said, "call from elsewhere for the data set of that name"))
    higher = above(path) if name == PLAIN else None
    if higher:
        said = f"'{path}' may be only a part: {higher}"
        found.append(Finding("warning", "too_low", said, "give that folder instead"))
    also = seen[PLAIN].because if special and PLAIN in seen else ""
    return _Place({**recognition.spec, **options}, recognition.because, also, found)


def _unread(place: _Place, source: DataSource) -> list[Finding]:
    """Class folders beside another layout that does not read them: two data sets in one folder."""
    if not place.also or place.spec is None:
        return []
    from vitrarium.data.check import Finding
    from vitrarium.data.sets.folder_layout import class_folders

    root = Path(place.spec["root"])
    train, classes = class_folders(root)
    files = [split.file(index) for split in source.splits.values() for index in range(len(split))]
    read = {file.relative_to(root).parts[0] for file in files if file is not None and file.is_relative_to(root)}
    unread = sorted({train} - read if train else set(classes) - read)
    if not unread:
        return []
    said = f"mixed layout: {source.name} by {place.because}, and beside it {place.also}, which it does not read"
    cure = "keep one data set in one folder: move the class folders to a place of their own"
    return [Finding("warning", "mixed_layout", said, cure, tuple(unread))]


def _not_built(error: UserError) -> list[Finding]:
    """Why a data set cannot be built; broken files one by one."""
    from vitrarium.data.check import Finding
    from vitrarium.data.files import BrokenFiles

    if isinstance(error, BrokenFiles):
        count = len(error.problems)
        said = f"{count} file{' is' if count == 1 else 's are'} missing or cannot be read"
        return [Finding("error", "broken_file", said, error.cure, error.problems)]
    return [Finding("error", "not_built", error.problem, error.cure)]
