"""What an error about a concept costs: a yes that is missed, and a yes where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError, closest, named_numbers
from vitrarium.data.concepts import ConceptSet

MISSED, FALSE_ALARM = "missed", "false_alarm"


def error_costs(concepts: ConceptSet, costs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Costs of errors by concept from ``{name: {...}}``; 1 wherever nothing is said.

    - of a yes/no concept, by its name, or of all yes/no concepts of a group, by the group's:
      ``{missed: 5, false_alarm: 1}``;
    - of a categorical group, by its name, what it costs to answer anything else where a value is true:
      ``{value: 5, ...}``.

    Args:
        concepts: the K concepts.
        costs: what the user wrote.

    Returns:
        Two arrays (K,) float64: the cost of missing concept k where it is true, and of saying it where it is not (1 for
        the values of categorical groups, which are never said alone).

    Raises:
        UserError: unknown names or values, costs that are not above 0.
    """
    missed, false_alarm = np.ones(len(concepts)), np.ones(len(concepts))
    members, groups = positions(concepts), {g.name: g for g in concepts.groups}
    written = {str(name): given for name, given in _mapping(costs).items()}
    for name in written:
        if name not in members:
            raise UserError(f"costs: there is no '{name}'", closest(name, members))
    # Groups before their concepts: a concept named by itself and by its group takes its own.
    for name in sorted(written, key=lambda name: -len(members[name])):
        given, group = written[name], groups.get(name)
        if group is not None and group.categorical:
            values = dict(zip(group.values, group.members, strict=True))
            for value, cost in named_numbers(f"costs of '{name}'", given, values).items():
                missed[values[value]] = cost
            continue
        stated = named_numbers(f"costs of '{name}'", given, (MISSED, FALSE_ALARM))
        missed[members[name]] = stated.get(MISSED, 1.0)
        false_alarm[members[name]] = stated.get(FALSE_ALARM, 1.0)
    return missed, false_alarm


def positions(concepts: ConceptSet) -> dict[str, list[int]]:
    """What a name stands for where errors are counted: a group all its concepts, a yes/no concept itself.

    A single value of a categorical group is no name here: the group is answered as a whole.
    """
    names = concepts.names
    single = {names[m]: [m] for group in concepts.groups if not group.categorical for m in group.members}
    return {**single, **{group.name: list(group.members) for group in concepts.groups}}


def _mapping(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"costs is {given!r}", "write {name: {...}} for the concepts whose errors differ in cost")
    return given
