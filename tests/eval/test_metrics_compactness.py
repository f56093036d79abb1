from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.collect import collect
from vitrarium.eval.metrics import METRICS
from vitrarium.eval.metrics.compactness import explanation_sizes
from vitrarium.models.readouts.base import Contributions
from vitrarium.models.units import UnitTable


def brute(units, remainder, share, owner):
    sizes = []
    for row, rest in zip(units, remainder, strict=True):
        merged = {}
        for value, statement in zip(row, owner, strict=True):
            merged[statement] = merged.get(statement, 0.0) + float(value)
        ranked = sorted((abs(v) for v in merged.values()), reverse=True)
        total, covered, n = sum(ranked) + abs(float(rest)), 0.0, 0
        while n < len(ranked) and covered < share * total - 1e-9:
            covered += ranked[n]
            n += 1
        sizes.append(n)
    return sizes


def given(units, remainder):
    units = torch.as_tensor(units, dtype=torch.float64)
    return Contributions(units, torch.as_tensor(remainder, dtype=torch.float64), torch.zeros(len(units)), True)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", ["units", "statements"])
def test_against_loops(concepts, share, count):
    rng = np.random.default_rng(0)
    units, remainder = rng.normal(size=(60, 8)) ** 3, rng.normal(size=60) * 0.3
    owner = range(8) if count == "units" else [0, 0, 0, 1, 2, 2, 3, 4]
    sizes = explanation_sizes(given(units, remainder), UnitTable.of_concepts(concepts), share, count)
    assert sizes.tolist() == brute(units, remainder, share, owner)


def test_cases_by_hand():
    table = UnitTable.of_concepts(ConceptSet.binary(["a", "b", "c"]))
    sizes = explanation_sizes(
        given([[9, 1, 0], [-9, 0.5, 0.5], [1, 1, 1], [0, 0, 0], [5, 5, 0]], [0, 0, 30, 0, 0]), table, 0.9
    )
    # The third has a remainder that no unit makes up for: all count. The fourth says nothing.
    assert sizes.tolist() == [1, 1, 3, 0, 2]


def test_pruned_units_do_not_count():
    table = UnitTable.of_concepts(ConceptSet.binary(["a", "b", "c"]))
    table.alive[2] = False
    assert explanation_sizes(given([[1, 1, 0]], [30]), table).tolist() == [2]


def test_on_models(make_model, make_batches):
    for evidence, most in (("features", 6), ({"name": "concepts", "side": 2}, 5)):
        model = make_model(evidence)
        collected = collect(model, make_batches(20, 7))
        metric = METRICS.build("explanation_size")
        sizes = metric.each(model, collected.evidence, collected.logits)
        assert sizes.shape == (20,)
        assert 1 <= sizes.min() <= sizes.max() <= most
        torch.testing.assert_close(metric.each(model, collected.evidence, collected.logits, chunk=3), sizes)


def test_refusals():
    with pytest.raises(UserError, match="share=0"):
        METRICS.build({"name": "explanation_size", "share": 0})
    with pytest.raises(UserError, match="did you mean 'units'"):
        METRICS.build({"name": "explanation_size", "count": "unit"})
    with pytest.raises(UserError, match="repeats=0"):
        METRICS.build({"name": "latency_ms", "repeats": 0})


def test_parameters_leave_out_what_only_training_needs(make_model):
    model = make_model("features", classes=3)
    own = 6 * 3 * 9 + 6 + 12 + 6 * 3 + 3
    assert METRICS.build("parameters").of(model) == own
    model.auxiliary["decoder"], model.auxiliary["policy"] = nn.Linear(4, 4), nn.Linear(2, 2)
    model.train_only.add("decoder")
    assert METRICS.build("parameters").of(model) == own + 6


def test_latency_runs_the_model_in_evaluation_mode(make_model):
    model = make_model().train()
    metric = METRICS.build({"name": "latency_ms", "batch": 2, "repeats": 3, "warmup": 1})
    assert metric.of(model, (3, 8, 8)) > 0
    assert model.backbone.runs == 4
    assert model.training
    assert metric.choices["threads"] == torch.get_num_threads()
