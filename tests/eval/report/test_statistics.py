"""Means, spreads, intervals, fronts, ranks and trends against other derivations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vitrarium.eval.report.cells import T95, Cell, student, summarise
from vitrarium.eval.report.curves import judge, scope_title
from vitrarium.eval.report.numbers import MISSING, few, listed, points, shown, span, spread, times
from vitrarium.eval.report.pareto import pareto_front
from vitrarium.eval.report.sentences import verdict
from vitrarium.eval.report.style import apart


def test_mean_and_spread_against_numpy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 7):
        values = rng.random(n)
        cell = summarise(values.tolist())
        assert cell.mean == pytest.approx(values.mean())
        assert cell.sd == pytest.approx(values.std(ddof=1))
        half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
        assert cell.low == pytest.approx(values.mean() - half, rel=1e-3)
        assert cell.high == pytest.approx(values.mean() + half, rel=1e-3)
        assert cell.seeds == n


def test_interval_joins_luck_of_training_and_of_images():
    values, lows, highs = [0.90, 0.92, 0.94], [0.88, 0.91, 0.90], [0.91, 0.95, 0.95]
    cell = summarise(values, lows, highs)
    training = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    down, up = np.mean(np.subtract(values, lows)), np.mean(np.subtract(highs, values))
    assert cell.low == pytest.approx(0.92 - math.sqrt(training**2 + down**2), abs=1e-5)
    assert cell.high == pytest.approx(0.92 + math.sqrt(training**2 + up**2), abs=1e-5)


def test_one_seed_keeps_its_bootstrap_interval():
    cell = summarise([0.9], [0.85], [0.93])
    assert (cell.mean, cell.low, cell.high) == (0.9, pytest.approx(0.85), pytest.approx(0.93))
    assert math.isnan(cell.sd)
    bare = summarise([12.0])
    assert bare.mean == 12.0
    assert not bare.has_interval
    assert summarise([0.99], [0.97], [1.2], (0.0, 1.0)).high == 1.0


def test_missing_seeds_are_left_out_and_nothing_is_missing():
    cell = summarise([0.5, float("nan"), 0.7])
    assert (cell.mean, cell.seeds) == (pytest.approx(0.6), 2)
    assert summarise([]).missing
    assert summarise([float("nan")]).missing


def test_students_t():
    for freedom in [*range(1, len(T95) + 1), 40, 100, 1000]:
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_pareto_front_against_brute_force(dimensions):
    rng = np.random.default_rng(dimensions)
    for _ in range(60):
        # Few levels, so that ties and doubles occur.
        points = rng.integers(0, 5, (12, dimensions)).astype(float)
        points[rng.random(points.shape) < 0.1] = np.nan
        higher = [bool(h) for h in rng.integers(0, 2, dimensions)]
        expected = []
        for i, p in enumerate(points):
            beaten = bool(np.isnan(p).any())
            for j, q in enumerate(points):
                if i == j or np.isnan(q).any() or np.isnan(p).any():
                    continue
                no_worse = all((b >= a) if h else (b <= a) for a, b, h in zip(p, q, higher, strict=True))
                better = any((b > a) if h else (b < a) for a, b, h in zip(p, q, higher, strict=True))
                beaten = beaten or (no_worse and better)
            expected.append(not beaten)
        assert pareto_front(points.tolist(), higher).tolist() == expected


def test_pareto_front_of_nothing():
    assert pareto_front([], (True, True)).tolist() == []


def test_a_difference_is_claimed_only_without_overlap():
    base = Cell(0.99, low=0.985, high=0.994, seeds=1)
    assert verdict(Cell(0.98, low=0.975, high=0.986), base, "higher") == "none"
    assert verdict(Cell(0.98, low=0.975, high=0.9849), base, "higher") == "worse"
    assert verdict(Cell(0.98, low=0.975, high=0.9849), base, "lower") == "better"
    assert verdict(Cell(0.999, low=0.995, high=1.0), base, "higher") == "better"
    assert verdict(Cell(0.5), base, "higher") == "unknown", "no interval, no claim"
    assert verdict(Cell(), base, "higher") == "unknown"
    touching = Cell(0.98, low=0.975, high=0.985)
    assert verdict(touching, base, "higher") == "none"


@pytest.mark.parametrize(
    ("gains", "intervals", "trend"),
    [
        ([-0.02, -0.01], [(-0.025, -0.015), (-0.015, -0.002)], "falls"),
        ([-0.02, -0.01], [(-0.025, -0.015), (-0.015, 0.001)], "may fall"),
        ([0.02, 0.01], [(0.01, 0.03), (0.002, 0.02)], "rises"),
        ([0.02, 0.01], [(0.01, 0.03), (-0.002, 0.02)], "unclear"),
        ([0.0, 0.0], [(0.0, 0.0)] * 2, "flat"),
        ([-0.001], [(-0.004, 0.002)], "unclear"),
        ([-0.001], [(math.nan, math.nan)], "unclear"),
        ([-0.004], [(math.nan, math.nan)], "falls"),
        ([0.004], [(math.nan, math.nan)], "rises"),
    ],
)
def test_trend_of_a_curve(gains, intervals, trend):
    cell, found = judge(gains, intervals)
    assert found == trend
    assert cell.mean == pytest.approx(np.mean(gains))


def test_labels_are_set_apart():
    rng = np.random.default_rng(5)
    for _ in range(50):
        wanted = rng.random(7).tolist()
        placed = apart(wanted, 0.1, 0.0, 1.0)
        assert np.diff(np.sort(placed)).min() >= 0.1 - 1e-9
        assert min(placed) >= -1e-9
        assert max(placed) <= 1 + 1e-9
        assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
    assert apart([0.1, 0.5, 0.9], 0.1, 0.0, 1.0) == pytest.approx([0.1, 0.5, 0.9]), "no need, no move"
    assert apart([], 0.1, 0.0, 1.0) == []


def test_labels_move_no_further_than_they_must():
    wanted, gap = [0.5, 0.52, 0.9], 0.1
    grid = np.linspace(0, 1, 51)
    best = min(
        (sum((a - b) ** 2 for a, b in zip(p, wanted, strict=True)))
        for p in itertools.product(grid, repeat=3)
        if p[1] - p[0] >= gap - 1e-9 and p[2] - p[1] >= gap - 1e-9
    )
    placed = apart(wanted, gap, 0.0, 1.0)
    assert sum((a - b) ** 2 for a, b in zip(placed, wanted, strict=True)) <= best + 1e-9


def test_numbers_are_written_for_people():
    thin, hard = "\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}"
    assert shown(0.9913, "share") == "99.1"
    assert shown(0.9913, "share", unit=True) == f"99.1{hard}%"
    assert shown(-0.0123, "share") == "\N{MINUS SIGN}1.2"
    assert shown(-0.0001, "share") == "0.0"
    assert shown(float("nan"), "share") == MISSING == "\N{EN DASH}"
    assert shown(79669, "count") == f"79{thin}669"
    assert shown(2.345, "milliseconds") == "2.35"
    assert shown(12.345, "minutes", unit=True) == f"12.3{hard}min"
    assert span(0.98, 0.994, "share") == "98.0 to 99.4"
    assert span(float("nan"), 1.0, "share") == ""
    assert spread(0.00123, "share") == f"±{hard}0.12"
    assert spread(float("nan"), "share") == ""
    assert points(-0.013) == "1.3 percentage points"
    assert points(0.01) == "1.0 percentage point"
    assert times(1.084) == "1.08 times"
    assert (few(4.14), few(57.0)) == ("4.1", "57")
    assert (listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == ("a", "a and b", "a, b and c")
    assert scope_title("pixels16") == "Test images at 16 × 16 pixels"
    assert scope_title("very_dark") == "Very dark"
