"""From annotated attributes to concepts: votes of classes, the 312 -> 112 selection, groups, certainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.sets.cub_labels import NONE, ImageLabels
from vitrarium.data.sets.cub_tables import Names

NOT_VISIBLE = 1
"""The level of certainty that says: this cannot be seen here."""

WEIGHTS = {1: 0.0, 2: 0.5, 3: 0.75, 4: 1.0}
"""``uncertain=weight``: what an annotation counts by its certainty; what is not visible is unknown."""

PRESENT = {1: np.nan, 2: 0.5, 3: 0.75, 4: 1.0}
"""``uncertain=soft``: degree of "present" by its certainty; of "absent" it is one minus this.

The released code of Koh et al. (ICML 2020) calibrates in the same way, except that it takes what is not visible for
absent.
"""

NEARLY = 0.99
"""Share of examples of which exactly one member must be true for a group to be categorical."""


@dataclass(frozen=True)
class Votes:
    """What the voting images of each class say about each attribute.

    Attributes:
        yes: (C, A) annotations that say present, whatever their certainty.
        no: (C, A) annotations that say absent, without those that are not visible.
        asked: (C, A) bool, there is an annotation at all.
    """

    yes: np.ndarray
    no: np.ndarray
    asked: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """(C, A) share of present, NaN where nobody voted."""
        total = self.yes + self.no
        return np.where(total > 0, self.yes / np.maximum(total, 1), np.nan)


def count_votes(labels: np.ndarray, annotated: ImageLabels, voters: np.ndarray, classes: int) -> Votes:
    """Count the annotations of the voting images, class by class.

    Args:
        labels: (N,) class of each image.
        annotated: presence and certainty (N, A).
        voters: (N,) bool, images that vote.
        classes: number of classes.
    """
    shape = (classes, annotated.present.shape[1])
    yes, no, asked = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for c in range(classes):
        rows = voters & (labels == c)
        present, certainty = annotated.present[rows], annotated.certainty[rows]
        yes[c] = (present == 1).sum(0)
        no[c] = ((present == 0) & (certainty != NOT_VISIBLE)).sum(0)
        asked[c] = (present != NONE).any(0)
    return Votes(yes, no, asked)


def present_from(share: np.ndarray, threshold: float) -> np.ndarray:
    """A share as 0 or 1 (ties count as present); what is unknown stays NaN."""
    return np.where(np.isnan(share), np.nan, share >= threshold)


def koh112(share: np.ndarray, asked: np.ndarray, threshold: float, min_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The selection that makes 112 of CUB's 312 attributes (Koh et al., "Concept bottleneck models", ICML 2020).

    As in the released processing (``get_class_attributes_data``):

    1. For each class and attribute the voting images vote whether it is present. An annotation "absent, not visible" is
       no vote; an annotation "present" always is.
    2. The attribute is present in the class if at least half of the votes say so. A tie counts as present, and no vote
       at all (nobody could see it) is a tie of none to none.
    3. An attribute is kept if it is present in at least ``min_classes`` classes.

    Args:
        share: (C, A) share of present votes, NaN where nobody voted.
        asked: (C, A) bool, whether there was an annotation at all. What nobody was asked about, which does not occur in
            CUB, is unknown and not counted.
        threshold: share from which an attribute is present, 0.5 in the paper.
        min_classes: 10 in the paper.

    Returns:
        (C, A) what is present in a class, and positions of the attributes that are kept.
    """
    present = present_from(share, threshold)
    present[np.isnan(share) & asked] = 1.0
    return present, np.flatnonzero(np.nansum(present, axis=0) >= min_classes)


