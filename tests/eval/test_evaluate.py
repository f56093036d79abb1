from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import collect
from vitrarium.eval.evaluate import CURVE_COLUMNS, evaluate
from vitrarium.eval.interventions import intervention_curve
from vitrarium.eval.metrics import METRICS, human_agreement
from vitrarium.eval.records import read_records

IDENTITY = {"run": "r", "preset": "cbm", "family": "concept bottleneck", "data": "toy", "seed": 4}
IMAGES = 60


@pytest.fixture
def loaders(make_batches):
    def make(**options):
        asked = []

        def loader_for(split, degradation):
            asked.append((split, degradation))
            contrast = 1.0 if degradation is None else 0.2
            return make_batches(IMAGES, 16, contrast=contrast, **{"missing": 0.1, "shuffled": True, **options})

        return loader_for, asked

    return make


@pytest.fixture
def measured(make_model, loaders, make_truth):
    loader_for, asked = loaders()
    leaked = np.zeros(IMAGES, bool)
    leaked[[3, 40]] = True
    second = make_truth(IMAGES, 8, 0.2).numpy()
    second[20:] = np.nan
    model = make_model()
    evaluation = evaluate(
        model, loader_for, identity=IDENTITY, degradations=("grey",), trials=3, leaked=leaked, second=second,
        bootstrap=100,
    )  # fmt: skip
    return model, evaluation, leaked, second, asked, loader_for


def test_scopes_and_metrics(measured, concepts):
    _, evaluation, _, _, asked, _ = measured
    assert asked == [("test", None), ("test", "grey")]  # each looked at once
    found = {(r.scope, r.metric) for r in evaluation.records}
    sets = {"accuracy", "balanced_accuracy", "ece", "nll", "brier", "concept_accuracy", "all_concepts_right",
            "concept_value_accuracy", "concept_f1", "concept_ece", "intervention_area", "accuracy_fully_corrected",
            "intervention_gain"}  # fmt: skip
    for scope in ("all", "without duplicates", "grey", "second annotator"):
        assert {m for s, m in found if s == scope} >= sets, scope
    ranked = {"aurc", "excess_aurc", "risk_at_coverage", "coverage_at_risk"}
    for scope in ("all", "without duplicates", "grey"):
        assert {m for s, m in found if s == scope} >= ranked, scope
    assert {m for s, m in found if s == "all"} - sets - ranked == {
        "concept_auc", "explanation_size", "local_size", "global_size", "head_sparsity", "parameters", "latency_ms",
        "latency_ms@64",
    }  # fmt: skip
    for c in range(3):
        assert {m for s, m in found if s == f"class:class {c}"} == {"accuracy", "recall", "precision", "support"}
    assert {m for s, m in found if s == "concept:shape"} == {"concept_accuracy", "human_agreement"}
    assert {m for s, m in found if s == "concept:shape=oval"} == {"concept_auc", "concept_f1"}
    assert {m for s, m in found if s == "concept:dots"} == {
        "concept_accuracy", "human_agreement", "concept_auc", "concept_f1"
    }  # fmt: skip
    keys = [(r.scope, r.metric, r.choices.get("policy")) for r in evaluation.records]
    assert len(keys) == len(set(keys))
    assert not evaluation.notes
    for r in evaluation.records:
        assert (r.run, r.preset, r.family, r.data, r.split, r.seed) == (
            "r", "cbm", "concept bottleneck", "toy", "test", 4
        )  # fmt: skip
        assert r.category == METRICS.get(r.metric.split("@")[0]).category
        of_model = ("parameters", "global_size", "head_sparsity", "latency_ms", "latency_ms@64")
        if r.metric not in (*of_model, "support", "concept_f1"):
            assert r.low <= r.high or math.isnan(r.value), (r.scope, r.metric)
            assert "interval" in r.choices


