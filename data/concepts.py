"""Concepts by name: which there are, which belong together, what they cost to ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError, closest, named_numbers


@dataclass(frozen=True)
class ConceptGroup:
    """Concepts that are asked for together.

    A categorical group holds one concept per possible value, of which exactly one is true; a group that
    is not categorical holds one or more independent yes/no concepts.

    Attributes:
        name: name of the attribute ("petal_colour").
        members: positions of its concepts in the concept vector.
        values: what each member stands for ("red", "blue"); ("yes",) for a single yes/no concept.
        categorical: whether exactly one member is true.
        cost: price of one question about the whole group.
    """

    name: str
    members: tuple[int, ...]
    values: tuple[str, ...]
    categorical: bool
    cost: float = 1.0


@dataclass(frozen=True)
class ConceptSet:
    """All concepts of a data set, in groups.

    Concept ``k`` of the vector (K,) is called ``names[k]``: "petal_colour=red" in a categorical group,
    the plain name otherwise.

    Attributes:
        groups: partition of the K concepts; members of the groups in turn are 0 .. K-1.
        per_class: True when truth was given once per class, False when each image has its own.
    """

    groups: tuple[ConceptGroup, ...]
    per_class: bool = False
    _index: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        members = [m for g in self.groups for m in g.members]
        if members != list(range(len(members))):
            raise ValueError("the groups of a ConceptSet must list the concepts 0 .. K-1 in order")
        names = self.names
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise UserError(f"concept names must differ, given twice: {', '.join(twice)}", "rename one of each pair")
        self._index.update({name: k for k, name in enumerate(names)})

    @staticmethod
    def categorical(
        attributes: Mapping[str, Sequence[str]], costs: Mapping[str, float] | None = None, per_class: bool = False
    ) -> ConceptSet:
        """A set of categorical groups from ``{attribute: values}``; an attribute without values is yes/no."""
        groups, start = [], 0
        for name, given in attributes.items():
            values = tuple(given) or ("yes",)
            members = tuple(range(start, start + len(values)))
            groups.append(ConceptGroup(name, members, values, len(values) > 1, (costs or {}).get(name, 1.0)))
            start += len(values)
        return ConceptSet(tuple(groups), per_class)

    @staticmethod
    def binary(names: Sequence[str], per_class: bool = False) -> ConceptSet:
        """A set of independent yes/no concepts, one group each."""
        return ConceptSet.categorical({name: () for name in names}, per_class=per_class)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K concepts."""
        return tuple(f"{g.name}={v}" if len(g.members) > 1 else g.name for g in self.groups for v in g.values)

    @property
    def group_of(self) -> np.ndarray:
        """(K,) int64: the group of each concept."""
        return np.repeat(np.arange(len(self.groups)), [len(g.members) for g in self.groups])

    @property
    def costs(self) -> np.ndarray:
        """(G,) price of asking for each group."""
        return np.array([g.cost for g in self.groups], dtype=np.float64)

    def priced(self, costs: Mapping[str, float]) -> ConceptSet:
        """The same concepts with other prices of asking.

        Args:
            costs: group to its price, above 0; groups not named keep theirs.

        Raises:
            UserError: an unknown group, or a price that is not above 0.
        """
        prices = named_numbers("concept_costs", costs, [g.name for g in self.groups])
        return replace(self, groups=tuple(replace(g, cost=prices.get(g.name, g.cost)) for g in self.groups))

    def __len__(self) -> int:
        return sum(len(g.members) for g in self.groups)

    def group(self, name: str) -> ConceptGroup:
        """The group called ``name``; refuses an unknown one with the closest names."""
        for group in self.groups:
            if group.name == name:
                return group
        raise UserError(f"unknown concept '{name}'", closest(name, [g.name for g in self.groups]))

    def answer(self, name: str, value: str | float | bool | Sequence[str]) -> dict[int, float]:
        """What an answer in words means for the concept vector.

        Args:
            name: a group ("petal_colour") or a single concept ("petal_colour=red").
            value: for a categorical group one of its values; for a yes/no concept "yes", "no", a bool or a
                probability in [0, 1]; for a concept of a categorical group only "yes" (1); for a group of several
                yes/no concepts those that are present, as a list or joined by "+" ("blue+white"), or "none".

        Returns:
            Concept position to value; a group is always set whole.

        Raises:
            UserError: unknown name, a value that the group does not have, a number outside [0, 1].
        """
        if name in self._index and name not in {g.name for g in self.groups}:
            group = self.groups[int(self.group_of[self._index[name]])]
            if _number(value) == 1.0:
                chosen = self._index[name] if group.categorical else None
                if chosen is None:
                    return {self._index[name]: 1.0}
                return {m: float(m == chosen) for m in group.members}
            if group.categorical:
                raise UserError(
                    f"'{name}={value}' leaves open which value of '{group.name}' is true",
                    f"set {group.name} to one of: {', '.join(group.values)}",
                )
            return {self._index[name]: self._probability(name, value)}
        group = self.group(name)
        if group.categorical:
            if str(value) not in group.values:
                raise UserError(f"'{name}' cannot be '{value}'", closest(str(value), group.values))
            return {m: float(v == str(value)) for m, v in zip(group.members, group.values, strict=True)}
        if len(group.members) > 1:
            present = _present(group, value)
            return {m: float(v in present) for m, v in zip(group.members, group.values, strict=True)}
        return {group.members[0]: self._probability(name, value)}

    def _probability(self, name: str, value: Any) -> float:
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise UserError(f"'{name}' cannot be '{value}'", "give yes, no or a number from 0 to 1")
        return number

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {
            "per_class": self.per_class,
            "groups": [
                {"name": g.name, "values": list(g.values), "categorical": g.categorical, "cost": g.cost}
                for g in self.groups
            ],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ConceptSet:
        """Inverse of :meth:`to_dict`."""
        groups, start = [], 0
        for g in data["groups"]:
            members = tuple(range(start, start + len(g["values"])))
            groups.append(ConceptGroup(g["name"], members, tuple(g["values"]), g["categorical"], g["cost"]))
            start += len(members)
        return ConceptSet(tuple(groups), data["per_class"])


def _present(group: ConceptGroup, value: Any) -> set[str]:
    """Which members of a group of yes/no concepts an answer says are present; the others are absent."""
    if str(value) in group.values:
        return {str(value)}
    words = [str(v) for v in value] if isinstance(value, (list, tuple, set)) else str(value).split("+")
    if words == ["none"]:
        return set()
    for word in words:
        if word not in group.values:
            raise UserError(
                f"'{group.name}' is a group of {len(group.members)} concepts and cannot be '{word}'",
                f"name those that are present, joined by '+', or none; {closest(word, group.values)}",
            )
    return set(words)


def _number(value: Any) -> float | None:
    words = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
