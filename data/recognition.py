"""Which data set a folder holds, found out by looking; and what to say where none is seen."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from pathlib import Path

from vitrarium.configs.errors import UserError
from vitrarium.data.sets.folder_layout import class_folders
from vitrarium.data.source import LAYOUTS, Recognition

PLAIN = "folder"
"""The layout that steps back where another one is seen as well: others hold folders of images, too."""

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")

_LOOKED_INTO = 20
"""Sub-folders that are tried when the folder itself holds nothing known."""

_JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


def recognise(path: str | Path) -> dict[str, Recognition]:
    """The data sets that a folder may hold, by name; the plain ``folder`` comes last.

    Only names and the first lines of tables are looked at: whether the data are whole is found out by building.

    Raises:
        UserError: no folder, an archive, or nothing that is known: what each layout looks like and what was found; a
            folder above or below that holds one is named.
    """
    root = _folder(path)
    found = _seen(root)
    if found:
        return dict(sorted(found.items(), key=_plain_last))
    elsewhere = _elsewhere(root)
    if elsewhere:
        raise UserError(f"'{root}' holds no data set itself", "did you mean " + " or ".join(elsewhere) + "?")
    raise UserError(f"'{root}' holds no data set that is known: {_inventory(root)}", _expected(root))


def above(path: Path) -> str | None:
    """In words the data set of which a plain folder is only a part: one above it that tells more, or its splits."""
    root = path.expanduser().absolute()
    for name, recognition in sorted(_seen(root.parent).items(), key=_plain_last):
        if name != PLAIN or recognition.because.startswith(f"{root.name}/ "):
            return f"'{root.parent}' is {name} by {recognition.because}"
    return None


def _folder(path: str | Path) -> Path:
    place = Path(path).expanduser()
    if place.is_dir():
        return place.absolute()
    if not place.exists():
        raise UserError(f"the data folder '{place}' does not exist", "check the path, and the folder you call from")
    if place.name.lower().endswith(_ARCHIVES):
        raise UserError(f"'{place}' is an archive", "unpack it and give the folder that comes out of it")
    raise UserError(f"'{place}' is a file", f"give the folder of the data set, perhaps '{place.parent}'")


def _seen(root: Path) -> dict[str, Recognition]:
    found = {name: LAYOUTS.get(name)(root) for name in LAYOUTS.list()}
    return {name: recognition for name, recognition in found.items() if recognition is not None}


def _plain_last(item: tuple[str, Recognition]) -> bool:
    return item[0] == PLAIN


def _elsewhere(root: Path) -> list[str]:
    """Folders one level up or down that hold a data set, in words."""
    said = []
    # Human maps lie in folders like those of the classes, but are no images to learn from.
    inner = [folder for folder in _inner(root) if folder.name != "maps"]
    for folder in [*inner[:_LOOKED_INTO], root.parent]:
        for name, recognition in sorted(_seen(folder).items(), key=_plain_last)[:1]:
            # Other folders of images beside this one are no reason to take them for its classes.
            if name != PLAIN or folder != root.parent or root.name in class_folders(folder)[1]:
                said.append(f"'{folder}' ({name}: {recognition.because})")
    return said[:3]


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            seen = [e for e in entries if not e.name.startswith(".") and e.name not in _JUNK]
    except OSError as error:
        raise UserError(f"'{root}' cannot be read ({error.strerror or error})", "check its permissions") from error
    return sorted(seen, key=lambda e: e.name)


def _inner(root: Path) -> list[Path]:
    return [Path(e.path) for e in _entries(root) if e.is_dir()]


def _inventory(root: Path) -> str:
    """What lies in a folder, counted."""
    entries = _entries(root)
    folders = [e.name for e in entries if e.is_dir()]
    endings = Counter(Path(e.name).suffix.lower() or "without ending" for e in entries if not e.is_dir())
    parts = [f"{count} {ending}" for ending, count in endings.most_common(6)]
    if folders:
        named = ", ".join(folders[:4]) + (" ..." if len(folders) > 4 else "")
        parts.append(f"{len(folders)} sub-folder{'s' if len(folders) > 1 else ''} ({named})")
    return "found " + ", ".join(parts) if parts else "it is empty"


def _expected(root: Path) -> str:
    """What each layout looks like, and which names in the folder come close to it."""
    looks = {name: (LAYOUTS.get(name).__doc__ or "").strip().split("\n")[0] for name in LAYOUTS.list()}
    files = [e.name for e in _entries(root) if not e.is_dir()]
    hints = [f"'{name}' is an archive: unpack it" for name in files if name.lower().endswith(_ARCHIVES)]
    known = {word for text in looks.values() for word in re.findall(r"[\w*-]+\.(?:csv|txt|npz|tsv)", text)}
    for name in files:
        close = difflib.get_close_matches(name.lower(), sorted(known - {name}), n=1, cutoff=0.75)
        if close and close[0] not in files:
            hints.append(f"'{name}' is nearly '{close[0]}'")
    hint = ("; ".join(hints[:4]) + "; ") if hints else ""
    return f"{hint}these are known:" + "".join(f"\n  {name}: {text}" for name, text in sorted(looks.items()))
