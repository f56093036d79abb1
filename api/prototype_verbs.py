"""``vitrarium prototypes``: the health report and the gallery at the terminal."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import vitrarium as vt
from vitrarium.verbs import console, say, working

SHOWN = 20


def prototypes(given: argparse.Namespace) -> int:
    """Print findings, write gallery and table; 3 if anything was found."""
    if given.json:
        report = vt.prototypes(given.run, root=given.root)
    else:
        with working(f"looking at the prototypes of {given.run}"):
            report = vt.prototypes(given.run, root=given.root)
    folder = report.write(given.out or Path(given.run) / "prototypes")
    rows = report.rows()
    if given.json:
        living, notes = report.health.living, report.health.notes
        console.out(json.dumps({"living": living, "findings": rows, "notes": notes}, indent=2))
        return 3 if rows else 0
    counts = ", ".join(f"{count} {kind}" for kind, count in report.health.counts().items() if count)
    say(f"{report.health.living} living prototypes, {len(rows)} findings{': ' if counts else ''}{counts}")
    for row in rows[:SHOWN]:
        say(f"{row['severity']}: {row['unit']} ({row['kind']}): {row['message']}")
        if row["command"]:
            say(f"    {row['command']}")
    if len(rows) > SHOWN:
        say(f"and {len(rows) - SHOWN} more: {folder / 'health.csv'}")
    for note in report.health.notes:
        say(f"note: {note}")
    say(f"written: {folder}")
    return 3 if rows else 0
