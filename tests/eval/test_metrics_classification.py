from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.metrics import METRICS, Metric
from vitrarium.eval.metrics.parts.sighting import UnitLayout
from vitrarium.eval.records import Category

UNITS = UnitLayout(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))


@pytest.fixture
def answers():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(200, 4)) * 2
    labels = rng.choice(4, 200, p=[0.5, 0.3, 0.2, 0.0])  # nobody has class 3
    logits[np.arange(200), labels] += 1.5
    return logits.astype(np.float32), labels


def stream(name, *tensors, classes=4, batch=33, **given):
    metric = METRICS.build(name, classes=classes, concepts=given.get("concepts"))
    for start in range(0, len(tensors[0]), batch):
        metric.update(*[torch.as_tensor(t[start : start + batch]) for t in tensors])
    return metric


def softmax(row):
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


def brute(name, logits, labels):
    p = [softmax([float(v) for v in row]) for row in logits]
    said = [row.index(max(row)) for row in p]
    right = [s == y for s, y in zip(said, labels, strict=True)]
    if name == "accuracy":
        return sum(right) / len(right)
    if name in ("balanced_accuracy", "recall"):
        rates = []
        for c in range(4):
            mine = [r for r, y in zip(right, labels, strict=True) if y == c]
            if mine:
                rates.append(sum(mine) / len(mine))
        return sum(rates) / len(rates)
    if name == "precision":
        rates = []
        for c in range(4):
            mine = [r for r, s in zip(right, said, strict=True) if s == c]
            if mine:
                rates.append(sum(mine) / len(mine))
        return sum(rates) / len(rates)
    if name == "nll":
        return -sum(math.log(row[y]) for row, y in zip(p, labels, strict=True)) / len(p)
    if name == "brier":
        total = 0.0
        for row, y in zip(p, labels, strict=True):
            total += sum((v - (c == y)) ** 2 for c, v in enumerate(row))
        return total / len(p)
    total = 0.0
    for b in range(15):
        inside = [i for i, row in enumerate(p) if b / 15 < max(row) <= (b + 1) / 15]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(max(p[i]) for i in inside) / len(inside)
            total += len(inside) / len(p) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "recall", "precision", "nll", "brier", "ece"])
def test_against_loops(answers, name):
    logits, labels = answers
    assert float(stream(name, logits, labels).compute()) == pytest.approx(brute(name, logits, labels), abs=1e-6)


def test_calibration_bins_are_closed_on_the_right():
    # Confidence exactly .6 belongs to (8/15, 9/15], with its neighbours below and not above.
    probabilities = torch.tensor([[0.6, 0.4], [0.59, 0.41], [0.61, 0.39]], dtype=torch.float64)
    ece = stream("ece", probabilities.log().float(), torch.tensor([0, 1, 0]), classes=2)
    low = abs((1 + 0) - (0.6 + 0.59))
    assert float(ece.compute()) == pytest.approx((low + abs(1 - 0.61)) / 3, abs=1e-5)


def test_number_of_bins_is_an_option(answers):
    logits, labels = answers
    metric = METRICS.build({"name": "ece", "bins": 1}, classes=4, concepts=None)
    metric.update(torch.as_tensor(logits), torch.as_tensor(labels))
    p = np.array([softmax([float(v) for v in row]) for row in logits])
    expected = abs((p.argmax(1) == labels).mean() - p.max(1).mean())
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    assert metric.choices["bins"] == 1
    with pytest.raises(UserError, match="bins=0"):
        METRICS.build({"name": "ece", "bins": 0}, classes=4, concepts=None)


def test_reset_forgets(answers):
    logits, labels = answers
    metric = stream("accuracy", logits, labels)
    metric.reset()
    metric.update(torch.as_tensor(logits[:10]), torch.as_tensor(labels[:10]))
    assert float(metric.compute()) == pytest.approx(brute("accuracy", logits[:10], labels[:10]), abs=1e-6)


def test_every_metric_describes_itself(concepts):
    for name in METRICS.list():
        entry = METRICS.get(name)
        given = {"classes": 3, "concepts": concepts, "units": UNITS, "parts": 2} if issubclass(entry, Metric) else {}
        metric = METRICS.build(name, **given)
        assert metric.fields, name
        assert metric.category in get_args(Category), name
        assert metric.higher_is_better in (True, False, None), name
        assert isinstance(metric.choices, dict), name
        assert entry.__doc__, name


def test_concept_metrics_are_refused_without_concepts():
    for name in METRICS.list("*concept*"):
        if issubclass(METRICS.get(name), Metric):
            with pytest.raises(UserError, match="needs a data set with concepts"):
                METRICS.build(name, classes=3, concepts=None)
