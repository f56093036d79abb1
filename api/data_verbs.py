"""``vitrarium data check``, ``show`` and ``example``: what they print."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import vitrarium as vt
from vitrarium.configs.compose import assignments
from vitrarium.configs.errors import UserError
from vitrarium.configs.files import whole_file
from vitrarium.verbs import console, say

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrarium.data.check import DataCheck, Finding

ROWS = 40
"""Classes and concept groups that are printed; the rest is counted."""

ITEMS = 8
"""Names that are printed for a finding; broken files are all named."""

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}

FOUND = 3
"""Exit status when there is more than notes."""


def check(given: argparse.Namespace) -> int:
    """``vitrarium data check``; 3 if there are warnings or errors, else 0."""
    with _progress() as progress:
        found = vt.check_data(given.path, given.fast, progress, **_options(given.overrides))
    if given.json:
        console.out(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_check(found, given.path)
    return 0 if found.clean else FOUND


def show(given: argparse.Namespace) -> int:
    """``vitrarium data show``."""
    _refuse_other_endings(given.out)
    options = _options(given.overrides)
    sheet = vt.show_data(given.path, which=given.split, count=given.count, only=given.only, draw=given.seed, **options)
    _save(sheet, given.out)
    return 0


def example(given: argparse.Namespace) -> int:
    """``vitrarium data example``."""
    _refuse_other_endings(given.out)
    image = vt.example(given.path, given.index, given.split, **_options(given.overrides))
    _save(image, given.out)
    say(f"class {image.info['class']}: {image.info['origin']}")
    return 0


def _refuse_other_endings(out: str) -> None:
    from PIL.Image import registered_extensions

    if Path(out).suffix.lower() not in registered_extensions():
        raise UserError(f"'{out}' is no picture file", "give a name that ends in .png")


def _save(picture: Image, out: str) -> None:
    """Write a picture, which appears whole; its folder is made."""
    from PIL.Image import registered_extensions

    try:
        with whole_file(out) as beside:
            picture.save(beside, format=registered_extensions()[Path(out).suffix.lower()])
    except OSError as error:
        raise UserError(f"'{out}' cannot be written ({error.strerror or error})", "choose another place") from error
    say(f"written: {Path(out)}")


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Options of the data set; ``data.size=32`` means the same as ``size=32``."""
    options = assignments([word.removeprefix("data.") for word in words])
    # Parameters of the Python functions have switches of their own here.
    for name in ("data", "fast", "progress", "which", "count", "only", "draw", "index"):
        if name in options:
            raise UserError(f"no data set has an option '{name}'", "see vitrarium data --help for switches")
    return options


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Counts images on a terminal, says nothing elsewhere."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield None
        return
    with errors.status("reading") as status:
        yield lambda done, total: status.update(f"decoding {done:,} of {total:,} images")


def print_check(found: DataCheck, path: str) -> None:
    """Everything at the terminal: tables first, then the findings, then the line that trains."""
    name = found.spec.get("name", "several data sets")
    say(path if path == name else f"{path}: {name}", "bold")
    if found.because:
        say(f"recognised by {found.because}")
    if found.source:
        _print_source(found)
        _print_classes(found)
        _print_concepts(found)
        _print_parts(found)
    _print_findings(found)
    if found.command:
        say("\ntrain on it with", "bold")
        say(found.command)


def table(title: str, *columns: str) -> Table:
    """A table with its first column to the left and the others to the right; its title stands above it."""
    # A title of the table's own would be wrapped to the width of a narrow table.
    say(f"\n{title}", "bold")
    made = Table()
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left", overflow="fold")
    return made


def _print_source(found: DataCheck) -> None:
    source, images = found.source, found.images
    gives = ", ".join(name.replace("_", " ") for name in source["gives"])
    say(f"images of {source['size']} pixels{f', with {gives}' if gives else ''}")
    if source["credit"]:
        say(str(source["credit"]))
    if images.get("files"):
        low, high = (" x ".join(map(str, images[key])) for key in ("smallest", "largest"))
        sizes = f"of {low} pixels" if low == high else f"from {low} to {high} pixels"
        say(f"originals: {images['files']:,} files {sizes}")
    if images.get("maps"):
        say(f"human maps: {images['maps']:,} of {images['images']:,} images have one")
    if not found.decoded:
        say("images were not decoded (--fast): nothing is said of pixels, maps, keypoints and masks")
    splits = table("splits", "split", "images", "with a copy in another split")
    for row in found.splits:
        leaked = "not looked for" if row["leaked"] is None else f"{row['leaked']:,}"
        splits.add_row(row["name"], f"{row['images']:,}", leaked)
    console.print(splits)


