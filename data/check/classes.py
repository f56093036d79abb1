"""Classes: how many images each has, and where there are too few."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitrarium.data.check.findings import Finding, counted
from vitrarium.data.source import DataSource

RARE = 5
"""Training images below which a class is called rare."""

UNEVEN = 10.0
"""Times by which the largest class may exceed the smallest before it is said."""

_ROLES = frozenset({"images", "image", "imgs", "masks", "mask", "segmentations", "labels", "annotations", "maps"})


def class_table(source: DataSource) -> list[dict[str, Any]]:
    """For each class its name and its number of images in each split."""
    names = source.class_names
    counts = {name: np.bincount(split.labels, minlength=len(names)) for name, split in source.splits.items()}
    return [{"name": name, **{split: int(n[c]) for split, n in counts.items()}} for c, name in enumerate(names)]


def imbalance(table: list[dict[str, Any]]) -> float | None:
    """Training images of the largest class over those of the smallest; None if one has none."""
    counts = [row["train"] for row in table]
    return max(counts) / min(counts) if counts and min(counts) > 0 else None


def class_findings(table: list[dict[str, Any]]) -> list[Finding]:
    """Empty and rare classes, classes that cannot be judged, imbalance, names that are no classes."""
    found = []
    empty = tuple(row["name"] for row in table if row["train"] == 0)
    if empty:
        found.append(
            Finding(
                "error",
                "empty_class",
                f"{counted(len(empty), 'class has', 'classes have')} no training image",
                "add images of them, or leave these classes out",
                empty,
            )
        )
    rare = tuple(f"{row['name']} ({row['train']})" for row in table if 0 < row["train"] < RARE)
    if rare:
        found.append(
            Finding(
                "warning",
                "rare_class",
                f"{counted(len(rare), 'class has', 'classes have')} fewer than {RARE} training images",
                "collect more, or join classes: so few images teach little",
                rare,
            )
        )
    for split in ("val", "test"):
        absent = tuple(row["name"] for row in table if row["train"] and not row[split])
        if absent:
            found.append(
                Finding(
                    "warning",
                    f"no_{split}_images",
                    f"{counted(len(absent), 'class has', 'classes have')} no image in {split}",
                    "nothing can be said about them there: move some images, or draw the split anew",
                    absent,
                )
            )
    return found + _uneven(table) + _roles(table)


def _uneven(table: list[dict[str, Any]]) -> list[Finding]:
    ratio = imbalance(table)
    if ratio is None or ratio < UNEVEN:
        return []
    most, least = max(table, key=lambda row: row["train"]), min(table, key=lambda row: row["train"])
    return [
        Finding(
            "note",
            "imbalance",
            f"'{most['name']}' has {ratio:.0f} times as many training images as '{least['name']}'",
            "read balanced accuracy beside accuracy; weigh classes or balance the sampler if the rare ones matter",
        )
    ]


def _roles(table: list[dict[str, Any]]) -> list[Finding]:
    """Class names that say what files are for: the root is then one level off."""
    roles = tuple(row["name"] for row in table if row["name"].lower() in _ROLES)
    if not roles:
        return []
    return [
        Finding(
            "warning",
            "odd_class_name",
            f"{counted(len(roles), 'class is', 'classes are')} called like a kind of file, not like a class",
            "if these folders are no classes give another folder; human maps belong into 'maps'",
            roles,
        )
    ]
