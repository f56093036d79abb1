from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics import METRICS, human_agreement, validation_metrics
from vitrarium.models.types import Evidence, Output


@pytest.fixture
def guesses(concepts):
    """(N, K) probabilities: each categorical group sums to one."""
    rng = np.random.default_rng(5)
    p = rng.random((120, len(concepts)))
    for group in concepts.groups:
        if group.categorical:
            block = p[:, list(group.members)]
            p[:, list(group.members)] = block / block.sum(1, keepdims=True)
    return torch.from_numpy(p.astype(np.float32))


def judge(p, t, concepts):
    """By loops: per group the list of (image, right) answers that can be judged."""
    answers = {group.name: [] for group in concepts.groups}
    for i in range(len(p)):
        for group in concepts.groups:
            truth = [float(t[i, m]) for m in group.members]
            if group.categorical:
                if any(math.isnan(v) for v in truth) or truth.count(max(truth)) > 1:
                    continue
                said = max(group.members, key=lambda m: (float(p[i, m]), -m))
                answers[group.name].append((i, said == group.members[truth.index(max(truth))]))
            else:
                for m, v in zip(group.members, truth, strict=True):
                    if not math.isnan(v) and v != 0.5:
                        answers[group.name].append((i, (float(p[i, m]) > 0.5) == (v > 0.5)))
    return answers


def update(name, p, t, concepts):
    metric = METRICS.build(name, classes=2, concepts=concepts)
    for start in range(0, len(p), 50):
        metric.update(p[start : start + 50], t[start : start + 50])
    return metric


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_group_metrics_against_loops(concepts, guesses, make_truth, missing):
    truth = make_truth(120, 1, missing)
    answers = judge(guesses, truth, concepts)
    groups = [np.mean([right for _, right in given]) for given in answers.values()]
    metric = update("concept_accuracy", guesses, truth, concepts)
    assert float(metric.compute()) == pytest.approx(np.mean(groups), abs=1e-6)
    np.testing.assert_allclose(metric.each(metric.sums), groups, atol=1e-6)
    per_image = {}
    for given in answers.values():
        for i, right in given:
            per_image[i] = per_image.get(i, True) and right
    metric = update("all_concepts_right", guesses, truth, concepts)
    assert float(metric.compute()) == pytest.approx(np.mean(list(per_image.values())), abs=1e-6)


def test_soft_and_undecided_truth(concepts):
    truth = torch.tensor(
        [
            [0.2, 0.7, 0.1, 0.6, 0.5, 0.5, 0.5, 1.0],  # size is tied, rim_dark undecided
            [0.0, 0.0, 0.0, 0.4, 0.9, 0.1, float("nan"), 0.0],  # shape has no largest member
            [0.3, 0.3, 0.4, float("nan"), 0.2, float("nan"), 0.0, 0.9],  # size half known
        ]
    )
    guess = torch.tensor([[0.1, 0.8, 0.1, 0.9, 0.5, 0.5, 0.9, 0.9]] * 3)
    metric = update("concept_accuracy", guess, truth, concepts)
    right, known = metric.sums.chunk(2)
    assert known.tolist() == [2, 2, 1, 4]
    assert right.tolist() == [1, 1, 1, 2]
    assert float(metric.compute()) == pytest.approx((1 / 2 + 1 / 2 + 1 / 1 + 2 / 4) / 4)
    every = update("all_concepts_right", guess, truth, concepts)
    assert float(every.compute()) == pytest.approx(1 / 3)


def test_a_group_nobody_knows_is_left_out_of_the_mean(concepts, guesses, make_truth):
    truth = make_truth(120, 2)
    truth[:, 3] = float("nan")
    answers = judge(guesses, truth, concepts)
    assert not answers["dots"]
    expected = np.mean([np.mean([r for _, r in given]) for given in answers.values() if given])
    assert float(update("concept_accuracy", guesses, truth, concepts).compute()) == pytest.approx(expected, abs=1e-6)
    nothing = torch.full_like(truth, float("nan"))
    assert math.isnan(float(update("concept_accuracy", guesses, nothing, concepts).compute()))
    assert math.isnan(float(update("all_concepts_right", guesses, nothing, concepts).compute()))


def test_value_accuracy_and_f1(concepts, guesses, make_truth):
    truth = make_truth(120, 3, 0.2)
    truth[:, 7] = 1.0  # only one label: no F1
    accuracies, f1 = [], []
    for k in range(8):
        known = ~torch.isnan(truth[:, k])
        said, present = (guesses[known, k] > 0.5).numpy(), (truth[known, k] > 0.5).numpy()
        accuracies.append((said == present).mean())
        if 0 < present.sum() < len(present):
            f1.append(f1_score(present, said, zero_division=0.0))
    assert len(f1) == 7
    value = update("concept_value_accuracy", guesses, truth, concepts).compute()
    assert float(value) == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert float(update("concept_f1", guesses, truth, concepts).compute()) == pytest.approx(np.mean(f1), abs=1e-6)


