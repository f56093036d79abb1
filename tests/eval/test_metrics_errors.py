"""What the errors about concepts cost, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.eval.metrics import METRICS

CONCEPTS = ConceptSet(
    (
        ConceptGroup("thorns", (0,), ("yes",), False),
        ConceptGroup("colour", (1, 2, 3), ("red", "blue", "white"), True),
        ConceptGroup("size", (4, 5), ("big", "small"), True),
    )
)
COSTS = {"thorns": {"missed": 5, "false_alarm": 2}, "colour": {"red": 3, "white": 7}}


def data(rows=50):
    rng = np.random.default_rng(4)
    truth = np.zeros((rows, 6), np.float32)
    truth[:, 0] = rng.random(rows).round(1)
    truth[np.arange(rows), 1 + rng.integers(0, 3, rows)] = 1
    truth[np.arange(rows), 4 + rng.integers(0, 2, rows)] = 1
    truth[:5, 0], truth[3:9, 1:4], truth[3, :] = np.nan, np.nan, np.nan
    return rng.random((rows, 6)).astype(np.float32), truth


def by_hand(answers, truth, costs):
    each = []
    for p, t in zip(answers, truth, strict=True):
        if np.isnan(t[[0, 1, 4]]).all():
            continue
        spent = 0.0
        if not np.isnan(t[0]) and t[0] != np.float32(0.5) and (p[0] > 0.5) != (t[0] > 0.5):
            spent += costs["missed" if t[0] > 0.5 else "false_alarm"]
        for name, members in (("colour", [1, 2, 3]), ("size", [4, 5])):
            if not np.isnan(t[members]).any() and p[members].argmax() != t[members].argmax():
                spent += costs[name][int(t[members].argmax())]
        each.append(spent)
    return float(np.mean(each))


@pytest.mark.parametrize(
    ("options", "costs"),
    [
        ({"costs": COSTS}, {"missed": 5, "false_alarm": 2, "colour": [3, 1, 7], "size": [1, 1]}),
        ({}, {"missed": 1, "false_alarm": 1, "colour": [1, 1, 1], "size": [1, 1]}),
    ],
)
def test_costs_of_wrong_answers(options, costs):
    answers, truth = data()
    metric = METRICS.build({"name": "concept_error_cost", **options}, classes=2, concepts=CONCEPTS)
    for rows in (slice(0, 20), slice(20, None)):
        metric.update(torch.from_numpy(answers[rows]), torch.from_numpy(truth[rows]))
    assert float(metric.compute()) == pytest.approx(by_hand(answers, truth, costs), rel=1e-6)
    assert metric.choices["costs"] == options.get("costs", {})


def test_true_answers_cost_nothing():
    truth = torch.from_numpy(data()[1]).round()
    metric = METRICS.build({"name": "concept_error_cost", "costs": COSTS}, classes=2, concepts=CONCEPTS)
    metric.update(truth.nan_to_num(0.0), truth)
    assert float(metric.compute()) == 0


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="did you mean 'thorns'"):
        METRICS.build({"name": "concept_error_cost", "costs": {"thorn": {}}}, classes=2, concepts=CONCEPTS)
