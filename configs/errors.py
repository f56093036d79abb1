"""How the house speaks to a user whose input it cannot take."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: what was given, what was expected, what to do.

    The command line prints the message without a traceback and ends with status 2.

    Args:
        problem: what was given and what was expected, in one clause.
        cure: what to do about it.
    """

    def __init__(self, problem: str, cure: str = "") -> None:
        self.problem, self.cure = problem, cure
        super().__init__(f"{problem}; {cure}" if cure else problem)


class Interrupted(Exception):
    """Work was stopped by the user and its state is saved; the command line ends with status 130."""


def closest(name: str, known: Iterable[str], most: int = 3) -> str:
    """A cure for a misspelt name: the closest known names, or the whole (short) list."""
    known = sorted({str(k) for k in known})
    near = difflib.get_close_matches(str(name), known, n=most, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    if not known:
        return "there are none"
    shown = ", ".join(known[:12])
    return f"known: {shown}" + (f" and {len(known) - 12} more" if len(known) > 12 else "")


def named_numbers(what: str, given: Any, known: Iterable[str], zero: bool = False) -> dict[str, float]:
    """What a user wrote as ``{name: number}``, checked: known names and positive numbers.

    Args:
        what: the option, for messages.
        given: what was written.
        known: the names there are.
        zero: whether 0 is allowed too.

    Raises:
        UserError: no mapping, an unknown name, or something that is not a positive finite number.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{what} is {given!r}", "write a number for each name: {name: number}")
    names, least = set(known), "0 or more" if zero else "more than 0"
    numbers = {_spelt(name, names): value for name, value in given.items()}
    for name, value in numbers.items():
        if name not in names:
            raise UserError(f"{what}: there is no '{name}'", closest(name, names))
        number = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and not zero):
            raise UserError(f"{what}: '{name}' is {value!r}", f"give a number, {least}")
    return {name: float(value) for name, value in numbers.items()}


def _spelt(key: Any, known: Iterable[str]) -> str:
    """A key as a name. YAML reads an unquoted yes or no as true or false: where there is such a name, it was meant."""
    if isinstance(key, bool):
        words = ("yes", "Yes", "true", "True", "on") if key else ("no", "No", "false", "False", "off")
        return next((word for word in words if word in known), words[0])
    return str(key)
