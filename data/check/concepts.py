"""Concepts one by one: how often each is true, known and certain, and which of them tell nothing of their own."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from vitrarium.data.check.findings import Finding, counted
from vitrarium.data.concepts import ConceptSet

MOSTLY_UNKNOWN = 0.5


def concept_table(concepts: ConceptSet, truth: np.ndarray) -> list[dict[str, Any]]:
    """For each concept, over the training images.

    Args:
        concepts: the K concepts.
        truth: (N, K) in [0, 1], NaN where nobody knows.

    Returns:
        name, group, value (what it stands for in its group), categorical (whether exactly one of the group is true),
        prevalence (mean of what is known, None if nothing is), unknown (share of the images), soft (share of the known
        values strictly between 0 and 1).
    """
    known = ~np.isnan(truth)
    count = known.sum(axis=0)
    total = np.where(known, truth, 0).sum(axis=0, dtype=np.float64)
    soft = (known & (truth > 0) & (truth < 1)).sum(axis=0)
    groups = [(group, value) for group in concepts.groups for value in group.values]
    return [
        {
            "name": name,
            "group": groups[k][0].name,
            "value": groups[k][1],
            "categorical": groups[k][0].categorical,
            "prevalence": float(total[k] / count[k]) if count[k] else None,
            "unknown": float(1 - count[k] / len(truth)),
            "soft": float(soft[k] / count[k]) if count[k] else 0.0,
        }
        for k, name in enumerate(concepts.names)
    ]


def concept_findings(concepts: ConceptSet, truth: np.ndarray, labels: np.ndarray, classes: int) -> list[Finding]:
    """Concepts that never vary, are hardly known, repeat the label, or repeat each other.

    Args:
        concepts: the K concepts.
        truth: (N, K) of the training images.
        labels: (N,) their classes.
        classes: number of classes C.
    """
    names, found = concepts.names, []
    still = constant(truth)
    listed = tuple(names[k] for k in np.flatnonzero(still))
    if listed:
        found.append(
            Finding(
                "warning",
                "constant_concept",
                f"{counted(len(listed), 'concept never varies', 'concepts never vary')} in train",
                "nothing can be learnt from them: remove them, or add images that differ",
                listed,
            )
        )
    unknown = np.isnan(truth).mean(axis=0)
    rarely = tuple(f"{names[k]} ({unknown[k]:.0%})" for k in np.flatnonzero(unknown > MOSTLY_UNKNOWN))
    if rarely:
        found.append(
            Finding(
                "note",
                "mostly_unknown",
                f"{counted(len(rarely), 'concept is', 'concepts are')} unknown for most training images",
                "unknown values are left out of loss and metrics: few images teach these concepts",
                rarely,
            )
        )
    copies = tuple(names[k] for k in np.flatnonzero(label_copies(truth, labels, classes)))
    if copies:
        found.append(
            Finding(
                # Where truth is given per class, an attribute of a single class is nothing unusual.
                "note" if concepts.per_class else "warning",
                "label_copy",
                f"{counted(len(copies), 'concept is', 'concepts are')} true for every image of one class and no other",
                "such a concept is the label under another name: correcting it hands the class over",
                copies,
            )
        )
    return found + _repeated(concepts, truth, still)


def constant(truth: np.ndarray) -> np.ndarray:
    """(K,) bool: concepts with at most one known value among the rows of ``truth`` (N, K)."""
    low = np.where(np.isnan(truth), np.inf, truth).min(axis=0)
    high = np.where(np.isnan(truth), -np.inf, truth).max(axis=0)
    return low >= high


def label_copies(truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(K,) bool: concepts that are true (above 0.5) for exactly one class, and wherever known there.

    Args:
        truth: (N, K), NaN where nobody knows.
        labels: (N,) in 0 .. C-1.
        classes: number of classes C.
    """
    known, yes = per_class_counts(truth, labels, classes)
    some, every = yes > 0, (yes == known) & (known > 0)
    elsewhere = (known > 0).sum(axis=0) > 1
    return (some.sum(axis=0) == 1) & ((some & every).sum(axis=0) == 1) & elsewhere


def per_class_counts(truth: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """How many images of each class have a known value, and a value above 0.5: two arrays (C, K)."""
    known, yes = np.zeros((2, classes, truth.shape[1]), np.int64)
    for c in range(classes):
        rows = truth[labels == c]
        known[c], yes[c] = (~np.isnan(rows)).sum(axis=0), (rows > 0.5).sum(axis=0)
    return known, yes


def repeated(concepts: ConceptSet, truth: np.ndarray) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
    """Concepts with the same column, and pairs that are each other's complement.

    Two values of one categorical group complement each other by definition; such pairs are left out. So are concepts
    that never vary.

    Args:
        concepts: the K concepts.
        truth: (N, K), NaN where nobody knows; columns agree where both values or both NaN do.

    Returns:
        Positions of equal concepts, and of complementary ones.
    """
    # Rounded, so that 1 - 0.33 and 0.67 are one number in float32.
    clean = np.round(np.where(np.isnan(truth), np.nan, truth), 5)
    keyed: dict[bytes, list[int]] = defaultdict(list)
    varying = np.flatnonzero(~constant(truth))
    for k in varying:
        keyed[_key(clean[:, k])].append(int(k))
    opposite = []
    for members in keyed.values():
        others = keyed.get(_key(np.round(1 - clean[:, members[0]], 5)), [])
        opposite += [(a, b) for a in members[:1] for b in others[:1] if a < b and not _alternatives(concepts, a, b)]
    return [tuple(members) for members in keyed.values() if len(members) > 1], opposite


def _key(column: np.ndarray) -> bytes:
    # Adding zero makes -0.0 and 0.0 one; NaN has one pattern.
    return np.where(np.isnan(column), np.float32(-1), column + np.float32(0)).astype(np.float32).tobytes()


def _alternatives(concepts: ConceptSet, a: int, b: int) -> bool:
    group = concepts.group_of
    return bool(group[a] == group[b] and concepts.groups[group[a]].categorical)


def _repeated(concepts: ConceptSet, truth: np.ndarray, still: np.ndarray) -> list[Finding]:
    names, found = concepts.names, []
    equal, opposite = repeated(concepts, truth)
    if equal:
        found.append(
            Finding(
                "warning",
                "duplicate_concept",
                f"{counted(len(equal), 'set of concepts has', 'sets of concepts have')} equal values in train",
                "the model cannot tell them apart: keep one of each",
                tuple(" = ".join(names[k] for k in members) for members in equal),
            )
        )
    if opposite:
        found.append(
            Finding(
                "warning",
                "complement_concept",
                f"{counted(len(opposite), 'pair of concepts is', 'pairs of concepts are')} each other's complement",
                "one of each pair says everything: keep that one, or make them values of one column",
                tuple(f"{names[a]} = not {names[b]}" for a, b in opposite),
            )
        )
    return found
