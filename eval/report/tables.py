"""Tables of the page: every number already in words, every shade already chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from vitrarium.eval.report.breakdown import MOST, Breakdown
from vitrarium.eval.report.cells import Cell
from vitrarium.eval.report.columns import Column
from vitrarium.eval.report.numbers import MISSING, UNITS, shown, span, spread
from vitrarium.eval.report.ranks import Ranking
from vitrarium.eval.report.rows import Row
from vitrarium.eval.report.sentences import sure
from vitrarium.eval.report.style import Palette


def anchor(name: str) -> str:
    """A name that may stand in an address."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "data"


def head_words(row: Row, palette: Palette, under: bool = False) -> dict[str, Any]:
    """How a row begins; a swept row stands under the plain one and says only what is swept."""
    return {
        "label": row.label,
        "short": row.swept_words if under else row.label,
        "colour": palette.colours[row.preset],
        "seeds": len(row.runs),
        "swept": under,
    }


def main_table(rows: Sequence[Row], columns: Sequence[Column], palette: Palette) -> dict[str, Any]:
    """The table: mean, spread over seeds, interval; the best and its equals are marked."""
    chosen = [c for c in columns if c.main]
    best = {c.key: _best(rows, c) for c in chosen}
    plain = {row.preset for row in rows if not row.sweep}
    return {
        "columns": [column_words(c) for c in chosen],
        "rows": [
            {
                **head_words(row, palette, under=bool(row.sweep) and row.preset in plain),
                "cells": [cell_words(row.cell(c), c, best[c.key]) for c in chosen],
            }
            for row in rows
        ],
    }


def column_words(column: Column) -> dict[str, str]:
    """The head of a column."""
    return {
        "title": column.title,
        "unit": UNITS[column.kind],
        "better": {"higher": "↑ higher is better", "lower": "↓ lower is better"}.get(column.better, ""),
        "arrow": {"higher": "↑", "lower": "↓"}.get(column.better, ""),
    }


def _best(rows: Sequence[Row], column: Column) -> Cell | None:
    """The best cell of a column that has a better side and at least two numbers; times are no contest."""
    known = [row.cell(column) for row in rows if not row.cell(column).missing]
    if not column.better or len(known) < 2 or column.kind in ("minutes", "milliseconds"):
        return None
    return (max if column.better == "higher" else min)(known, key=lambda cell: cell.mean)


def cell_words(cell: Cell, column: Column, best: Cell | None) -> dict[str, Any]:
    """A cell in words; ``best`` is the best one of its column, None where nothing is marked."""
    return {
        "missing": cell.missing,
        "value": shown(cell.mean, column.kind),
        "spread": spread(cell.sd, column.kind),
        "span": span(cell.low, cell.high, column.kind),
        "best": best is not None and sure(cell, best),
    }


def cost_table(rows: Sequence[Row], columns: Sequence[Column], palette: Palette) -> dict[str, Any]:
    """Size and time."""
    chosen = [c for c in columns if c.key in ("parameters", "training_minutes", "latency_ms")]
    seen = [[run.progress.get("images_seen") for run in row.runs] for row in rows]
    lines = []
    for row, images in zip(rows, seen, strict=True):
        known = [float(i) for i in images if isinstance(i, int | float)]
        cells = [cell_words(row.cell(c), c, None) for c in chosen]
        mean = sum(known) / len(known) if known else math.nan
        cells.append({"missing": not known, "value": shown(mean, "count"), "spread": "", "span": "", "best": False})
        lines.append({**head_words(row, palette), "cells": cells})
    extra = {"title": "Images seen in training", "unit": "", "better": "", "arrow": ""}
    return {"columns": [*map(column_words, chosen), extra], "rows": lines}


def selective_table(rows: Sequence[Row], columns: Sequence[Column], palette: Palette) -> dict[str, Any]:
    """What not answering brings; only the area is a contest, since answering less always makes fewer errors."""
    keys = ("accuracy", "aurc", "coverage_at_threshold", "risk_at_threshold")
    chosen = [c for c in columns if c.key in keys]
    best = {c.key: _best(rows, c) if c.key == "aurc" else None for c in chosen}
    lines = [
        {**head_words(row, palette), "cells": [cell_words(row.cell(c), c, best[c.key]) for c in chosen]} for row in rows
    ]  # fmt: skip
    return {"columns": [column_words(c) for c in chosen], "rows": lines}


def rank_table(rows: Sequence[Row], ranking: Ranking, palette: Palette) -> dict[str, Any] | None:
    """Ranks, the best shaded; models in the order of their mean rank."""
    if not ranking.columns or len(rows) < 2:
        return None
    order = sorted(range(len(rows)), key=lambda i: (math.isnan(ranking.mean[i]), ranking.mean[i]))
    lines = []
    for i in order:
        ranks = ranking.ranks[i].tolist()
        cells = [
            {"value": MISSING if math.isnan(r) else f"{r:.0f}", "shade": _shade(r, 1, len(rows), reverse=True)}
            for r in ranks
        ]
        mean = MISSING if math.isnan(ranking.mean[i]) else f"{ranking.mean[i]:.1f}"
        counted = f"{ranking.counted[i]} of {len(ranking.columns)}"
        lines.append({**head_words(rows[i], palette), "cells": cells, "mean": mean, "counted": counted})
    return {"columns": [c.title for c in ranking.columns], "rows": lines}


def heat_table(table: Breakdown | None, palette: Palette) -> dict[str, Any] | None:
    """Parts down, models across, shaded from the lowest to the highest number."""
    if table is None:
        return None
    low, high = table.ends
    lines = []
    for place, part in enumerate(table.parts[:MOST]):
        line = table.cells[place]
        cells = [
            {"value": shown(c.mean, "share"), "span": span(c.low, c.high, "share"), "shade": _shade(c.mean, low, high)}
            for c in line
        ]
        human = shown(table.human[place].mean, "share") if table.human else ""
        lines.append({"part": part.replace("_", " "), "cells": cells, "human": human})
    human = shown(table.human[-1].mean, "share") if table.human else ""
    whole = []
    if table.overall is not None:
        # The annotator's mean belongs to the images he or she saw, so it stands beside the models' there.
        aside = "" if table.same is not None else human
        whole.append({"title": "mean over concepts", "cells": _shares(table.overall), "human": aside})
    if table.same is not None:
        title = "on the images of the second annotator"
        whole.append({"title": title, "cells": _shares(table.same), "human": human})
    return {
        "what": table.what,
        "models": [head_words(row, palette) for row in table.rows],
        "lines": lines,
        "human": table.human is not None,
        "whole": whole,
        "more": max(0, len(table.parts) - MOST),
    }


def _shares(cells: Sequence[Cell]) -> list[str]:
    return [shown(c.mean, "share") for c in cells]


def _shade(value: float, low: float, high: float, reverse: bool = False) -> str:
    """A background from near white to teal, dark enough to see and light enough to read on; "" where no number is."""
    if not math.isfinite(value):
        return ""
    place = (value - low) / (high - low) if high > low else 1.0
    place = min(1.0, max(0.0, 1 - place if reverse else place))
    light, strong = (250, 247, 240), (134, 199, 190)
    red, green, blue = (round(a + place * (b - a)) for a, b in zip(light, strong, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
