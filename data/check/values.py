"""Values of categorical concepts: words for "nobody knows", one word spelt in two ways, names of single images."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from vitrarium.data.check.findings import Finding, counted
from vitrarium.data.concepts import ConceptGroup, ConceptSet

UNKNOWN_WORDS = frozenset({"", "?", "-", "na", "n/a", "n.a.", "null", "unknown", "missing", "not known"})
"""Words, in small letters, that people write where nothing is known; a cell that says so is to be left empty."""

MANY = 10
"""Values from which a group is looked at as a possible name of single images."""

PER_VALUE = 2
"""Images for each value, on average, below which a group names images rather than what is seen in them."""


def value_findings(concepts: ConceptSet, truth: np.ndarray) -> list[Finding]:
    """What is odd about the words of categorical groups.

    Args:
        concepts: the K concepts.
        truth: (N, K) of the training images, NaN where nobody knows.
    """
    groups = [group for group in concepts.groups if group.categorical]
    unknown = tuple(f"{g.name}={v}" for g in groups for v in g.values if v.strip().lower() in UNKNOWN_WORDS)
    alike = tuple(" = ".join(f"{g.name}={v}" for v in same) for g in groups for same in _alike(g))
    single = tuple(f"{g.name} ({len(g.values)} values)" for g in groups if _names_images(g, truth))
    found = []
    if unknown:
        found.append(
            Finding(
                "warning",
                "unknown_value",
                f"{counted(len(unknown), 'value seems', 'values seem')} to say that nobody knows",
                "leave such cells empty: as words they are learnt and counted like any other value",
                unknown,
            )
        )
    if alike:
        found.append(
            Finding(
                "warning",
                "value_spelling",
                f"{counted(len(alike), 'set of values differs', 'sets of values differ')} only in capitals or blanks",
                "they count as different values: write them alike",
                alike,
            )
        )
    if single:
        found.append(
            Finding(
                "warning",
                "image_name",
                f"{counted(len(single), 'concept has', 'concepts have')} a value of its own for nearly every image",
                "a number or a name of the image or its owner is no concept: remove the column, or name it in "
                "data.ignore",
                single,
            )
        )
    return found


def _alike(group: ConceptGroup) -> list[list[str]]:
    """Values with the same letters."""
    spelt: dict[str, list[str]] = defaultdict(list)
    for value in group.values:
        spelt[" ".join(value.casefold().split())].append(value)
    return [values for values in spelt.values() if len(values) > 1]


def _names_images(group: ConceptGroup, truth: np.ndarray) -> bool:
    own = truth[:, list(group.members)]
    known, used = int((~np.isnan(own).all(axis=1)).sum()), int((own > 0).any(axis=0).sum())
    return used >= MANY and known < PER_VALUE * used
