"""``vitrarium edit``: change units of a trained model at the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import vitrarium as vt
from vitrarium.configs.compose import assignments
from vitrarium.configs.errors import UserError, closest
from vitrarium.models.prototypes.edits import EDITS, build_edit
from vitrarium.models.prototypes.journal import Entry
from vitrarium.verbs import print_table, say, working


def edit(given: argparse.Namespace) -> None:
    """Edits, names, undo, replay and log."""
    if given.name:
        _name(given)
        return
    if given.action is None:
        raise UserError("nothing is said to be edited", f"vitrarium edit {given.run} remove UNIT, or --name UNIT=NAME")
    action = given.action.replace("-", "_")
    others = {"undo": _undo, "replay": _replay, "log": _log}
    known = [*EDITS.list(), *others]
    if action not in known:
        raise UserError(f"unknown edit '{given.action}'", closest(action, known))
    if action in others:
        others[action](given)
        return
    editor = vt.edit(given.run, given.root)
    # Units that are concepts have an equals sign in their name: petal_colour=red.
    units, said = editor.model.evidence.units.names, [*given.units, *given.overrides]
    names = [word for word in said if word in units or "=" not in word]
    options = assignments(word for word in said if word not in names)
    if not names:
        raise UserError(f"'{given.action}' names no unit", f"vitrarium edit {given.run} {given.action} prototype_3")
    specs = [{"name": action, "unit": name, **options} for name in names]
    for spec in specs:
        build_edit(spec)
    with working(f"editing {given.run}"):
        made = editor.apply(specs, not given.no_refit)
    print_entries(made, "validation accuracy before and after")
    say(f"written: {given.run}; vitrarium edit {given.run} undo takes it back")
    _remind(given)


def _name(given: argparse.Namespace) -> None:
    """``--name axis_40="dark rim"``, repeatable."""
    if given.action is not None:
        raise UserError(f"'{given.action}' and --name are two commands", "give them one after the other")
    names: dict[str, str] = {}
    for said in given.name:
        unit, sign, name = said.rpartition("=")
        if not sign or not unit:
            raise UserError(f"--name {said}", 'say which unit, and how it is to be called: --name axis_40="dark rim"')
        if names.setdefault(unit, name) != name:
            raise UserError(f"'{unit}' is given two names: '{names[unit]}' and '{name}'", "give one")
    for entry in vt.edit(given.run, given.root).name(names):
        say(f"{entry.edit['unit']} is now called {entry.edit['to']}")
    say(f"written: {given.run}; vitrarium edit {given.run} undo takes it back")


def _undo(given: argparse.Namespace) -> None:
    said = [*given.units, *given.overrides]
    if any(not word.startswith("count=") for word in said):
        raise UserError(f"undo takes no '{said[0]}'", "the last edits go first; say how many: count=2")
    count = assignments(said).get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool):
        raise UserError(f"count={count}", "give a whole number")
    with working(f"editing {given.run}"):
        gone = vt.edit(given.run, given.root).undo(count)
    say("undone: " + "; ".join(words(entry) for entry in gone))
    _remind(given)


def _replay(given: argparse.Namespace) -> None:
    if len(given.units) != 1 or given.overrides:
        raise UserError("replay needs the run whose journal is replayed", f"vitrarium edit {given.run} replay OTHER")
    with working(f"editing {given.run}"):
        made = vt.edit(given.run, given.root).replay(given.units[0])
    print_entries(made, "validation accuracy before and after")
    _remind(given)


def _remind(given: argparse.Namespace) -> None:
    """Numbers that were measured before are of another model."""
    if (Path(given.run) / "evaluation" / "results.csv").exists():
        say(f"evaluation/ holds the numbers of the model before: vitrarium evaluate {given.run}")


def _log(given: argparse.Namespace) -> None:
    entries = vt.edit(given.run, given.root).journal.entries
    if not entries:
        say(f"nobody has edited {given.run}")
        return
    print_entries(entries, f"edits of {given.run}")


def print_entries(entries: Sequence[Entry], title: str) -> None:
    """A line per edit: what, accuracy before and after, and the class that changed most."""
    rows = [
        {
            "edit": words(entry),
            "before": None if entry.before is None else entry.before.accuracy,
            "after": None if entry.after is None else entry.after.accuracy,
            "class that changed most": _most_changed(entry),
            "readout": "fitted again" if entry.refit else "as it was",
        }
        for entry in entries
    ]
    print_table(rows, tuple(rows[0]), title)


def words(entry: Entry) -> str:
    """The edit as a person would say it."""
    return build_edit(entry.edit).words()


def _most_changed(entry: Entry) -> str:
    if entry.before is None or entry.after is None:
        return ""
    changes = {
        name: after - before
        for name, before in entry.before.classes.items()
        if before is not None and (after := entry.after.classes.get(name)) is not None
    }
    name = max(changes, key=lambda n: abs(changes[n]), default="")
    return f"{name} {changes[name]:+.1%}" if name and changes[name] else "none"
