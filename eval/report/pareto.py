"""Which models are beaten by none, and families drawn as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrarium.eval.report.columns import ACCURACY, Column
from vitrarium.eval.report.rows import Row, swept_name


def pareto_front(points: Sequence[Sequence[float]], higher: Sequence[bool]) -> np.ndarray:
    """Which points no other point beats: (N,) bool.

    A point is beaten by one that is at least as good in everything and better in something (Pareto, 1906). Points with
    a missing coordinate are never on the front and beat none.

    Args:
        points: N points of d coordinates, NaN = missing.
        higher: (d,) whether more is better.
    """
    values = np.asarray(points, dtype=np.float64).reshape(len(points), len(higher))
    values = values * np.where(np.asarray(higher), 1.0, -1.0)
    whole = np.isfinite(values.sum(axis=1))
    at_least = (values[:, None] >= values[None]).all(2)
    better = (values[:, None] > values[None]).any(2)
    beaten = (at_least & better & whole[:, None]).any(0)
    return np.asarray(whole & ~beaten)


@dataclass
class Family:
    """The rows of one preset that a swept key joins to a curve.

    Attributes:
        preset: its name.
        key: the swept key.
        rows: in the order of the swept values.
        values: the swept values.
    """

    preset: str
    key: str
    rows: list[Row]
    values: list[Any]

    @property
    def words(self) -> str:
        """What is swept, for people."""
        return swept_name(self.key)


@dataclass
class Plane:
    """Accuracy against one explainability metric.

    Attributes:
        column: of the horizontal axis.
        rows: that have both numbers.
        front: for each row, whether none beats it.
        without: rows that have no such number; their accuracy can only be drawn as a level.
        families: curves of swept presets.
    """

    column: Column
    rows: list[Row]
    front: list[bool]
    without: list[Row] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)


def planes_of(rows: Sequence[Row], columns: Sequence[Column]) -> list[Plane]:
    """One plane for each explainability metric that some row has, if there is another row to hold it against."""
    planes = []
    for column in (c for c in columns if c.explains):
        both = [r for r in rows if not (r.cell(column).missing or r.cell(ACCURACY).missing)]
        families = families_of(both)
        # A swept row with the value of the plain one is drawn once, by whichever has more seeds.
        joined = {id(r) for f in families for r in f.rows}
        both = [r for r in both if id(r) in joined or not any(_doubled(r, f) for f in families)]
        without = [r for r in rows if r.cell(column).missing and not r.cell(ACCURACY).missing]
        if not both or len(both) + len(without) < 2:
            continue
        points = [(r.cell(ACCURACY).mean, r.cell(column).mean) for r in both]
        front = pareto_front(points, (True, column.better == "higher")).tolist()
        planes.append(Plane(column, both, front, without, families))
    return planes


def families_of(rows: Sequence[Row]) -> list[Family]:
    """Presets of which one key was swept, as curves.

    The plain row of the preset joins the curve at the value that its configuration holds; where a swept row has the
    same value, the one with more seeds stands for both.
    """
    found: list[Family] = []
    keys = {(r.preset, r.backbone, next(iter(r.sweep))) for r in rows if len(r.sweep) == 1}
    for preset, backbone, key in sorted(keys):
        own = [r for r in rows if (r.preset, r.backbone) == (preset, backbone) and set(r.sweep) <= {key}]
        best: dict[str, tuple[Any, Row]] = {}
        for row in sorted(own, key=lambda r: len(r.runs)):
            value = row.value_of(key)
            if value is not None:
                best[_canonical(value)] = (value, row)
        pairs = sorted(best.values(), key=lambda pair: _order(pair[0]))
        if len(pairs) > 1:
            found.append(Family(preset, key, [row for _, row in pairs], [value for value, _ in pairs]))
    return found


def _doubled(row: Row, family: Family) -> bool:
    """Whether a row of the family stands for this one."""
    if (row.preset, row.backbone) != (family.preset, family.rows[0].backbone) or not set(row.sweep) <= {family.key}:
        return False
    return _canonical(row.value_of(family.key)) in {_canonical(v) for v in family.values}


def _canonical(value: Any) -> str:
    """The same words for 1 and 1.0."""
    return repr(float(value)) if isinstance(value, int | float) else str(value)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
