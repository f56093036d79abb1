"""What ``vitrarium cache`` does: show and clear what is kept of decoded images and features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrarium.verbs import print_table, say

if TYPE_CHECKING:
    from vitrarium.data.cache_entries import Entry


def show(given: argparse.Namespace) -> None:
    """``vitrarium cache``."""
    from vitrarium.data.cache_entries import entries

    folder = folder_of(given)
    found = entries(folder)
    if found:
        rows = [
            {"entry": e.name, "examples": f"{e.count:,}", "size": megabytes([e]), "last used": ago(e.days)}
            for e in found
        ]
        print_table(rows, ("entry", "examples", "size", "last used"), None)
    say(f"{counted(found)}, {megabytes(found)} in {folder}")


def clear(given: argparse.Namespace) -> None:
    """``vitrarium cache clear``."""
    from vitrarium.data.cache_entries import clear as clear_entries

    folder = folder_of(given)
    removed, busy = clear_entries(folder, given.pattern, given.older)
    for entry in removed:
        say(f"removed: {entry.name} ({megabytes([entry])})")
    for entry in busy:
        say(f"in use, not removed: {entry.name}")
    say(f"{counted(removed)} removed from {folder}, {megabytes(removed)}")


def counted(entries: Sequence[Entry]) -> str:
    """How many entries, in words."""
    return "1 entry" if len(entries) == 1 else f"{len(entries)} entries"


def folder_of(given: argparse.Namespace) -> Path:
    """The folder that was named, or that of runs whose configuration names none."""
    from vitrarium.data.cache import default_folder

    return Path(given.folder).expanduser() if given.folder else default_folder()


def megabytes(entries: Sequence[Entry]) -> str:
    """The size of some entries in words."""
    return f"{sum(entry.size for entry in entries) / 1e6:,.1f} MB"


def ago(days: float) -> str:
    """Whole days in words."""
    whole = int(days)
    return "today" if whole == 0 else f"{whole} day{'s' if whole > 1 else ''} ago"
