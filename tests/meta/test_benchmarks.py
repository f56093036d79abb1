"""Benchmarks of prototypes run, and their two sides agree."""

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