def test_numbers_are_those_of_the_metrics(measured, concepts):
    model, evaluation, leaked, _, _, loader_for = measured
    collected = collect(model, loader_for("test", None))
    right = collected.logits.argmax(1) == collected.labels
    assert evaluation.value("accuracy") == pytest.approx(right.double().mean().item())
    kept = torch.from_numpy(~leaked)[collected.index]
    assert evaluation.value("accuracy", "without duplicates") == pytest.approx(right[kept].double().mean().item())
    for c in range(3):
        mine, given = collected.labels == c, collected.logits.argmax(1) == c
        scope = f"class:class {c}"
        assert evaluation.value("support", scope) == mine.sum()
        for name in ("accuracy", "recall"):
            assert evaluation.value(name, scope) == pytest.approx(right[mine].double().mean().item())
        if given.any():
            assert evaluation.value("precision", scope) == pytest.approx(right[given].double().mean().item())
    for name in ("concept_accuracy", "all_concepts_right", "concept_auc", "concept_f1", "concept_ece"):
        metric = METRICS.build(name, classes=3, concepts=concepts)
        metric.update(collected.evidence.probabilities, collected.concepts)
        assert evaluation.value(name) == pytest.approx(float(metric.compute()), abs=1e-6), name
    curve = intervention_curve(model, collected, "random", trials=3, seed=4, bootstrap=0)
    assert evaluation.value("intervention_area", policy="random") == pytest.approx(curve.area, abs=1e-12)
    assert evaluation.value("accuracy_fully_corrected") == pytest.approx(curve.fully_corrected)
    assert evaluation.value("intervention_gain") == pytest.approx(curve.fully_corrected - curve.start)


def test_the_second_annotator_is_met_on_the_images_he_saw(measured, concepts):
    model, evaluation, _, second, _, loader_for = measured
    collected = collect(model, loader_for("test", None))
    answers = torch.from_numpy(second)[collected.index]
    seen = ~torch.isnan(answers).all(1)
    assert 15 <= int(seen.sum()) <= 20
    part, answers = collected[seen], answers[seen]
    agreement = human_agreement(answers, part.concepts, concepts)
    assert evaluation.value("human_agreement", "second annotator") == pytest.approx(agreement.overall, abs=1e-6)
    assert evaluation.value("human_all_agree", "second annotator") == pytest.approx(agreement.all_right, abs=1e-6)
    assert evaluation.value("human_agreement", "concept:size") == pytest.approx(float(agreement.groups[2]), abs=1e-6)
    right = (part.logits.argmax(1) == part.labels).double().mean()
    assert evaluation.value("accuracy", "second annotator") == pytest.approx(float(right))
    swapped = part[:]
    swapped.concepts = answers
    curve = intervention_curve(model, swapped, "uncertainty", bootstrap=0)
    area = evaluation.value("intervention_area", "second annotator", policy="uncertainty")
    assert area == pytest.approx(curve.area, abs=1e-12)
    record = next(r for r in evaluation.records if (r.scope, r.metric) == ("second annotator", "intervention_gain"))
    assert record.choices["truth"] == "second annotator"


def test_tables(measured, concepts):
    _, evaluation, *_ = measured
    groups = [row for row in evaluation.concept_rows if row["level"] == "group"]
    values = [row for row in evaluation.concept_rows if row["level"] == "value"]
    assert [row["group"] for row in groups] == ["shape", "dots", "size", "rim"]
    assert [row["concept"] for row in values] == list(concepts.names)
    truth = evaluation.collected.concepts[:, :3]
    known = truth[~torch.isnan(truth[:, 0])]
    assert groups[0]["answers"] == len(known)
    assert groups[0]["majority"] == pytest.approx(float(known.mean(0).max()), abs=1e-6)
    assert groups[0]["second_annotator"] == evaluation.value("human_agreement", "concept:shape")
    assert values[1]["positive"] == pytest.approx(float(known[:, 1].mean()), abs=1e-6)
    for row in values:
        assert row["majority"] == pytest.approx(max(row["positive"], 1 - row["positive"]))
    assert sum(row["support"] for row in evaluation.class_rows) == IMAGES
    assert {row["scope"] for row in evaluation.curve_rows} == {"all", "without duplicates", "grey", "second annotator"}
    assert len(evaluation.curve_rows) == 4 * 2 * 5


