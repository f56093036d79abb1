"""Results as tidy records: one number a row, with every choice that was made to get it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vitrarium.configs.files import whole_file

Category = Literal[
    "task", "concept", "intervention", "compactness", "faithfulness", "alignment", "stability", "robustness", "cost"
]

FLOORS = {"floor: random patches": "random patches", "floor: channels": "raw channels"}
"""Scopes of what prototypes are held against, and their names for people."""


@dataclass
class Record:
    """One measured number.

    Attributes:
        run: name of the run folder.
        preset: name of the preset ("cbm").
        family: row of the family table ("concept bottleneck").
        data: registered name of the data set.
        split: "train", "val" or "test".
        scope: "all", or the part of the split it is about: "class:NAME", "concept:NAME", "without duplicates", or the
            name of a degradation ("grey"), or one of ``FLOORS``.
        seed: of the run.
        category: what kind of quality it measures.
        metric: plain name ("concept_accuracy").
        value: the number; NaN where it is not defined.
        low: lower end of the 95 % interval, NaN if there is none.
        high: upper end.
        higher_is_better: True, False, or None where neither is better.
        choices: every choice that decides the number (baseline, steps, bins, trials ...).
    """

    run: str
    preset: str
    family: str
    data: str
    split: str
    scope: str
    seed: int
    category: Category
    metric: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    higher_is_better: bool | None = True
    choices: dict[str, Any] = field(default_factory=dict)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write ``results.csv``; ``choices`` is JSON in its cell. The file appears whole or not at all."""
    rows = [{**asdict(r), "choices": json.dumps(r.choices, sort_keys=True)} for r in records]
    write_table(path, rows, [f.name for f in fields(Record)])


def read_records(path: Path) -> list[Record]:
    """Read what :func:`write_records` wrote."""
    truth = {"True": True, "False": False, "": None, "None": None}
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            Record(
                **{
                    **row,  # type: ignore[arg-type]
                    "seed": int(row["seed"]),
                    **{number: float(row[number]) for number in ("value", "low", "high")},
                    "higher_is_better": truth[row["higher_is_better"]],
                    "choices": json.loads(row["choices"]),
                }
            )
            for row in csv.DictReader(file)
        ]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write any table as CSV, beside and then renamed, so that a reader never sees half of it."""
    names = list(columns or (rows[0] if rows else []))
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