def weigh(annotated: ImageLabels, uncertain: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Truth (N, A) float32 of each image, NaN where nobody knows, and its weight (N, A) or None.

    Args:
        annotated: presence and certainty.
        uncertain: "weight", "soft", or "ignore" to take presence as it is written, the invisible included.
    """
    truth = np.where(annotated.present == NONE, np.nan, annotated.present).astype(np.float32)
    if uncertain == "ignore":
        return truth, None
    # Level -1, not annotated, takes the last place of the table.
    if uncertain == "soft":
        degree = _by_level(PRESENT, np.nan)[annotated.certainty]
        return np.where(truth == 1, degree, 1 - degree).astype(np.float32), None
    truth[annotated.certainty == NOT_VISIBLE] = np.nan
    return truth, _by_level(WEIGHTS, 0.0)[annotated.certainty]


def _by_level(table: dict[int, float], unknown: float) -> np.ndarray:
    return np.array([unknown, *(table[level] for level in (1, 2, 3, 4)), unknown], np.float32)


@dataclass(frozen=True)
class Grouped:
    """Concepts in groups.

    Attributes:
        concepts: the concept set.
        order: (K,) position of each concept among the attributes that were given.
        freed: for each categorical group its members and the examples (rows) of which not exactly one is true.
        notes: what a reader of numbers must know.
    """

    concepts: ConceptSet
    order: np.ndarray
    freed: tuple[tuple[tuple[int, ...], np.ndarray], ...]
    notes: tuple[str, ...]


def group(names: Names, kept: np.ndarray, truth: np.ndarray, per_class: bool, soft: bool) -> Grouped:
    """Put attributes into groups by their names, ``group::value``; others are yes/no concepts of their own.

    A group is categorical if the truth says so: of those examples whose members are all known, exactly one member is
    true in at least 99 %; the few others become unknown. Otherwise its members are independent yes/no concepts that are
    asked for together. Degrees (soft truth) make no categorical group: they do not sum to one.

    Args:
        names: the attributes.
        kept: (K,) positions of those that are kept.
        truth: (N or C, A) in [0, 1], NaN where nobody knows.
        per_class: whether truth is the same for all images of a class.
        soft: whether truth holds degrees.

    Raises:
        UserError: an attribute that is called like a group.
    """
    members: dict[str, list[tuple[str, int]]] = {}
    for position in kept:
        name, value = split_name(names.values[position])
        known = members.setdefault(name, [])
        if known and "" in (value, known[0][0]):
            raise UserError(
                f"{names.where(int(position))}: '{name}' is the name of an attribute and of a group",
                "rename one of them",
            )
        known.append((value, int(position)))
    groups: list[ConceptGroup] = []
    order: list[int] = []
    freed: list[tuple[tuple[int, ...], np.ndarray]] = []
    for name, found in members.items():
        where = tuple(range(len(order), len(order) + len(found)))
        positions = [position for _, position in found]
        order += positions
        if len(found) == 1:
            value = found[0][0]
            groups.append(ConceptGroup(f"{name}={value}" if value else name, where, ("yes",), False))
            continue
        odd = None if soft else _not_exactly_one(truth[:, positions])
        groups.append(ConceptGroup(name, where, tuple(value for value, _ in found), odd is not None))
        if odd is not None and odd.any():
            freed.append((where, odd))
    concepts = ConceptSet(tuple(groups), per_class)
    notes = [
        f"{int(odd.sum())} {'classes' if per_class else 'images'} without exactly one value of "
        f"'{concepts.groups[concepts.group_of[where[0]]].name}' are unknown in this group"
        for where, odd in freed
    ]
    return Grouped(concepts, np.array(order, np.int64), tuple(freed), tuple(notes))


def split_name(name: str) -> tuple[str, str]:
    """``group::value`` as both, any other name with an empty value."""
    group_name, _, value = name.partition("::")
    return (group_name, value) if group_name and value else (name, "")


def _not_exactly_one(truth: np.ndarray) -> np.ndarray | None:
    """(N,) bool, known examples of which not exactly one member is true; None if the group is not categorical."""
    known = ~np.isnan(truth).any(1)
    odd = known & ((truth > 0.5).sum(1) != 1)
    categorical = known.any() and odd.sum() <= (1 - NEARLY) * known.sum()
    return odd if categorical else None


def constant(concepts: ConceptSet, truth: np.ndarray) -> Sequence[str]:
    """Names of the concepts that are the same wherever they are known, or known nowhere."""
    low, high = np.where(np.isnan(truth), np.inf, truth).min(0), np.where(np.isnan(truth), -np.inf, truth).max(0)
    return [name for name, same in zip(concepts.names, low >= high, strict=True) if same]
