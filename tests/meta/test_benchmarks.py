"""Benchmarks of layers run, and their two sides agree."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_modules(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def test_similarities_are_those_of_the_released_ways(benchmark_modules, capsys):
    records = benchmark_modules("prototype_similarity").rows(quick=True)
    assert [record["target"] for record in records if record["target"]] == [1.15, 2.0]
    for record in records:
        assert set(record) == set(benchmark_modules("common").FIELDS)
        assert record["difference"] < 1e-4
        assert record["ratio"] == pytest.approx(record["theirs"] / record["ours"])


def test_every_group_has_its_rows(benchmark_modules):
    for module in benchmark_modules("prototypes").GROUPS.values():
        assert callable(benchmark_modules(module).rows)


def test_whitening_and_turning_are_those_of_the_released_ways(benchmark_modules):
    records = benchmark_modules("whitening").rows(quick=True)
    worst = {"rotation": 1e-3, "largest |R R^T - I|": 1e-5, "whitening": 1e-4, "largest |eigenvalue - 1|": 0.1}
    for record in records:
        assert set(record) == set(benchmark_modules("common").FIELDS)
        assert record["difference"] <= next(most for start, most in worst.items() if record["name"].startswith(start))
    assert {record["target"] for record in records if record["target"]} == {20.0, 2.0}
