"""AUC of units in the results of an evaluation: for units without a probability, and for nobody else."""

from __future__ import annotations

import pytest
import torch

from vitrarium.eval.axes.records import unit_scores
from vitrarium.eval.collect import collect
from vitrarium.eval.evaluate import evaluate
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.ranking import concept_aucs

IDENTITY = {"run": "r", "preset": "p", "family": "f", "data": "d", "seed": 0}


def measured(model, batches):
    return evaluate(model, lambda split, degradation: batches, identity=IDENTITY, policies=(), bootstrap=20)


def test_axes_have_a_mean_and_a_number_for_each_concept(make_axes, make_batches, concepts):
    model, batches = make_axes(), make_batches(images=200, batch=100)
    found = measured(model, batches)
    collected = collect(model, batches)
    wanted = concept_aucs(collected.evidence.activations[:, :8], collected.concepts)
    present = (collected.concepts > 0.5).sum(0)
    chosen = (present >= 50) & (200 - present >= 50)
    assert bool(chosen.any())
    assert found.value("axis_auc") == pytest.approx(float(wanted[chosen].mean()))
    for k, name in enumerate(concepts.names):
        assert found.value("axis_auc", f"concept:{name}") == pytest.approx(float(wanted[k]))
    mean = next(r for r in found.records if r.metric == "axis_auc" and r.scope == "all")
    assert mean.low <= mean.value <= mean.high
    assert mean.choices["concepts"] == int(chosen.sum())
    assert "over images," in mean.choices["interval"]
    one = next(r for r in found.records if r.metric == "axis_auc" and r.scope != "all")
    assert "images of each label" in one.choices["interval"]
    assert one.category == "concept"
    # "dots" is a group of its own: nothing to mask.
    masked = {r.scope for r in found.records if r.metric == "masked_axis_auc"}
    assert masked == {"all", *(f"concept:{name}" for name in concepts.names if name != "dots")}


def test_too_few_images_leave_a_note_and_no_mean(make_axes, make_batches):
    found = measured(make_axes(), make_batches(images=30))
    assert not [r for r in found.records if r.metric == "axis_auc" and r.scope == "all"]
    assert [r for r in found.records if r.metric == "axis_auc"]
    assert any("no mean axis_auc" in note for note in found.notes)
    assert all(r.value == r.value for r in found.records if "axis_auc" in r.metric)


@pytest.mark.parametrize("evidence", ["concepts", "features"])
def test_other_models_have_none(make_model, make_batches, evidence):
    found = measured(make_model(evidence), make_batches(images=120))
    assert not [r for r in found.records if "axis_auc" in r.metric]


def test_data_without_concepts_have_none(make_axes, make_batches):
    found = measured(make_axes(), make_batches(images=20, with_concepts=False))
    assert not [r for r in found.records if "axis_auc" in r.metric]


def test_both_are_registered_with_their_choices():
    for name in ("axis_auc", "masked_axis_auc"):
        metric = METRICS.build(name)
        assert (metric.category, metric.higher_is_better) == ("concept", True)
        assert "50" in metric.choices["average"]


def test_free_axes_are_no_concepts(make_axes):
    scores = unit_scores(make_axes(channels=12), torch.randn(5, 12))
    assert {name: tuple(values.shape) for name, values in scores.items()} == {
        "axis_auc": (5, 8),
        "masked_axis_auc": (5, 8),
    }
