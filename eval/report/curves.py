"""Intervention curves over seeds, and which of them fall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitrarium.eval.report.cells import Cell, summarise
from vitrarium.eval.report.rows import Row
from vitrarium.eval.report.runs import RunResults

Trend = Literal["falls", "may fall", "rises", "flat", "unclear"]

# The scope of the images that a second annotator saw; there the corrections are his or her answers.
SECOND = "second annotator"

# What a person would call a change when nothing says how sure it is: a fifth of a percentage point.
TOLERANCE = 0.002


@dataclass
class Curve:
    """Accuracy against corrected groups for one row, scope and policy.

    Attributes:
        row: whose curve it is.
        scope: "all", or the name of a degradation.
        policy: who chooses what is asked.
        budgets: groups corrected per image, ascending.
        cells: accuracy over the seeds at each budget.
        gain: accuracy at the last budget minus accuracy at the first.
        trend: what the curve does from its first to its last budget.
    """

    row: Row
    scope: str
    policy: str
    budgets: list[int]
    cells: list[Cell]
    gain: Cell
    trend: Trend


def curves_of(rows: Sequence[Row]) -> list[Curve]:
    """The curves of all rows that have one."""
    curves = []
    for row in rows:
        for scope, policy in dict.fromkeys((p.scope, p.policy) for run in row.runs for p in run.curves):
            curve = _curve(row, scope, policy)
            if curve is not None:
                curves.append(curve)
    return curves


def _curve(row: Row, scope: str, policy: str) -> Curve | None:
    """Mean over the seeds at the budgets that all of them have."""
    tables = [
        {p.budget: p for p in run.curves if (p.scope, p.policy) == (scope, policy) and math.isfinite(p.accuracy)}
        for run in row.runs
    ]
    tables = [t for t in tables if t]
    budgets = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    if len(budgets) < 2:
        return None
    cells = []
    for budget in budgets:
        points = [t[budget] for t in tables]
        means, lows, highs = ([getattr(p, c) for p in points] for c in ("accuracy", "low", "high"))
        cells.append(summarise(means, lows, highs, (0.0, 1.0)))
    gains = [t[budgets[-1]].accuracy - t[budgets[0]].accuracy for t in tables]
    gain, trend = judge(gains, [_gain_interval(run, scope, policy) for run in row.runs])
    return Curve(row, scope, policy, budgets, cells, gain, trend)


def _gain_interval(run: RunResults, scope: str, policy: str) -> tuple[float, float]:
    """The interval of the gain over test images, where the run has measured it."""
    for record in run.records:
        # Where everything is asked, the order makes no difference: such a record need not name a policy.
        fits = record.scope == scope and record.choices.get("policy", policy) == policy
        if record.metric == "intervention_gain" and fits:
            return record.low, record.high
    return float("nan"), float("nan")


def judge(gains: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[Cell, Trend]:
    """What a curve does, from the gain of each seed and its interval over test images.

    It falls (rises) when every seed's does by more than the choice of test images explains: the whole interval lies on
    that side of zero. Without intervals a change of more than 0.2 points counts. ``may fall``: the mean is below zero,
    but not surely so. ``flat``: nothing moves at all.
    """
    lows, highs = [i[0] for i in intervals], [i[1] for i in intervals]
    if len(intervals) != len(gains):
        lows, highs = [float("nan")] * len(gains), [float("nan")] * len(gains)
    cell = summarise(gains, lows, highs, (-1.0, 1.0))
    if all(gain == 0 for gain in gains):
        return cell, "flat"
    triples = list(zip(gains, lows, highs, strict=True))
    if all((high if math.isfinite(high) else gain + TOLERANCE) < 0 for gain, _, high in triples):
        return cell, "falls"
    if all((low if math.isfinite(low) else gain - TOLERANCE) > 0 for gain, low, _ in triples):
        return cell, "rises"
    return cell, "may fall" if cell.mean < -TOLERANCE else "unclear"


def scope_title(scope: str) -> str:
    """A scope for people."""
    known = {
        "all": "Clean test images",
        "grey": "Test images in grey",
        "without duplicates": "Without duplicates of training images",
        SECOND: "The images a second annotator saw",
    }
    if scope in known:
        return known[scope]
    if scope.startswith("pixels") and scope[6:].isdigit():
        return f"Test images at {scope[6:]} × {scope[6:]} pixels"
    return scope.replace("_", " ").capitalize()


def policy_title(policy: str) -> str:
    """A policy for people."""
    known = {"random": "Asked in random order", "uncertainty": "Most uncertain concept first"}
    return known.get(policy, policy.replace("_", " ").capitalize())
