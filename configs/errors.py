"""How the house speaks to a user whose input it cannot take."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
