"""Exact copies: within a split, across splits, and with contradicting labels."""

from __future__ import annotations

from collections.abc import Sequence

from vitrarium.data.check.examples import Tally
from vitrarium.data.check.findings import Finding, counted
from vitrarium.data.duplicates import Duplicates, Place, find_duplicates
from vitrarium.data.source import DataSource


def duplicates_of(source: DataSource, tally: Tally | None) -> Duplicates | None:
    """Exact copies: as the data set found them, else by the pixels that were decoded, else None."""
    if source.duplicates is not None or tally is None:
        return source.duplicates
    # What could not be read equals nothing.
    digests = {
        name: [digest or f"{name} {index}" for index, digest in enumerate(row)] for name, row in tally.digests.items()
    }
    return find_duplicates(digests, {name: split.labels for name, split in source.splits.items()})


def copy_findings(source: DataSource, duplicates: Duplicates) -> list[Finding]:
    """Copies across splits, copies that contradict each other, copies within a split."""
    across = [group for group in duplicates.groups if len({split for split, _ in group}) > 1]
    within = [group for group in duplicates.groups if len({split for split, _ in group}) == 1]
    differ = [group for group in duplicates.groups if len({_label(source, place) for place in group}) > 1]
    leaks = ", ".join(f"{int(mask.sum())} of {name}" for name, mask in duplicates.leaked.items() if mask.any())
    found = []
    for severity, kind, groups, said, cure in (
        ("warning", "leak", across, f"in more than one split (seen elsewhere: {leaks})",
         "remove the copies from one of the splits; evaluate also reports numbers without them"),
        ("warning", "contradicting_copies", differ, "under different labels",
         "one of the labels is wrong: look at the copies and keep one"),
        ("note", "duplicate", within, "more than once in one split", "they count twice: remove what is not meant"),
    ):  # fmt: skip
        if groups:
            message = f"{counted(len(groups), 'image lies', 'images lie')} {said}"
            found.append(Finding(severity, kind, message, cure, tuple(_named(source, group) for group in groups)))
    return found


def _label(source: DataSource, place: Place) -> int:
    return int(source.splits[place[0]].labels[place[1]])


def _named(source: DataSource, group: Sequence[Place]) -> str:
    """The copies with their splits, and their classes where these differ."""
    differ = len({_label(source, place) for place in group}) > 1
    said = []
    for split, index in group:
        label = f", {source.class_names[_label(source, (split, index))]}" if differ else ""
        said.append(f"{source.splits[split].origin(index)} ({split}{label})")
    return " = ".join(said)
