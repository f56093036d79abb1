"""Numbers as people read them, in one way over the whole report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
Kind = Literal["share", "number", "count", "minutes", "milliseconds"]

UNITS: dict[str, str] = {"share": "%", "number": "", "count": "", "minutes": "min", "milliseconds": "ms"}


def shown(value: float, kind: Kind, unit: bool = False) -> str:
    """A value in the unit of its kind; an en dash where there is none.

    Args:
        value: a share is given in [0, 1] and shown in per cent; NaN = there is none.
        kind: of number.
        unit: write the unit after it.
    """
    if not math.isfinite(value):
        return MISSING
    if kind == "share":
        text = f"{100 * value:.1f}"
    elif kind == "count":
        text = f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    elif kind == "milliseconds" and abs(value) < 10:
        text = f"{value:.2f}"
    else:
        text = f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
    if not text.strip("-0."):
        text = text.lstrip("-")
    tail = f"\N{NO-BREAK SPACE}{UNITS[kind]}" if unit and UNITS[kind] else ""
    return text.replace("-", MINUS) + tail


def span(low: float, high: float, kind: Kind) -> str:
    """An interval ("98.4 to 99.3"), empty where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)) or (kind == "count" and low == high):
        return ""
    return f"{shown(low, kind)} to {shown(high, kind)}"


def spread(sd: float, kind: Kind) -> str:
    """A standard deviation ("± 0.12"), empty where there is none; a share with two digits, as it is small."""
    if not math.isfinite(sd):
        return ""
    if kind == "count" and sd == 0:
        return ""
    digits = f"{100 * sd:.2f}" if kind == "share" else shown(sd, kind) if kind == "count" else f"{sd:.2f}"
    return f"±\N{NO-BREAK SPACE}{digits}"


def few(value: float) -> str:
    """A small count in a sentence ("4.1", "57")."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def points(difference: float) -> str:
    """The size of a difference of shares in percentage points ("1.3 percentage points")."""
    value = f"{100 * abs(difference):.1f}"
    return f"{value} percentage point{'' if value == '1.0' else 's'}"


def times(ratio: float) -> str:
    """A ratio ("1.08 times")."""
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def listed(names: Sequence[str]) -> str:
    """A list as people write it: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
