"""What a person writes under ``do``: answers, silence, scores, and places where units may not look."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the image in [0, 1]."""

EVERYWHERE = ("everywhere", "*")
VERBS = ("ban", "score")


@dataclass
class Corrections:
    """What is set, and where units may not look, by unit position.

    Attributes:
        truth: what is true of a unit, in [0, 1].
        scores: the activation that a unit is set to, as a plain number.
        silent: the units that are set to "absent", whatever else they belong to.
        bans: boxes in which a unit may not look.
        everywhere: boxes in which no unit may look.
    """

    truth: dict[int, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    bans: dict[int, list[Box]] = field(default_factory=dict)
    everywhere: list[Box] = field(default_factory=list)

    @property
    def values(self) -> dict[int, float]:
        """Truth in [0, 1] of all units that are set by it; a silent unit is absent."""
        return {**self.truth, **dict.fromkeys(sorted(self.silent), 0.0)}

    @property
    def set_units(self) -> set[int]:
        """The units whose activation is set."""
        return {*self.truth, *self.scores, *self.silent}

    @property
    def units(self) -> set[int]:
        """The units that something was said of by name."""
        return self.set_units | set(self.bans)

    @property
    def confines(self) -> bool:
        """Whether a place is banned."""
        return bool(self.bans or self.everywhere)

    def told(self, names: Sequence[str]) -> list[str]:
        """Names of the units that were set or kept from a place, in order; "everywhere" stands for all of them."""
        return [names[m] for m in sorted(self.units)] + [EVERYWHERE[0]] * bool(self.everywhere)


def read_corrections(
    units: ConceptSet,
    do: Mapping[str, Any],
    kind: str = "concept",
    alive: Sequence[bool] | None = None,
    gates: bool = False,
) -> Corrections:
    """Corrections by name, understood and checked.

    A name is a group, one of its members, or "everywhere" (or "*") for all units, which can only be banned from places.
    What is said of it is one of

    - an answer, as :meth:`ConceptSet.answer` takes it: "yes", "red", 0.8;
    - ``"silent"``: absent; of a group, each member;
    - ``{"score": 0.8}`` or ``"score:0.8"``: the activation itself, of a single unit;
    - ``{"ban": [left, top, right, bottom]}`` or ``"ban:0.1,0.2,0.5,0.6"``: a box where it may not look, as fractions of
      the image; several as a list of boxes, or joined by "+".

    Where a group has a value called so ("silent", say), the value is meant.

    Args:
        units: names and groups of the units.
        do: what is said, by name.
        kind: what a unit is, for messages.
        alive: which units say anything; None = all.
        gates: whether activations can only be in [0, 1].

    Raises:
        UserError: unknown names, impossible answers, numbers or boxes; units that were removed; two things said of one
            unit that exclude each other.
    """
    found = Corrections()
    sets: dict[int, tuple[str, float]] = {}
    by_name = {name: m for m, name in enumerate(units.names)}
    groups = {group.name: group for group in units.groups}
    for key, said in do.items():
        name = str(key)
        if name not in groups and name not in by_name:
            if name not in EVERYWHERE:
                raise UserError(f"unknown {kind} '{name}'", closest(name, [*groups, *by_name, EVERYWHERE[0]]))
            found.everywhere += _everywhere(name, said)
            continue
        group = groups.get(name) or units.groups[int(units.group_of[by_name[name]])]
        members = groups[name].members if name in groups else (by_name[name],)
        verb, given = _verb(name, said, group.values)
        if alive is not None and not any(alive[unit] for unit in members):
            raise UserError(
                f"{kind} '{name}' was removed from this model: whatever is done to it, it says nothing", "leave it out"
            )
        if verb == "ban":
            for unit in members:
                found.bans.setdefault(unit, []).extend(_boxes(name, given))
            continue
        for unit, value in _values(units, name, members, verb, given).items():
            if sets.setdefault(unit, (verb, value)) != (verb, value):
                raise UserError(
                    f"'{name}' sets {kind} '{units.names[unit]}', which is set to something else already",
                    "say one of the two",
                )
    for unit in sorted({*sets, *found.bans}):
        _refuse(f"{kind} '{units.names[unit]}'", sets.get(unit), unit in found.bans, gates)
    found.truth = {unit: value for unit, (verb, value) in sets.items() if verb == "answer"}
    found.scores = {unit: value for unit, (verb, value) in sets.items() if verb == "score"}
    found.silent = {unit for unit, (verb, _) in sets.items() if verb == "silent"}
    return found


def _refuse(unit: str, said: tuple[str, float] | None, banned: bool, gates: bool) -> None:
    """Refuse what has no effect or no meaning."""
    if said is not None and banned:
        raise UserError(
            f"{unit} is set and also kept from a place; once it is set it looks nowhere", "say one of the two"
        )
    if said is not None and said[0] == "score" and gates and not 0 <= said[1] <= 1:
        raise UserError(f"{unit} cannot have the score {said[1]:g}", "give a number from 0 to 1")


def _values(units: ConceptSet, name: str, members: tuple[int, ...], verb: str, given: Any) -> dict[int, float]:
    """What the units are set to by "answer", "score" or "silent"."""
    if verb == "answer":
        return units.answer(name, given)
    if verb == "silent":
        return dict.fromkeys(members, 0.0)
    if len(members) > 1:
        raise UserError(
            f"'{name}' is a group of {len(members)}, and a score is for one unit",
            f"name a member, such as '{units.names[members[0]]}'",
        )
    return {members[0]: _number(name, given)}


def _everywhere(name: str, said: Any) -> list[Box]:
    """What is said of all units: boxes, and nothing else."""
    verb, given = _verb(name, said, ())
    if verb != "ban":
        raise UserError(
            f"'{name}' means all units, and they cannot all be set to '{given}'",
            f"ban a place for all ({name}=ban:0.1,0.2,0.5,0.6), or name one unit",
        )
    return _boxes(name, given)


def _verb(name: str, said: Any, values: tuple[str, ...]) -> tuple[str, Any]:
    """What is meant ("ban", "score", "silent" or "answer"), and what is said with it."""
    if isinstance(said, Mapping):
        if len(said) != 1:
            raise UserError(
                f"'{name}' is told {len(said)} things: {', '.join(map(str, said)) or 'none'}", "say one thing of a unit"
            )
        verb, given = next(iter(said.items()))
        if verb not in VERBS:
            raise UserError(f"'{name}' cannot be told '{verb}'", closest(str(verb), VERBS))
        return str(verb), given
    if not isinstance(said, str) or said in values:
        return "answer", said
    if said == "silent":
        return "silent", said
    verb, colon, given = said.partition(":")
    if colon and verb in VERBS:
        return verb, given
    if said in VERBS:
        example = {"score": "score:0.8", "ban": "ban:0.1,0.2,0.5,0.6"}[said]
        raise UserError(f"'{name}' is told '{said}' and nothing with it", f"write {name}={example}")
    known = VERBS if colon else ("silent",)
    if (colon or len(values) <= 1) and difflib.get_close_matches(verb, known, cutoff=0.7):
        raise UserError(f"'{name}' cannot be '{said}'", closest(verb, known))
    return "answer", said


def _number(name: str, given: Any) -> float:
    """A finite number."""
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"the score of '{name}' is '{given}'", f"give a number: {name}=score:0.8")
    return number


def _boxes(name: str, given: Any) -> list[Box]:
    """One box or several, checked."""
    if isinstance(given, str):
        boxes: list[Any] = [part.split(",") for part in given.split("+")]
    else:
        given = given.tolist() if hasattr(given, "tolist") else given
        many = (
            isinstance(given, Sequence) and given and isinstance(given[0], Sequence) and not isinstance(given[0], str)
        )
        boxes = list(given) if many else [given]
    return [_box(name, box) for box in boxes]


def _box(name: str, given: Any) -> Box:
    """A box inside the image that is not empty."""
    try:
        left, top, right, bottom = (math.nan if isinstance(edge, bool) else float(edge) for edge in given)
    except (TypeError, ValueError):
        said = ",".join(map(str, given)) if isinstance(given, Sequence) and not isinstance(given, str) else given
        raise UserError(
            f"'{name}' cannot be banned from '{said}'",
            f"give left, top, right, bottom as fractions of the image: {name}=ban:0.1,0.2,0.5,0.6",
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            f"the box {left:g},{top:g},{right:g},{bottom:g} of '{name}' is empty or reaches beyond the image",
            "give left < right and top < bottom, as fractions of the image from 0 to 1",
        )
    return left, top, right, bottom
