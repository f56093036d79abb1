"""Risk and coverage against naive loops in double precision: order by order where images tie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.metrics import METRICS, Bootstrap
from vitrarium.eval.metrics.selective import (
    area_under_risk_coverage,
    coverage_at_risk,
    harmonic,
    least_area,
    risk_at_coverage,
)
from vitrarium.models.abstention import Ranked


def ranked(confidence, wrong):
    return Ranked(torch.tensor(confidence, dtype=torch.float64), torch.tensor(wrong, dtype=torch.bool))


def naive_area(order):
    """Mean over i of the error among the first i."""
    return np.mean([np.mean(order[: i + 1]) for i in range(len(order))])


def naive_area_with_ties(confidence, wrong):
    """The mean over every order that sorts the confidences."""
    confidence = np.asarray(confidence)
    orders = [p for p in itertools.permutations(range(len(wrong))) if (np.diff(confidence[list(p)]) <= 0).all()]
    return np.mean([naive_area(np.asarray(wrong, float)[list(p)]) for p in orders])


@pytest.fixture
def drawn():
    rng = np.random.default_rng(3)
    confidence = rng.integers(3, 40, 150) / 40  # many ties
    return confidence, rng.random(150) > confidence


def test_harmonic_numbers():
    found = harmonic(torch.tensor([0, 1, 2, 50]))
    assert found.tolist() == pytest.approx([0, 1, 1.5, sum(1 / k for k in range(1, 51))], abs=1e-12)


def test_area_without_ties():
    rng = np.random.default_rng(0)
    confidence, wrong = rng.permutation(60) / 60, rng.random(60) < 0.3
    expected = naive_area(wrong[np.argsort(-confidence)].astype(float))
    assert float(area_under_risk_coverage(*ranked(confidence, wrong).steps())) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "wrong"),
    [
        ([0.9, 0.5, 0.5, 0.5, 0.2], [0, 1, 0, 0, 1]),
        ([0.5] * 6, [1, 0, 0, 1, 0, 0]),
        ([0.9, 0.9, 0.4, 0.4, 0.4, 0.1, 0.1], [1, 0, 1, 1, 0, 0, 1]),
    ],
)
def test_area_with_ties_is_the_mean_over_all_orders(confidence, wrong):
    found = float(area_under_risk_coverage(*ranked(confidence, wrong).steps()))
    assert found == pytest.approx(naive_area_with_ties(confidence, wrong), abs=1e-12)


@pytest.mark.parametrize("errors", [0, 1, 7, 20])
def test_the_least_area_is_that_of_the_best_order(errors):
    best = [0.0] * (20 - errors) + [1.0] * errors
    found = float(least_area(torch.tensor(20.0), torch.tensor(float(errors))))
    assert found == pytest.approx(naive_area(best), abs=1e-12)


def test_risk_at_coverage_answers_ties_together(drawn):
    confidence, wrong = drawn
    wanted = torch.tensor([0.001, 0.1, 0.333, 0.5, 0.9, 1.0], dtype=torch.float64)
    risk, answered = risk_at_coverage(*ranked(confidence, wrong).steps(), wanted)
    for place, share in enumerate(wanted.tolist()):
        threshold = max(t for t in confidence if (confidence >= t).mean() >= share)
        kept = confidence >= threshold
        assert float(risk[place]) == pytest.approx(wrong[kept].mean(), abs=1e-12)
        assert float(answered[place]) == pytest.approx(kept.mean(), abs=1e-12)


def test_coverage_at_risk(drawn):
    confidence, wrong = drawn
    for risk in (0.0, 0.05, 0.2, 0.9):
        kept = [(confidence >= t).mean() for t in confidence if wrong[confidence >= t].mean() <= risk]
        found = coverage_at_risk(*ranked(confidence, wrong).steps(), risk)
        assert float(found) == pytest.approx(max(kept, default=0.0), abs=1e-12)


def test_resamples_are_what_repeating_images_gives(drawn):
    confidence, wrong = drawn
    boot = Bootstrap(len(wrong), 5, seed=1)
    counts = torch.cat(list(boot.counts()))
    steps = ranked(confidence, wrong).steps(counts)
    wanted = torch.tensor([0.25, 0.8], dtype=torch.float64)
    areas, least = area_under_risk_coverage(*steps), least_area(steps[0][:, -1], steps[1][:, -1])
    risks, shares = risk_at_coverage(*steps, wanted.expand(5, -1))
    for s in range(5):
        times = counts[s].long().numpy()
        repeated = ranked(np.repeat(confidence, times), np.repeat(wrong, times))
        assert float(areas[s]) == pytest.approx(float(area_under_risk_coverage(*repeated.steps())), abs=1e-12)
        errors = float(np.repeat(wrong, times).sum())
        assert float(least[s]) == pytest.approx(
            float(least_area(torch.tensor(150.0), torch.tensor(errors))), abs=1e-12
        )  # fmt: skip
        expected, given = risk_at_coverage(*repeated.steps(), wanted)
        assert risks[s].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
        assert shares[s].tolist() == pytest.approx(given.tolist(), abs=1e-12)


def test_streaming_metrics(drawn):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(90, 4, generator=generator) * 2, torch.randint(4, (90,), generator=generator)
    confidence = logits.double().softmax(1).amax(1).numpy()
    wrong = (logits.argmax(1) != labels).numpy()
    area = naive_area(wrong[np.argsort(-confidence)].astype(float))
    best = naive_area(np.sort(wrong).astype(float))
    threshold = float(np.quantile(confidence, 0.4))
    expected = {
        "aurc": area,
        "excess_aurc": area - best,
        "coverage_at_threshold": (confidence >= threshold).mean(),
        "risk_at_threshold": wrong[confidence >= threshold].mean(),
        "risk_at_coverage": wrong[np.argsort(-confidence)[:72]].mean(),
    }
    for name, value in expected.items():
        options = {"threshold": threshold} if name.endswith("threshold") else {}
        metric = METRICS.build({"name": name, **options}, classes=4, concepts=None)
        for rows in torch.arange(90).split(17):
            metric.update(logits[rows], labels[rows])
        assert float(metric.compute()) == pytest.approx(value, abs=1e-6), name
        assert metric.choices["confidence"] == "probability"


def test_nothing_answered_has_no_risk():
    metric = METRICS.build({"name": "risk_at_threshold", "threshold": 0.99}, classes=2, concepts=None)
    metric.update(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    assert torch.isnan(metric.compute())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("risk_at_coverage", {"coverage": 0.0}),
        ("coverage_at_risk", {"risk": 1.0}),
        ("aurc", {"score": "entropy"}),
        ("risk_at_threshold", {"score": "entropy"}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(UserError):
        METRICS.build({"name": name, **options}, classes=3, concepts=None)
