"""What units look at, in tables and on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitrarium.eval.records import FLOORS, read_records, write_records
from vitrarium.eval.report import compare
from vitrarium.eval.report.columns import LOOKING, floor_key
from vitrarium.eval.report.looking import units_table
from vitrarium.eval.report.rows import plain_rows
from vitrarium.eval.report.style import Palette

VALUES = {
    "consistency": 0.8,
    "consistency@top": 0.7,
    "purity": 0.6,
    "stability": 0.9,
    "part_localisation@pointing": 0.5,
}
SIZES = {"global_size": 120.0, "local_size": 12.0}


def add(folder: Path, numbers: dict[str, float], scope: str = "all") -> None:
    """Write further records into a run folder."""
    path = folder / "evaluation" / "results.csv"
    records = read_records(path)
    one = replace(records[0], scope=scope, low=float("nan"), high=float("nan"), choices={})
    more = []
    for metric, value in numbers.items():
        sized, stable = metric in SIZES, metric == "stability"
        category = "compactness" if sized else "stability" if stable else "alignment"
        more.append(replace(one, metric=metric, value=value, category=category, higher_is_better=not sized))
    write_records(path, [*records, *more])


@pytest.fixture
def comparison(run):
    runs = [run("blackbox"), run("cbm")]
    for folder in runs:
        add(folder, SIZES)
    add(runs[1], VALUES)
    for place, scope in enumerate(FLOORS):
        add(runs[1], {metric: value / (place + 2) for metric, value in VALUES.items()}, scope)
    return compare(runs)


def test_columns_of_units_and_floors(comparison):
    keys = [c.key for c in comparison.columns]
    assert {"consistency", "purity", "stability", "local_size", "global_size"} <= set(keys)
    main = {c.key: c for c in comparison.columns if c.main}
    assert {"consistency", "purity", "stability", "local_size"} <= set(main)
    row = next(n for n in comparison.numbers() if n["preset"] == "cbm")
    for scope, share in zip(FLOORS, (2, 3), strict=True):
        for key in LOOKING:
            assert row[floor_key(key, scope)] == pytest.approx(row[key] / share)
    floors = [c for c in comparison.columns if c.scope in FLOORS]
    assert len(floors) == 2 * len(LOOKING)
    # A floor is no contest: in no main table, no plot, no rank.
    assert not any(c.main or c.explains or c.better for c in floors)
    assert len({c.key for c in comparison.columns}) == len(comparison.columns)


def test_floors_stand_under_their_model(comparison):
    palette = Palette(["cbm"], "blackbox")
    table = units_table(plain_rows(comparison.rows), comparison.columns, palette)
    assert [(r["short"], r["swept"]) for r in table["rows"]] == [
        (comparison.rows[0].label, False), (comparison.rows[1].label, False), ("random patches", True),
        ("raw channels", True),
    ]  # fmt: skip
    titles = [c["title"] for c in table["columns"]]
    cells = [dict(zip(titles, r["cells"], strict=True)) for r in table["rows"]]
    assert [c["Purity"]["value"] for c in cells[1:]] == ["60.0", "30.0", "20.0"]
    assert cells[0]["Purity"]["missing"]
    assert cells[0]["Units in use"]["value"] == "120"
    assert cells[2]["Units in use"]["missing"]
    assert not any(cell["best"] for r in table["rows"] for cell in r["cells"])


def test_the_page_explains_what_it_shows(comparison, tmp_path):
    page = comparison.report(tmp_path / "report").read_text(encoding="utf-8")
    for text in ("The units, and what they look at", "random patches", "raw channels", "<dt>Purity</dt>"):
        assert text in page
    plain = compare([run.folder for run in comparison.runs])
    plain.columns = [c for c in plain.columns if c.key not in ("consistency", *LOOKING)]
    assert "<h2>The units</h2>" in plain.report(tmp_path / "plain").read_text(encoding="utf-8")


def test_older_runs_have_no_such_table(run, tmp_path):
    comparison = compare([run("blackbox"), run("cbm")])
    assert units_table(comparison.rows, comparison.columns, Palette(["cbm"], "blackbox")) is None
    assert "The units" not in comparison.report(tmp_path / "report").read_text(encoding="utf-8")
