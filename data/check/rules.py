"""Concepts and classes: what the concepts alone decide, and what they cannot."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from vitrarium.data.check.findings import Finding, counted
from vitrarium.data.concepts import ConceptSet

ALONE = 0.99
"""Training accuracy above which a single group is said to decide the class."""

PER_VALUE = 5
"""Images for each distinct value that a look-up needs before its accuracy means anything."""


def lookup(truth: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Training accuracy of the best table from concept rows to classes: each distinct row gets its most frequent class.

    Values above 0.5 count as yes, as in the metrics; rows with an unknown value are left out.

    Args:
        truth: (N, K) in [0, 1], NaN where nobody knows.
        labels: (N,) int64.

    Returns:
        accuracy (None without a complete row), rows (how many are complete), distinct (how many of them differ).
    """
    complete = ~np.isnan(truth).any(axis=1)
    count = int(complete.sum())
    if not count:
        return {"accuracy": None, "rows": 0, "distinct": 0}
    values, classes = np.packbits(truth[complete] > 0.5, axis=1), labels[complete]
    _, row = np.unique(values, axis=0, return_inverse=True)
    pairs, times = np.unique(np.stack([row.reshape(-1), classes], axis=1), axis=0, return_counts=True)
    best = np.zeros(int(row.max()) + 1, np.int64)
    np.maximum.at(best, pairs[:, 0], times)
    return {"accuracy": float(best.sum() / count), "rows": count, "distinct": len(best)}


def class_rows(truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray | None:
    """(C, K) what all images of a class agree on, NaN where none is known; None if images of some class differ."""
    rows = np.full((classes, truth.shape[1]), np.nan, np.float32)
    for c in range(classes):
        own = truth[labels == c]
        if not len(own):
            continue
        low = np.where(np.isnan(own), np.inf, own).min(axis=0)
        high = np.where(np.isnan(own), -np.inf, own).max(axis=0)
        if (low < high).any():
            return None
        rows[c] = np.where(np.isinf(low), np.nan, low)
    return rows


def rule_findings(
    concepts: ConceptSet, truth: np.ndarray, labels: np.ndarray, names: tuple[str, ...], ceiling: dict[str, Any]
) -> list[Finding]:
    """Groups that decide the class alone, concepts that are the class's, classes with the same concepts, the ceiling.

    Args:
        concepts: the K concepts.
        truth: (N, K) of the training images.
        labels: (N,) their classes.
        names: of the C classes.
        ceiling: what :func:`lookup` says of all concepts.
    """
    found = _deciding(concepts, truth, labels)
    rows = class_rows(truth, labels, len(names)) if len(truth) > len(names) else None
    if rows is not None:
        if not concepts.per_class:
            found.append(
                Finding(
                    "note",
                    "class_level",
                    "all images of a class have the same concepts",
                    "corrected concepts then tell the class, and an intervention curve measures little else",
                )
            )
        found += _identical(rows, names)
    elif concepts.per_class:
        found.append(
            Finding(
                "note",
                "varying_truth",
                "the concepts are given once per class, but images of a class differ in them",
                "expected where noise was added; otherwise mend the table",
            )
        )
    return found + _ceiling(ceiling)


def _deciding(concepts: ConceptSet, truth: np.ndarray, labels: np.ndarray) -> list[Finding]:
    deciding = []
    for group in concepts.groups if len(np.unique(labels)) > 1 else ():
        alone = lookup(truth[:, list(group.members)], labels)
        enough = alone["rows"] >= PER_VALUE * alone["distinct"]
        if enough and alone["accuracy"] is not None and alone["accuracy"] > ALONE:
            deciding.append(f"{group.name} ({alone['accuracy']:.1%})")
    if not deciding:
        return []
    return [
        Finding(
            "warning",
            "deciding_group",
            f"{counted(len(deciding), 'group decides', 'groups decide')} the class alone (training accuracy of "
            "the majority class for each value)",
            "a model may read this one and ignore the rest: is it really seen in the image, or a name of the class?",
            tuple(deciding),
        )
    ]


def _identical(rows: np.ndarray, names: tuple[str, ...]) -> list[Finding]:
    same: dict[bytes, list[str]] = defaultdict(list)
    for name, row in zip(names, rows, strict=True):
        if not np.isnan(row).all():
            same[np.where(np.isnan(row), np.float32(-1), np.round(row, 5) + np.float32(0)).tobytes()].append(name)
    alike = tuple(" = ".join(members) for members in same.values() if len(members) > 1)
    if not alike:
        return []
    return [
        Finding(
            "warning",
            "identical_classes",
            f"{counted(len(alike), 'set of classes has', 'sets of classes have')} identical concepts",
            "no concept bottleneck can tell them apart: add a concept in which they differ, or join them",
            alike,
        )
    ]


def _ceiling(ceiling: dict[str, Any]) -> list[Finding]:
    accuracy = ceiling["accuracy"]
    if accuracy is None or accuracy >= ALONE:
        return []
    return [
        Finding(
            "note",
            "ceiling",
            f"the concepts alone tell the class of {accuracy:.1%} of the training images, not of all",
            "a bottleneck that knew all concepts would stop there: add concepts, or a side channel",
        )
    ]