def test_always_no_is_good_by_values_and_bad_by_groups():
    eleven = ConceptSet.categorical({"a": [f"v{i}" for i in range(10)]})
    truth = torch.eye(10)
    nothing = torch.zeros(10, 10)
    assert float(update("concept_value_accuracy", nothing, truth, eleven).compute()) == pytest.approx(0.9)
    assert float(update("concept_accuracy", nothing, truth, eleven).compute()) == pytest.approx(0.1)


def test_concept_calibration_against_loops(concepts, guesses, make_truth):
    truth = make_truth(120, 4, 0.2)
    errors = []
    for k in range(8):
        known = [i for i in range(120) if not math.isnan(float(truth[i, k]))]
        total = 0.0
        for b in range(15):
            inside = [i for i in known if b / 15 < float(guesses[i, k]) <= (b + 1) / 15]
            gap = sum(float(truth[i, k]) - float(guesses[i, k]) for i in inside)
            total += abs(gap)
        errors.append(total / len(known))
    metric = update("concept_ece", guesses, truth, concepts)
    assert float(metric.compute()) == pytest.approx(np.mean(errors), abs=1e-5)
    np.testing.assert_allclose(metric.each(metric.sums), errors, atol=1e-5)


def test_second_annotator_is_judged_where_both_answered(concepts, make_truth):
    truth, second = make_truth(60, 6, 0.1), make_truth(60, 7, 0.3)
    answers = judge(torch.nan_to_num(second), torch.where(torch.isnan(second), second, truth), concepts)
    agreement = human_agreement(second, truth, concepts)
    expected = [np.mean([r for _, r in given]) for given in answers.values()]
    np.testing.assert_allclose(agreement.groups, expected, atol=1e-6)
    assert agreement.overall == pytest.approx(np.mean(expected), abs=1e-6)
    seen = {i for given in answers.values() for i, _ in given}
    wrong = {i for given in answers.values() for i, right in given if not right}
    assert agreement.images == len(seen)
    assert agreement.all_right == pytest.approx(1 - len(wrong) / len(seen), abs=1e-6)
    with pytest.raises(UserError, match="second annotator of shape"):
        human_agreement(second[:10], truth, concepts)


def test_validation_metrics_follow_the_units(make_model, make_batches, concepts):
    names = {"concept_accuracy", "concept_value_accuracy", "concept_f1", "all_concepts_right"}
    task = {"accuracy", "balanced_accuracy", "nll", "ece"}
    assert set(validation_metrics(make_model())) == task | names
    assert set(validation_metrics(make_model("features"))) == task
    assert set(validation_metrics(3)) == task
    assert set(validation_metrics(3, concepts)) == task | names
    model, batches = make_model(), make_batches(50, 16, missing=0.2)
    metrics = validation_metrics(model)
    with torch.no_grad():
        outputs = [model(b.image) for b in batches]
    for output, batch in zip(outputs, batches, strict=True):
        assert all(metric.update_output(output, batch) for metric in metrics.values())
    p = torch.cat([o.evidence.probabilities for o in outputs])
    t = torch.cat([b.concepts for b in batches])
    expected = np.mean([np.mean([r for _, r in given]) for given in judge(p, t, concepts).values()])
    assert float(metrics["concept_accuracy"].compute()) == pytest.approx(expected, abs=1e-6)
    right = torch.cat([o.logits for o in outputs]).argmax(1) == torch.cat([b.label for b in batches])
    assert float(metrics["accuracy"].compute()) == pytest.approx(right.double().mean().item(), abs=1e-6)


def test_a_batch_without_probabilities_or_truth_is_not_counted(make_batches, concepts):
    metric = METRICS.build("concept_accuracy", classes=3, concepts=concepts)
    batch = make_batches(4, 4)[0]
    bare = Output(torch.zeros(4, 3), Evidence(torch.zeros(4, 8), torch.zeros(4, 8)))
    assert not metric.update_output(bare, batch)
    full = Output(torch.zeros(4, 3), Evidence(torch.zeros(4, 8), torch.zeros(4, 8), probabilities=torch.rand(4, 8)))
    assert not metric.update_output(full, make_batches(4, 4, with_concepts=False)[0])
    assert metric.update_output(full, batch)
    assert float(metric.sums.sum()) > 0


def test_double_precision_models_can_be_judged(concepts, guesses, make_truth):
    truth = make_truth(120, 1, 0.3)
    names = ("concept_accuracy", "all_concepts_right", "concept_f1", "concept_ece")
    expected = {name: float(update(name, guesses, truth, concepts).compute()) for name in names}
    torch.set_default_dtype(torch.float64)
    try:
        for name in names:
            found = update(name, guesses.double(), truth.double(), concepts)
            assert float(found.compute()) == pytest.approx(expected[name], abs=1e-5)
            mixed = update(name, guesses.double(), truth, concepts)
            assert float(mixed.compute()) == pytest.approx(expected[name], abs=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)
