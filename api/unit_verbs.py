"""``vitrarium units``: the gallery of any units at the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

import vitrarium as vt
from vitrarium.showing import write_gallery
from vitrarium.verbs import say, working


def units(given: argparse.Namespace) -> None:
    """Write page, picture and table, and say what is on them."""
    options = {name: getattr(given, name) for name in ("split", "top", "only", "limit", "where", "root")}
    with working(f"looking at the units of {given.run}"):
        gallery = vt.gallery(vt.Run(given.run), **options)
    folder = write_gallery(gallery, given.out or Path(given.run) / "units")
    shown = sum(len(exhibits) for _, exhibits in gallery.rooms)
    say(f"{shown} units in {len(gallery.rooms)} rooms: " + ", ".join(name for name, _ in gallery.rooms))
    for note in gallery.notes:
        say(f"note: {note}")
    say(f"written: {folder}")
