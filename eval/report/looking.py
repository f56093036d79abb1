"""The table of units: how many there are, and whether they look at parts of the object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitrarium.eval.records import FLOORS
from vitrarium.eval.report.cells import Cell
from vitrarium.eval.report.columns import LOOKING, SIZES, Column, floor_key
from vitrarium.eval.report.rows import Row
from vitrarium.eval.report.style import Palette
from vitrarium.eval.report.tables import cell_words, column_words, head_words


def units_table(rows: Sequence[Row], columns: Sequence[Column], palette: Palette) -> dict[str, Any] | None:
    """Models with their sizes and what their units look at; under each the floors that were measured beside it.

    Nothing is marked as best: a unit of a black box may be pure and say nothing.

    Returns:
        The table, with ``looking`` = whether parts were measured; None where no row has any of the numbers.
    """
    chosen = [c for c in columns if c.key in (*SIZES, *LOOKING)]
    chosen = [c for c in chosen if any(not row.cell(c).missing for row in rows)]
    if not chosen:
        return None
    lines = []
    for row in rows:
        lines.append({**head_words(row, palette), "cells": [cell_words(row.cell(c), c, None) for c in chosen]})
        for scope, name in FLOORS.items():
            cells = [row.cell(floor_key(c.key, scope)) if c.key in LOOKING else Cell() for c in chosen]
            if any(not cell.missing for cell in cells):
                under = {**head_words(row, palette), "short": name, "swept": True}
                lines.append({**under, "cells": [cell_words(x, c, None) for x, c in zip(cells, chosen, strict=True)]})
    return {
        "columns": [column_words(c) for c in chosen],
        "rows": lines,
        "looking": any(c.key in LOOKING for c in chosen),
    }
