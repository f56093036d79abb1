"""What lies in the cache folder, and how to be rid of it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.cache import Busy, beside_name, lock_of, locked
from vitrarium.data.rows import ABOUT, NotWritable

DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """Kept rows: the decoded images of a split, or a frozen backbone's features of them.

    Attributes:
        path: the folder.
        count: rows.
        size: bytes on disk.
        used: when a run last read or wrote it, in seconds since 1970.
    """

    path: Path
    count: int
    size: int
    used: float

    @property
    def name(self) -> str:
        """Its key: data set, fingerprint, split."""
        return self.path.name

    @property
    def days(self) -> float:
        """Since it was last used."""
        return max(0.0, (time.time() - self.used) / DAY)


def entries(folder: Path, pattern: str = "*") -> list[Entry]:
    """Everything in a cache folder that is ours and complete, the largest first.

    Args:
        folder: the cache; one that does not exist holds nothing.
        pattern: a shell pattern of names.
    """
    if not folder.is_dir():
        return []
    found = [_entry(path) for path in sorted(folder.iterdir()) if fnmatch(path.name, pattern)]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.size)


def clear(folder: Path, pattern: str = "*", older: float = 0.0) -> tuple[list[Entry], list[Entry]]:
    """Remove entries. Nothing that this package did not write is touched, however the folder came to hold it.

    Runs that have an entry open go on reading it; the next run makes it again.

    Args:
        folder: the cache.
        pattern: a shell pattern of names.
        older: only those that were not used for so many days.

    Returns:
        What was removed, and what stays because a process is just writing it.

    Raises:
        UserError: no entry of such a name, negative days, a folder that may not be written to.
    """
    if not older >= 0:
        raise UserError(f"entries older than {older:g} days", "give 0 or more days")
    there = entries(folder, pattern)
    if not there and pattern != "*":
        raise UserError(f"no entry of '{folder}' is called '{pattern}'", closest(pattern, _names(folder)))
    removed: list[Entry] = []
    busy: list[Entry] = []
    for entry in there:
        if entry.days < older:
            continue
        try:
            with locked(lock_of(folder, entry.name), wait=False):
                _remove(entry)
            removed.append(entry)
        except Busy:
            busy.append(entry)
        except (OSError, NotWritable) as error:
            raise UserError(f"'{entry.path}' cannot be removed: {error}", "see who owns the folder") from error
    return removed, busy


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in entries(folder)]


def _entry(path: Path) -> Entry | None:
    """A folder as an entry; None for whatever holds other things than kept rows."""
    about = path / ABOUT
    if path.is_symlink() or not path.is_dir() or not about.is_file():
        return None
    try:
        described = json.loads(about.read_text(encoding="utf-8"))
        ours = {ABOUT, *(f"{name}.bin" for name in described["fields"])}
        files = list(path.iterdir())
        if set(described) != {"format", "count", "fields"} or not ours.issuperset(file.name for file in files):
            return None
        size = sum(file.stat().st_size for file in files)
        return Entry(path, int(described["count"]), size, about.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(entry: Entry) -> None:
    """Renamed first, so that nobody opens half an entry; then its files and its lock."""
    beside = entry.path.with_name(beside_name(entry.name))
    entry.path.rename(beside)
    shutil.rmtree(beside)
    lock_of(entry.path.parent, entry.name).unlink(missing_ok=True)
