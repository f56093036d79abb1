"""Who is first at what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrarium.eval.report.columns import Column
from vitrarium.eval.report.rows import Row


@dataclass
class Ranking:
    """Ranks of the rows in each column.

    Attributes:
        columns: that were ranked.
        ranks: (rows, columns), 1 = best, equal values share the better rank, NaN = no such number.
        mean: (rows,) over the columns that a row has.
        counted: (rows,) in how many columns.
    """

    columns: list[Column]
    ranks: np.ndarray
    mean: np.ndarray
    counted: np.ndarray


def rank(rows: Sequence[Row], columns: Sequence[Column]) -> Ranking:
    """Rank the rows by their means in every column of the main table that has a better side."""
    chosen = [c for c in columns if c.main and c.better and sum(not r.cell(c).missing for r in rows) > 1]
    table = np.full((len(rows), len(chosen)), np.nan)
    for j, column in enumerate(chosen):
        values = np.array([r.cell(column).mean for r in rows])
        values = -values if column.better == "higher" else values
        known = np.isfinite(values)
        table[known, j] = [1 + (values[known] < v).sum() for v in values[known]]
    counted = np.isfinite(table).sum(1)
    sums = np.where(np.isfinite(table), table, 0).sum(1)
    mean = np.where(counted > 0, sums / np.maximum(counted, 1), np.nan)
    return Ranking(chosen, table, mean, counted)
