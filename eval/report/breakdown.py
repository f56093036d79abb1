"""One metric, taken apart: concept by concept, class by class, under other conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitrarium.eval.report.cells import Cell, summarise
from vitrarium.eval.report.curves import SECOND, scope_title
from vitrarium.eval.report.rows import Row

# A page shows no more parts than this; results.csv has them all.
MOST = 40


@dataclass
class Breakdown:
    """A table of one metric: parts down, models across.

    Attributes:
        what: what a part is ("concept", "class", "condition").
        parts: names of the parts.
        rows: the models, those that have at least one number.
        cells: (parts, models).
        human: what a second annotator reaches in each part, or None where there was none.
        overall: the mean of each model over the whole, or None.
        same: the mean of each model on the very images that the second annotator saw, or None.
    """

    what: str
    parts: list[str]
    rows: list[Row]
    cells: list[list[Cell]]
    human: list[Cell] | None = None
    overall: list[Cell] | None = None
    same: list[Cell] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest mean, for shading."""
        known = [c.mean for line in self.cells for c in line if not c.missing]
        return (min(known), max(known)) if known else (0.0, 1.0)


def by_concept(rows: Sequence[Row]) -> Breakdown | None:
    """Concept accuracy of each concept group, hardest first, beside what a second annotator reaches."""
    table = _table("concept", rows, "concept_accuracy", "concept:")
    if table is None:
        return None
    _hardest_first(table)
    human = [_human(table.rows, f"concept:{part}") for part in table.parts]
    if any(not cell.missing for cell in human):
        table.human = [*human, _human(table.rows, SECOND, "all")]
        same = [_cell(row, "concept_accuracy", SECOND) for row in table.rows]
        table.same = same if any(not cell.missing for cell in same) else None
    table.overall = [row.cell("concept_accuracy") for row in table.rows]
    return table


def by_class(rows: Sequence[Row]) -> Breakdown | None:
    """How many images of each class are found; hardest first where there are too many to show."""
    table = _table("class", rows, "accuracy", "class:")
    if table is not None and len(table.parts) > MOST:
        _hardest_first(table)
    return table


def by_condition(rows: Sequence[Row], metric: str = "accuracy") -> Breakdown | None:
    """A metric on the clean test split and under every degradation that was measured."""
    scopes = dict.fromkeys(
        r.scope for row in rows for run in row.runs for r in run.records if r.metric == metric and ":" not in r.scope
    )
    table = _of_scopes("condition", rows, metric, sorted(scopes, key=lambda s: s != "all"))
    if table is None or len(table.parts) < 2:
        return None
    table.parts = [scope_title(part) for part in table.parts]
    return table


def _table(what: str, rows: Sequence[Row], metric: str, prefix: str) -> Breakdown | None:
    scopes = dict.fromkeys(
        r.scope for row in rows for run in row.runs for r in run.records
        if r.metric == metric and r.scope.startswith(prefix)
    )  # fmt: skip
    table = _of_scopes(what, rows, metric, list(scopes))
    if table is not None:
        table.parts = [part.removeprefix(prefix) for part in table.parts]
    return table


def _of_scopes(what: str, rows: Sequence[Row], metric: str, scopes: list[str]) -> Breakdown | None:
    cells = [[_cell(row, metric, scope) for row in rows] for scope in scopes]
    kept = [j for j in range(len(rows)) if any(not line[j].missing for line in cells)]
    if not cells or not kept:
        return None
    return Breakdown(what, scopes, [rows[j] for j in kept], [[line[j] for j in kept] for line in cells])


def _cell(row: Row, metric: str, scope: str) -> Cell:
    records = [next((r for r in run.records if r.metric == metric and r.scope == scope), None) for run in row.runs]
    known = [r for r in records if r is not None]
    return summarise([r.value for r in known], [r.low for r in known], [r.high for r in known], (0.0, 1.0))


def _human(rows: Sequence[Row], *scopes: str) -> Cell:
    """The same for every run of a data set: the first that says it is taken."""
    for row in rows:
        for run in row.runs:
            for r in run.records:
                if r.metric == "human_agreement" and r.scope in scopes:
                    return summarise([r.value], [r.low], [r.high], (0.0, 1.0))
    return Cell()


def _hardest_first(table: Breakdown) -> None:
    """Sort the parts by their mean over the models."""
    order = sorted(range(len(table.parts)), key=lambda i: _mean(table.cells[i]))
    table.parts, table.cells = [table.parts[i] for i in order], [table.cells[i] for i in order]


def _mean(cells: Sequence[Cell]) -> float:
    known = [c.mean for c in cells if not c.missing]
    return sum(known) / len(known) if known else 1.0
