"""``vitrarium axes``: units held against concepts, and trajectories over layers, at the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.eval.records import write_table
from vitrarium.verbs import print_table, say, working


def axes(given: argparse.Namespace) -> None:
    """Print means and write the report; with ``--trajectory``, draw paths over the layers of several runs."""
    if given.trajectory:
        _trajectory(given)
        return
    if len(given.runs) > 1:
        raise UserError(
            f"{len(given.runs)} runs are given", "give one, and --against another; several go with --trajectory A,B"
        )
    run = given.runs[0]
    with working(f"judging the axes of {run}"):
        report = vt.axes(
            run, given.against, cut=given.cut, reduction=given.reduction, split=given.split, resamples=given.resamples,
            images=given.images, root=given.root,
        )  # fmt: skip
        folder = report.write(given.out or Path(run) / "axes")
    rows = [{**row, "measure": _words(row)} for row in report.summary()]
    print_table(rows, ("measure", "value", "low", "high", "concepts"), f"{run} on {given.split}")
    say(f"held against: {report.against}")
    for note in [*report.notes, *report.judged.notes]:
        say(f"note: {note}")
    say(f"written: {folder / 'axes.html'}")


def _words(row: dict[str, Any]) -> str:
    """The measure, and of which layer where that is not said otherwise."""
    name = str(row["measure"]).replace("_", " ")
    return name if row["concepts"] is not None else f"{name} ({row['about']})"


def _trajectory(given: argparse.Namespace) -> None:
    pair = given.trajectory.split(",")
    if len(pair) != 2:
        raise UserError(f"--trajectory {given.trajectory}", "name two concepts with a comma between them: A,B")
    alone = [name for name in ("against", "cut", "reduction") if getattr(given, name) is not None]
    if alone:
        raise UserError(f"--{alone[0]} has no meaning for a trajectory", "leave it out")
    with working("following images over layers"):
        found = vt.trajectories(
            given.runs, concepts=(pair[0].strip(), pair[1].strip()), split=given.split, count=given.images,
            root=given.root,
        )  # fmt: skip
    folder = Path(given.out or Path(given.runs[0]) / "axes")
    write_table(folder / "trajectories.csv", found.rows())
    say(f"layers: {', '.join(found.layers)}")
    say(f"written: {found.save(folder / 'trajectories.png')}")
