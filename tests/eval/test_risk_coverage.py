"""The records, table and picture of not answering, and that the comparison shows them."""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

from vitrarium.eval.collect import collect
from vitrarium.eval.evaluate import evaluate
from vitrarium.models.abstention import AbstentionRule, confidence_of

IDENTITY = {"run": "r", "preset": "blackbox", "family": "baseline", "data": "toy", "seed": 0}


@pytest.fixture
def measured(make_model, make_batches):
    model = make_model("features")

    def loader_for(split, degradation):
        return make_batches(60, 16, contrast=0.1 if degradation else 1.0)

    collected = collect(model, loader_for("val", None))
    model.abstention = AbstentionRule(score="margin", coverage=0.5).choose(collected.logits, collected.labels)
    return model, evaluate(model, loader_for, identity=IDENTITY, degradations=["grey"], bootstrap=50), collected


def test_records_are_of_the_saved_threshold_and_score(measured):
    model, evaluation, collected = measured
    answered = confidence_of(collected.logits, "margin") >= model.abstention.threshold
    wrong = collected.logits.argmax(1) != collected.labels
    assert evaluation.value("coverage_at_threshold") == pytest.approx(answered.double().mean().item())
    assert evaluation.value("risk_at_threshold") == pytest.approx(wrong[answered].double().mean().item())
    for metric in ("aurc", "coverage_at_threshold", "risk_at_threshold"):
        for scope in ("all", "grey"):
            record = next(r for r in evaluation.records if (r.metric, r.scope) == (metric, scope))
            assert record.choices["confidence"] == "margin"
            assert record.category == "task"
            assert record.low <= record.high
    assert record.choices["threshold"] == model.abstention.threshold


def test_table_and_picture(measured, tmp_path):
    _, evaluation, collected = measured
    folder = evaluation.write(tmp_path / "evaluation")
    with (folder / "risk_coverage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scope"] for row in rows] == ["all"] * 100 + ["grey"] * 100
    confidence = confidence_of(collected.logits, "margin")
    wrong = (collected.logits.argmax(1) != collected.labels).double()
    for row in rows[:100:9]:
        kept = confidence >= float(row["threshold"])
        assert float(row["answered"]) == pytest.approx(kept.double().mean().item())
        assert float(row["answered"]) >= float(row["coverage"]) - 1e-9
        assert float(row["risk"]) == pytest.approx(wrong[kept].mean().item())
    assert float(rows[99]["risk"]) == pytest.approx(1 - evaluation.value("accuracy"))
    with Image.open(folder / "risk_coverage.png") as picture:
        assert picture.width > 600


def test_a_model_without_a_threshold_has_a_curve_but_no_mark(make_model, make_batches):
    evaluation = evaluate(
        make_model(), lambda split, how: make_batches(30), identity=IDENTITY, bootstrap=0, policies=[]
    )
    metrics = {r.metric for r in evaluation.records}
    assert "aurc" in metrics
    assert "risk_at_threshold" not in metrics
    assert evaluation.risks[0].at is None
    assert torch.isnan(evaluation.risks[0].low).all()