def test_files(measured, tmp_path):
    _, evaluation, *_ = measured
    folder = evaluation.write(tmp_path / "evaluation")
    risks = {"risk_coverage.csv", "risk_coverage.png"}
    names = {"results.csv", "curves.csv", "curves.png", "per_class.csv", "per_concept.csv", *risks}
    assert {p.name for p in folder.iterdir()} == names
    again = read_records(folder / "results.csv")
    assert len(again) == len(evaluation.records)
    for old, new in zip(evaluation.records, again, strict=True):
        assert (old.scope, old.metric, old.choices) == (new.scope, new.metric, new.choices)
        assert new.value == pytest.approx(old.value, nan_ok=True)
    with (folder / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CURVE_COLUMNS
    start = next(row for row in rows if row["scope"] == "all" and row["budget"] == "0")
    assert float(start["accuracy"]) == pytest.approx(evaluation.value("accuracy"))
    with (folder / "per_concept.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_a_black_box_has_neither_concepts_nor_curves(make_model, loaders, tmp_path):
    loader_for, _ = loaders()
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "curves.csv").write_text("of an earlier model")
    evaluation = evaluate(make_model("features"), loader_for, identity=IDENTITY, degradations=["grey"], bootstrap=20)
    assert {r.category for r in evaluation.records} == {"task", "compactness", "cost"}
    assert not evaluation.curve_rows
    assert not evaluation.concept_rows
    evaluation.write(folder)
    expected = {"results.csv", "per_class.csv", "risk_coverage.csv", "risk_coverage.png"}
    assert {p.name for p in folder.iterdir()} == expected


def test_what_cannot_be_measured_leaves_a_note(make_model, loaders):
    loader_for, _ = loaders()
    logit = make_model({"name": "concepts", "activation": "logit"})
    evaluation = evaluate(logit, loader_for, identity=IDENTITY, bootstrap=0)
    assert "concept_accuracy" in {r.metric for r in evaluation.records}
    assert "intervention_area" not in {r.metric for r in evaluation.records}
    assert [note.split(":")[0] for note in evaluation.notes] == [
        "no curve for policy 'random'", "no curve for policy 'uncertainty'"
    ]  # fmt: skip
    loader_for, _ = loaders(with_concepts=False)
    evaluation = evaluate(make_model(), loader_for, identity=IDENTITY, bootstrap=0)
    assert {r.category for r in evaluation.records} == {"task", "compactness", "cost"}
    assert "no concept annotation" in evaluation.notes[0]


def test_intervals_can_be_switched_off(make_model, loaders):
    evaluation = evaluate(make_model(), loaders()[0], identity=IDENTITY, bootstrap=0, trials=1)
    assert all(math.isnan(r.low) and math.isnan(r.high) for r in evaluation.records)


def test_several_policies_of_one_name_are_told_apart(make_model, loaders):
    policies = ["random", {"name": "random", "order": "one_for_all"}]
    evaluation = evaluate(make_model(), loaders()[0], identity=IDENTITY, policies=policies, bootstrap=0, trials=2)
    assert {row["policy"] for row in evaluation.curve_rows} == {"random", "random (order=one_for_all)"}


def test_mistakes_are_refused_before_anything_runs(make_model, loaders, make_truth):
    loader_for, asked = loaders()
    model = make_model()
    with pytest.raises(UserError, match="did you mean 'random'"):
        evaluate(model, loader_for, identity=IDENTITY, policies=["randm"])
    with pytest.raises(UserError, match="'random' is given twice"):
        evaluate(model, loader_for, identity=IDENTITY, policies=["random", "random"])
    with pytest.raises(UserError, match="lacks seed"):
        evaluate(model, loader_for, identity={k: v for k, v in IDENTITY.items() if k != "seed"})
    assert not asked
    with pytest.raises(UserError, match="'leaked' has 5 rows"):
        evaluate(model, loader_for, identity=IDENTITY, leaked=np.ones(5, bool), bootstrap=0)
    evaluation = evaluate(model, loader_for, identity=IDENTITY, second=np.full((IMAGES, 8), np.nan), bootstrap=0)
    assert "no second annotator" in evaluation.notes[0]
