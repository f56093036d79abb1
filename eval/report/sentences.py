"""What a model gives up and what it gets, beside the black box, in sentences that claim no more than the runs show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vitrarium.eval.report.cells import Cell
from vitrarium.eval.report.columns import ACCURACY, Column
from vitrarium.eval.report.curves import Curve, scope_title
from vitrarium.eval.report.numbers import few, listed, points, shown, span, times
from vitrarium.eval.report.rows import Row

NO_DIFFERENCE = "no difference that these runs could show"


@dataclass
class Balance:
    """One model beside the baseline.

    Attributes:
        row: the model.
        gives_up: what is worse, beyond chance.
        gets: what is better, beyond chance, or what the baseline does not offer at all.
        even: where no difference could be shown.
        costs: measured once, on one machine: time and size.
        caveat: what a reader must keep in mind, or "".
    """

    row: Row
    gives_up: list[str] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    even: list[str] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)
    caveat: str = ""


def verdict(ours: Cell, theirs: Cell, better: str) -> Literal["better", "worse", "none", "unknown"]:
    """Whether a difference can be claimed: only where both intervals are known and have no point in common."""
    if ours.missing or theirs.missing or not (ours.has_interval and theirs.has_interval):
        return "unknown"
    if ours.overlaps(theirs):
        return "none"
    return "better" if (ours.mean > theirs.mean) == (better == "higher") else "worse"


def balance(row: Row, base: Row, columns: Sequence[Column], curves: Sequence[Curve]) -> Balance:
    """Compare one row with the baseline.

    Args:
        row: the model.
        base: the baseline.
        columns: of the comparison.
        curves: all curves; those of the row on clean images are used.
    """
    said = Balance(row)
    by_key = {c.key: c for c in columns}
    told = ((ACCURACY.key, "class accuracy"), ("concept_accuracy", "concept accuracy"), ("ece", "calibration error"))
    for key, name in told:
        if key in by_key:
            _compare(said, row.cell(key), base, by_key[key], name)
    _concepts(said, row, base)
    own = [c for c in curves if c.row is row and c.policy == "random"]
    _corrections(said, own)
    _size(said, row, base, takes_part=not any(c.scope == "all" and c.trend == "flat" for c in own))
    _costs(said, row, base)
    if min(len(row.runs), len(base.runs)) == 1:
        said.caveat = "One training run: the luck of training is not in these intervals."
    return said


def _compare(said: Balance, ours: Cell, base: Row, column: Column, name: str) -> None:
    """File one metric that both models have."""
    theirs = base.cell(column)
    if ours.missing or theirs.missing:
        return
    both = f"{_with_span(ours)}, {base.title} {_with_span(theirs)}"
    found = verdict(ours, theirs, column.better)
    if found == "none":
        said.even.append(f"{name.capitalize()}: {NO_DIFFERENCE} ({both}).")
    elif found == "unknown":
        said.even.append(f"{name.capitalize()}: {both}; how sure the difference is was not measured.")
    else:
        more = "more" if ours.mean > theirs.mean else "less"
        text = f"{points(ours.mean - theirs.mean).capitalize()} {more} {name} ({both})."
        (said.gets if found == "better" else said.gives_up).append(text)


def _with_span(cell: Cell) -> str:
    interval = span(cell.low, cell.high, "share")
    return f"{percent(cell)}" + (f" [{interval}]" if interval else "")


def percent(cell: Cell) -> str:
    """A mean in per cent, with its unit."""
    return shown(cell.mean, "share", unit=True)


def _concepts(said: Balance, row: Row, base: Row) -> None:
    """Concepts by name, which a black box has not."""
    right, all_right = row.cell("concept_accuracy"), row.cell("all_concepts_right")
    if right.missing or not base.cell("concept_accuracy").missing:
        return
    text = f"Says which concepts it saw; {_with_span(right)} of them are right"
    if not all_right.missing:
        text += f", all at once on {_with_span(all_right)} of the images"
    said.gets.append(text + ".")


def _corrections(said: Balance, curves: Sequence[Curve]) -> None:
    """What happens when a person corrects its concepts."""
    clean = next((c for c in curves if c.scope == "all"), None)
    if clean is None:
        return
    first, last = clean.cells[0], clean.cells[-1]
    way = f"from {shown(first.mean, 'share')} to {percent(last)} when every concept is corrected"
    if clean.trend == "flat":
        said.gives_up.append("Correcting its concepts changes nothing: the class is decided without them.")
    elif clean.trend == "rises":
        said.gets.append(f"A person can correct it: class accuracy rises {way}.")
    elif clean.trend == "falls":
        said.gives_up.append(f"Correct answers hurt it: class accuracy falls {way}.")
    elif clean.trend == "may fall":
        said.even.append(f"Corrections: {NO_DIFFERENCE}, but the mean falls {way}.")
    else:
        said.even.append(f"Corrections of clean images: {NO_DIFFERENCE} ({way}).")


def _size(said: Balance, row: Row, base: Row, takes_part: bool) -> None:
    """How much there is to read; channels without names are not the same thing as concepts."""
    ours, theirs = row.cell("explanation_size"), base.cell("explanation_size")
    if ours.missing or row.cell("concept_accuracy").missing or not takes_part:
        return
    most = _statements(row)
    if most and ours.mean > most - 0.05:
        said.gives_up.append("Its concepts do not carry nine tenths of a decision: the rest is in no concept.")
        return
    text = f"{few(ours.mean)} named statements carry nine tenths of a decision"
    if not theirs.missing and base.cell("concept_accuracy").missing:
        text += f"; in {base.title} {few(theirs.mean)} channels without a name do"
    said.gets.append(text + ".")


def _statements(row: Row) -> int:
    """How many statements the units of a model can make: one per categorical group, one per other unit."""
    units = row.runs[0].model.get("units") or {}
    groups = units.get("groups", []) if isinstance(units, dict) else []
    return sum(1 if g.get("categorical") else len(g.get("values", [])) for g in groups)


def _costs(said: Balance, row: Row, base: Row) -> None:
    """Time, as measured: a machine's other work is in it."""
    kinds = (("training_minutes", "Training", "minutes"), ("latency_ms", "One image", "milliseconds"))
    for key, name, kind in kinds:
        ours, theirs = row.cell(key), base.cell(key)
        if ours.missing or theirs.missing or not theirs.mean > 0:
            continue
        values = f"{shown(ours.mean, kind, unit=True)}, {base.title} {shown(theirs.mean, kind, unit=True)}"  # type: ignore[arg-type]
        said.costs.append(f"{name}: {values} ({times(ours.mean / theirs.mean)}).")


