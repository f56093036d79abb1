"""What a flower can look like, and which look makes which species: the known rule behind the labels.

A species asks for a petal colour and for one value of each of two further attributes; its other five attributes vary
freely. Any two species ask for different values of some attribute, so a flower that meets all conditions of one
species meets those of no other, and counting the conditions met is a linear function of the one-hot concepts
that decides every flower with a margin of one condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "petal_colour": ("white", "yellow", "red", "violet"),
    "petal_count": ("4", "6", "9"),
    "petal_shape": ("round", "pointed", "notched"),
    "disc_colour": ("yellow", "brown", "green"),
    "disc_size": ("small", "large"),
    "thorns": ("no", "yes"),
    "leaf_shape": ("oval", "narrow", "lobed"),
    "leaf_count": ("1", "2", "3"),
}
"""Every attribute with its values; ``thorns`` becomes one yes/no concept, the others a categorical group."""

PARTS = ("petals", "disc", "stem", "leaves", "thorns")
"""Parts of the flower, in the order of part masks and keypoints."""

MOST_CLASSES = 16

_PARTS_OF = {"petal": ("petals",), "disc": ("disc",), "thorns": ("stem", "thorns"), "leaf": ("leaves",)}


@dataclass(frozen=True)
class Species:
    """A class of the data set.

    Attributes:
        name: class name.
        conditions: attribute to the value it must have; attributes not named here vary freely.
    """

    name: str
    conditions: dict[str, str]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts one must look at to tell the species: those its conditions speak of, in order of ``PARTS``."""
        wanted = {part for attribute in self.conditions for part in _PARTS_OF[attribute.split("_")[0]]}
        return tuple(part for part in PARTS if part in wanted)


def _genus(colour: str, first: str, second: str, members: dict[str, tuple[str, str]]) -> tuple[Species, ...]:
    return tuple(
        Species(name, {"petal_colour": colour, first: values[0], second: values[1]}) for name, values in members.items()
    )


GENERA: tuple[tuple[Species, ...], ...] = (
    _genus(
        "white",
        "petal_count",
        "disc_colour",
        {
            "moonstar": ("6", "yellow"),
            "mooneye": ("6", "brown"),
            "moonwheel": ("9", "yellow"),
            "moonshade": ("9", "brown"),
        },
    ),
    _genus(
        "yellow",
        "petal_shape",
        "leaf_shape",
        {
            "suncup": ("round", "narrow"),
            "sunoak": ("round", "lobed"),
            "sunray": ("pointed", "narrow"),
            "sunblaze": ("pointed", "lobed"),
        },
    ),
    _genus(
        "red",
        "thorns",
        "disc_size",
        {
            "firedot": ("no", "small"),
            "firebowl": ("no", "large"),
            "firethorn": ("yes", "small"),
            "firebriar": ("yes", "large"),
        },
    ),
    _genus(
        "violet",
        "leaf_count",
        "petal_shape",
        {
            "duskheart": ("1", "notched"),
            "duskpoint": ("1", "pointed"),
            "duskwing": ("3", "notched"),
            "duskspear": ("3", "pointed"),
        },
    ),
)
"""Four genera by petal colour, four species each: two attributes with two values, all combinations."""


def concept_set(per_class: bool = False) -> ConceptSet:
    """The 22 concepts in 8 groups: seven categorical ones and the yes/no concept ``thorns``."""
    named = {name: () if values == ("no", "yes") else values for name, values in ATTRIBUTES.items()}
    return ConceptSet.categorical(named, per_class=per_class)


def species(classes: int) -> tuple[Species, ...]:
    """The first ``classes`` species, spread evenly over as many genera as leave two species to each.

    From 4 classes on no single attribute tells the class: every value that a species asks for is shown by another
    species too.

    Raises:
        UserError: fewer than 2 or more than ``MOST_CLASSES``.
    """
    if not 2 <= classes <= MOST_CLASSES:
        raise UserError(f"flowers cannot have {classes} classes", f"choose 2 to {MOST_CLASSES}")
    genera = min(len(GENERA), classes // 2)
    chosen: list[Species] = []
    for g in range(genera):
        chosen += GENERA[g][: classes // genera + (g < classes % genera)]
    return tuple(chosen)


def encode(values: np.ndarray) -> np.ndarray:
    """Attribute values as concepts.

    Args:
        values: (N, 8) integers, the position of each attribute's value in ``ATTRIBUTES``; -1 where nobody knows.

    Returns:
        (N, 22) float32: one-hot by categorical group, 0 or 1 for ``thorns``, NaN in groups nobody knows.
    """
    columns = []
    for a, options in enumerate(ATTRIBUTES.values()):
        column = values[:, a]
        if options == ("no", "yes"):
            hot = (column == 1).astype(np.float32)[:, None]
        else:
            hot = (column[:, None] == np.arange(len(options))).astype(np.float32)
        hot[column < 0] = np.nan
        columns.append(hot)
    return np.concatenate(columns, axis=1)


def required(classes: int) -> np.ndarray:
    """Conditions as numbers: (C, 8) int64, the position of the value a species asks for, -1 where it is free."""
    table = np.full((classes, len(ATTRIBUTES)), -1, np.int64)
    for c, kind in enumerate(species(classes)):
        for a, (name, options) in enumerate(ATTRIBUTES.items()):
            if name in kind.conditions:
                table[c, a] = options.index(kind.conditions[name])
    return table


def rule(concepts: np.ndarray, classes: int = 12) -> np.ndarray:
    """The decision: the species whose conditions are met best.

    score(c) = sum of the concepts c asks for (1 - thorns where it asks for none) - number of its conditions; the
    class is that of the largest score, the first one on a tie. A true flower scores 0 for its species and at most
    -1 elsewhere.

    Args:
        concepts: (N, 22) or (22,) in [0, 1]; a NaN counts as a condition not met.
        classes: number of classes of the data set.

    Returns:
        (N,) or scalar int64 class index.
    """
    given = np.atleast_2d(np.asarray(concepts, dtype=np.float64))
    groups = {group.name: group for group in concept_set().groups}
    scores = np.zeros((len(given), classes))
    for c, kind in enumerate(species(classes)):
        for name, value in kind.conditions.items():
            group = groups[name]
            if group.categorical:
                met = given[:, group.members[group.values.index(value)]]
            else:
                met = given[:, group.members[0]] if value == "yes" else 1 - given[:, group.members[0]]
            scores[:, c] += np.nan_to_num(met, nan=0.0) - 1
    decided = scores.argmax(axis=1)
    return decided if np.ndim(concepts) == 2 else decided[0]