def _print_classes(found: DataCheck) -> None:
    ratio = "" if found.imbalance is None else f", largest {found.imbalance:.1f} times the smallest in train"
    classes = table(f"{len(found.classes)} classes{ratio}", "class", *(row["name"] for row in found.splits))
    for row in found.classes[:ROWS]:
        classes.add_row(Text(row["name"]), *(f"{row[split['name']]:,}" for split in found.splits))
    _close(classes, len(found.classes) - ROWS, "classes")


def _print_concepts(found: DataCheck) -> None:
    if not found.concepts:
        return
    summary = found.concept_summary
    title = (
        f"{summary['concepts']} concepts in {summary['groups']} groups, {summary['categorical']} of them categorical; "
        f"true {'per class' if summary['per_class'] else 'per image'}"
    )
    columns = {"unknown": summary["unknown"], "soft": summary["soft"]}
    shown = [name for name, share in columns.items() if share]
    concepts = table(title, "group", "true in train", *("uncertain" if name == "soft" else name for name in shown))
    concepts.columns[1].justify = "left"
    grouped = groupby(found.concepts, key=lambda row: row["group"])
    for name, members in islice(((name, list(members)) for name, members in grouped), ROWS):
        shares = [sum(row[key] for row in members) / len(members) for key in shown]
        concepts.add_row(Text(name), Text(_prevalence(members)), *(f"{share:.1%}" for share in shares))
    _close(concepts, summary["groups"] - ROWS, "groups")
    ceiling = summary["ceiling"]
    if ceiling["accuracy"] is None:
        say("no training image has all its concepts known")
    else:
        say(
            f"a table from concepts to classes is right for {ceiling['accuracy']:.1%} of the {ceiling['rows']:,} "
            f"training images whose concepts are all known ({ceiling['distinct']:,} different rows"
            + ("; most are unique, so this says little)" if 2 * ceiling["distinct"] > ceiling["rows"] else ")")
        )


def _prevalence(members: Sequence[dict[str, Any]]) -> str:
    """Shares of a group: of each value, or of the yes/no concept."""
    shares = ["never known" if row["prevalence"] is None else _share(row["prevalence"]) for row in members]
    if len(members) == 1:
        return shares[0]
    return ", ".join(f"{row['value']}: {share}" for row, share in zip(members, shares, strict=True))


def _share(value: float) -> str:
    """A share in per cent; a small or large one is not rounded to none or all."""
    return f"{value:.1%}" if 0 < value < 0.01 or 0.99 < value < 1 else f"{value:.0%}"


def _print_parts(found: DataCheck) -> None:
    if not any(row["visible"] is not None or row["masked"] is not None for row in found.parts):
        return
    parts = table(f"{len(found.parts)} parts: share of all images", "part", "keypoint visible", "has a mask")
    for row in found.parts[:ROWS]:
        shares = ("-" if row[key] is None else _share(row[key]) for key in ("visible", "masked"))
        parts.add_row(Text(row["name"]), *shares)
    _close(parts, len(found.parts) - ROWS, "parts")


def _close(made: Table, more: int, what: str) -> None:
    console.print(made)
    if more > 0:
        say(f"and {more} more {what} (--json has them all)")


def _print_findings(found: DataCheck) -> None:
    counts = {kind: sum(f.severity == kind for f in found.findings) for kind in STYLES}
    said = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count)
    say(f"\nfindings: {said or 'none'}", "bold")
    for finding in found.findings:
        _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    line = Text()
    line.append(f"{finding.severity:<8}", STYLES[finding.severity])
    line.append(finding.message)
    if finding.cure:
        line.append(f"; {finding.cure}", "dim")
    console.print(_indented(line))
    most = None if finding.kind == "broken_file" else ITEMS
    for item in finding.items[:most]:
        console.print(_indented(Text(f"        {item}"), 10))
    if most is not None and len(finding.items) > most:
        say(f"        and {len(finding.items) - most} more (--json names them all)", "dim")


def _indented(text: Text, by: int = 8) -> Text:
    """Wrapped to the width of the terminal, with a hanging indent."""
    lines = text.wrap(console, max(console.width - by, 20))
    return Text(f"\n{' ' * by}").join(lines)