def falling(curves: Sequence[Curve]) -> list[str]:
    """One sentence for each curve that falls, and for those that may."""
    return [
        f"{c.row.label}: {'falls' if c.trend == 'falls' else 'may fall'} from {shown(c.cells[0].mean, 'share')} to "
        f"{percent(c.cells[-1])}"
        for c in curves
        if c.trend in ("falls", "may fall")
    ]


def in_short(rows: Sequence[Row], base: Row | None, curves: Sequence[Curve]) -> list[str]:
    """The report in a few sentences."""
    found: list[str] = []
    plain = [r for r in rows if not r.sweep and not r.cell(ACCURACY).missing]
    if base is not None and not base.cell(ACCURACY).missing:
        found += _accuracy_in_short([r for r in plain if r is not base], base)
    found += _best(plain, "concept_accuracy", "recognises the concepts best")
    random = [c for c in curves if c.policy == "random" and not c.row.sweep]
    clean = {
        trend: [c.row.label for c in random if (c.scope, c.trend) == ("all", trend)] for trend in ("rises", "falls")
    }
    if clean["rises"]:
        found.append(f"On clean images correct answers of a person make {listed(clean['rises'])} more accurate.")
    if clean["falls"]:
        found.append(f"On clean images correct answers make {listed(clean['falls'])} less accurate.")
    for scope in dict.fromkeys(c.scope for c in random if c.scope != "all"):
        rising = [c for c in random if (c.scope, c.trend) == (scope, "rises")]
        if rising:
            best = max(rising, key=lambda c: c.cells[-1].mean)
            way = f"from {shown(best.cells[0].mean, 'share')} to {percent(best.cells[-1])}"
            found.append(f"{scope_title(scope)}: correcting every concept takes {best.row.label} {way}.")
    return found


def _accuracy_in_short(others: Sequence[Row], base: Row) -> list[str]:
    """Who pays for transparency with accuracy."""
    groups: dict[str, list[str]] = {"worse": [], "better": [], "none": [], "unknown": []}
    for row in others:
        groups[verdict(row.cell(ACCURACY), base.cell(ACCURACY), "higher")].append(row.label)
    found, level = [], f"{base.label} ({_with_span(base.cell(ACCURACY))})"
    if groups["none"]:
        everyone = len(groups["none"]) == len(others) > 1
        who = "any other model" if everyone else listed(groups["none"])
        found.append(f"Class accuracy: {NO_DIFFERENCE} between {level} and {who}.")
    if groups["worse"]:
        found.append(f"Less accurate than {level} by more than chance explains: {listed(groups['worse'])}.")
    if groups["better"]:
        found.append(f"More accurate than {level} by more than chance explains: {listed(groups['better'])}.")
    return found


def _best(rows: Sequence[Row], key: str, words: str) -> list[str]:
    """Who is first, and who cannot be told from the first."""
    known = [r for r in rows if not r.cell(key).missing]
    if len(known) < 2:
        return []
    first = max(known, key=lambda r: r.cell(key).mean)
    same = [r.label for r in known if r is not first and r.cell(key).overlaps(first.cell(key))]
    text = f"{first.label} {words} ({_with_span(first.cell(key))})"
    if len(same) == len(known) - 1:
        text += "; the others cannot be told from it"
    elif same:
        text += f"; {listed(same)} cannot be told from it"
    return [text + "."]


def sure(cell: Cell, best: Cell) -> bool:
    """Whether a cell is the best of its column or cannot be told from it."""
    return not cell.missing and (math.isclose(cell.mean, best.mean) or cell.overlaps(best))
