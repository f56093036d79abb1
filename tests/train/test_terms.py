"""Loss terms against independent loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.source import DataSource, Split
from vitrarium.models import Evidence, Output
from vitrarium.train.terms.base import Step, build_terms

# Two categorical groups of 3 and 2 values around two yes/no concepts.
CONCEPTS = ConceptSet(
    (
        ConceptGroup("colour", (0, 1, 2), ("red", "blue", "white"), True),
        ConceptGroup("thorns", (3,), ("yes",), False),
        ConceptGroup("size", (4, 5), ("big", "small"), True),
        ConceptGroup("scent", (6,), ("yes",), False),
    )
)


class Rows(Split):
    def __init__(self, labels, truth):
        self.labels, self.truth = np.asarray(labels), truth

    def sample(self, index):
        raise AssertionError("terms count classes without decoding images")


def source(labels=(0, 0, 0, 1), truth=None):
    split = Rows(labels, truth if truth is not None else np.zeros((len(labels), 7), np.float32))
    return DataSource(
        "rows", dict.fromkeys(("train", "val", "test"), split), ("a", "b"), CONCEPTS, frozenset({"concepts"}), 8, "x"
    )


def truth_of(rows, seed=0, unknown=True):
    rng = np.random.default_rng(seed)
    truth = np.zeros((rows, 7))
    truth[np.arange(rows), rng.integers(0, 3, rows)] = 1
    truth[np.arange(rows), 4 + rng.integers(0, 2, rows)] = 1
    truth[:, 3], truth[:, 6] = rng.integers(0, 2, rows), rng.random(rows)
    if unknown:
        truth[0, 0:3] = np.nan
        truth[1, 3] = np.nan
        truth[2, 4:6] = np.nan
    return truth


def step(scores, truth, weight=None, logits=None, label=None):
    n = len(scores)
    evidence = Evidence(scores, scores, scores=scores)
    batch = Batch(torch.zeros(n, 3, 2, 2), torch.zeros(n, dtype=torch.int64) if label is None else label, truth, weight)
    return Step(None, batch, Output(torch.zeros(n, 2) if logits is None else logits, evidence))


def factors_by_hand(train, imbalance):
    """What the true answer and the false one of every concept is multiplied by, from counts in plain loops."""
    present, absent = [1.0] * 7, [1.0] * 7
    for members in ((0, 1, 2), (4, 5)):
        rows = [row for row in train if not any(math.isnan(row[m]) for m in members)]
        counts = {m: sum(float(row[m]) for row in rows) for m in members}
        for m in members:
            if imbalance == "pos_weight":
                present[m] = len(rows) / (len(members) * counts[m])
            if imbalance == "weight":
                ratios = [len(rows) / counts[v] - 1 for v in members]
                present[m] = sum(ratios) / len(members) / (len(members) - 1)
    for m in (3, 6):
        known = [float(row[m]) for row in train if not math.isnan(row[m])]
        ratio = len(known) / sum(known) - 1
        present[m] = ratio if imbalance != "none" else 1.0
        absent[m] = ratio if imbalance == "weight" else 1.0
    return present, absent


def by_hand(scores, truth, weight, present, absent):
    """Every (image, group) loss with its weight, in plain loops."""
    entries = []
    for s, t, w in zip(scores, truth, weight, strict=True):
        for members in ((0, 1, 2), (4, 5)):
            members = list(members)
            if np.isnan(t[members]).any():
                continue
            log_sum = math.log(sum(math.exp(v) for v in s[members]))
            loss = -sum(present[m] * t[m] * (s[m] - log_sum) for m in members)
            entries.append((loss, w[members].mean()))
        for m in (3, 6):
            if np.isnan(t[m]):
                continue
            p = 1 / (1 + math.exp(-s[m]))
            loss = -(present[m] * t[m] * math.log(p) + absent[m] * (1 - t[m]) * math.log(1 - p))
            entries.append((loss, w[m]))
    return entries


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("imbalance", ["none", "weight", "pos_weight"])
@pytest.mark.parametrize("weighted", [False, True])
def test_concept_loss_against_loops(reduction, imbalance, weighted):
    rng = np.random.default_rng(1)
    scores, truth = rng.normal(size=(5, 7)), truth_of(5)
    weight = rng.random((5, 7)) if weighted else np.ones((5, 7))
    train = truth_of(40, seed=3).astype(np.float32)
    data = source([0] * 20 + [1] * 20, train)
    term = build_terms({"concepts": 1.0}, {"concepts": {"reduction": reduction, "imbalance": imbalance}}, data)[
        "concepts"
    ].double()
    value = term(step(torch.tensor(scores), torch.tensor(truth), torch.tensor(weight) if weighted else None))
    entries = by_hand(scores, truth, weight, *factors_by_hand(train, imbalance))
    total = sum(loss * w for loss, w in entries)
    expected = total / 5 if reduction == "sum" else total / sum(w for _, w in entries)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_a_concept_that_is_never_present_does_not_divide_by_zero():
    term = build_terms({"concepts": 1.0}, {"concepts": {"imbalance": "weight"}}, source(truth=np.zeros((4, 7))))
    assert torch.equal(term["concepts"].present, torch.ones(7))
    assert torch.equal(term["concepts"].absent, torch.ones(7))


def test_all_unknown_is_zero_with_a_gradient():
    scores = torch.randn(3, 7, requires_grad=True)
    term = build_terms({"concepts": 1.0}, {}, source())["concepts"]
    loss = term(step(scores, torch.full((3, 7), float("nan"))))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_gradients_are_finite_where_groups_differ_in_width():
    """The padding of narrow groups holds -inf: no NaN may come back from it."""
    scores = torch.randn(6, 7, requires_grad=True)
    build_terms({"concepts": 1.0}, {}, source())["concepts"](step(scores, torch.tensor(truth_of(6)).float())).backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[3:] != 0).all()


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_against_loops(class_weight, smoothing):
    logits = torch.randn(6, 2, dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 0, 1, 0])
    spec = {"cross_entropy": {"class_weight": class_weight, "smoothing": smoothing}}
    term = build_terms({"cross_entropy": 1.0}, spec, source())["cross_entropy"]
    value = term(step(torch.zeros(6, 7), torch.zeros(6, 7), logits=logits, label=label))
    weight = np.array([4 / (2 * 3), 4 / (2 * 1)]) if class_weight == "balanced" else np.ones(2)
    total, norm = 0.0, 0.0
    for row, y in zip(logits.numpy(), label.numpy(), strict=True):
        log_p = row - math.log(np.exp(row).sum())
        total += (1 - smoothing) * weight[y] * -log_p[y] + smoothing / 2 * sum(weight[c] * -log_p[c] for c in range(2))
        norm += weight[y]
    assert float(value) == pytest.approx(total / norm, rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "options", "said"),
    [
        ({"concept": 1.0}, {}, "did you mean 'concepts'"),
        ({"concepts": 1.0}, {"concepts": {"reductoin": "sum"}}, "did you mean 'reduction'"),
        ({"concepts": 1.0}, {"concepts": {"reduction": "median"}}, "no reduction 'median'"),
        ({"concepts": 1.0}, {"concept": {"reduction": "sum"}}, "has options but no weight"),
        ({"cross_entropy": 1.0}, {"cross_entropy": {"smoothing": 1.5}}, "smoothing=1.5"),
    ],
)
def test_refusals(weights, options, said):
    with pytest.raises(UserError, match=said):
        build_terms(weights, options, source())


def test_a_second_label_of_one_term():
    terms = build_terms({"soft": 0.1, "concepts": 1.0}, {"soft": {"name": "concepts", "reduction": "sum"}}, source())
    assert terms["soft"].reduction == "sum"
    assert terms["concepts"].reduction == "mean"
