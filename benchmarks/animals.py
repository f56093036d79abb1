"""The animals in the zoo: train one small model of each preset, measure it on the test split, move it into the package.

    python benchmarks/animals.py                       # all presets of configs/experiment/animals.yaml
    python benchmarks/animals.py --only cbm_hard       # one of them
    python benchmarks/animals.py --only cbm train.epochs=2 -o runs/try --animals runs/try/animals --page runs/try/zoo.md

Training is ``vitrarium experiment animals``: stopped, it goes on where it was; finished runs are not trained again
(remove their folders to train anew). An animal is called ``<preset>-<data>`` and holds weights (safetensors),
configuration and card, nothing else. The table of numbers in ``docs/zoo.md`` is written anew from all animals.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vitrarium as vt
from vitrarium.configs.files import write_text
from vitrarium.eval.records import read_records
from vitrarium.measuring import card_of
from vitrarium.models import zoo
from vitrarium.models.folder import CARD, CONFIG, WEIGHTS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- numbers:animals -->", "<!-- /numbers -->"
# Columns of the table: heading, metric in the facts of an animal, and by what it is multiplied.
COLUMNS = (
    ("class accuracy", "accuracy", 100),
    ("concept accuracy", "concept_accuracy", 100),
    ("calibration error", "ece", 100),
    ("area under the curve", "intervention_area (random)", 100),
    ("every concept corrected", "accuracy_fully_corrected", 100),
    ("explanation size", "explanation_size", 1),
    ("answered", "coverage_at_threshold", 100),
    ("errors among these", "risk_at_threshold", 100),
)


def move_in(run: vt.Run, animals: Path) -> Path:
    """Copy the model of a measured run to ``animals/<preset>-<data>``; an older one stays until it is complete."""
    names = run.identity()
    name = f"{names['preset']}-{names['data']}"
    place, beside = animals / name, animals / f".{name}.part"
    records = read_records(run.folder / "evaluation" / "results.csv")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for file in (WEIGHTS, CONFIG):
        shutil.copyfile(run.folder / "model" / file, beside / file)
    card = card_of(run, run.model, records, f'vt.load("{zoo.PREFIX}/{name}")')
    (beside / CARD).write_text(card, encoding="utf-8")
    if place.exists():
        shutil.rmtree(place)
    return beside.rename(place)


def table() -> str:
    """All animals with their numbers, in Markdown."""
    headings = ["animal", "what it is", *(heading for heading, _, _ in COLUMNS), "MB"]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for name in zoo.animals():
        facts, folder = zoo.animal_facts(name), zoo.animal_folder(name)
        assert folder is not None
        cells = [_cell(facts["numbers"].get(metric), scale) for _, metric, scale in COLUMNS]
        size = f"{(folder / WEIGHTS).stat().st_size / 1e6:.2f}"
        lines.append(f"| `{name}` | {facts['title'] or facts['preset']} | {' | '.join([*cells, size])} |")
    return "\n".join(lines)


def _cell(number: dict[str, Any] | None, scale: float) -> str:
    if number is None or number["value"] is None:
        return "–"
    value, low, high = (None if number[k] is None else f"{scale * number[k]:.1f}" for k in ("value", "low", "high"))
    return f"{value}" if low is None else f"{value} ({low}–{high})"


def write_page(page: Path) -> None:
    """Put the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise vt.UserError(f"'{page}' has no place for the numbers", f"it needs the lines {BEGIN} and {END}")
    write_text(page, re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, count=1, flags=re.S))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")
    parser.add_argument("--only", action="append", metavar="PRESET", help="train this preset only; repeatable")
    parser.add_argument("-o", "--out", default="runs/animals", help="folder of the runs (default runs/animals)")
    parser.add_argument("--animals", type=Path, default=ROOT / "api" / "animals", help="where the animals live")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "zoo.md", help="page with the table of numbers")
    given = parser.parse_intermixed_args(arguments)
    only = [f"presets=[{','.join(given.only)}]"] if given.only else []
    comparison, report = vt.experiment("animals", *only, *given.overrides, out=given.out)
    for results in comparison.runs:
        print("moved in:", move_in(vt.Run(results.folder), given.animals))
    # The table is about the animals that live there.
    zoo.FOLDER = given.animals
    write_page(given.page)
    print("numbers:", given.page)
    print("report:", report)


if __name__ == "__main__":
    main()
