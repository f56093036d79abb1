from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.metrics import METRICS, Bootstrap, bootstrap


def resampled(boot, function):
    """The statistic of each resample, by really picking its images."""
    values = []
    for counts in torch.cat(list(boot.counts())):
        rows = torch.repeat_interleave(torch.arange(boot.images), counts.long())
        values.append(function(rows))
    return np.array(values)


def test_counts_are_resamples_of_all_images():
    boot = Bootstrap(30, 200, seed=1)
    counts = torch.cat(list(boot.counts()))
    assert counts.shape == (200, 30)
    assert (counts.sum(1) == 30).all()
    assert abs(float(counts.mean()) - 1) < 1e-6
    # Var of Binomial(30, 1/30) is 29/30.
    assert float(counts.var()) == pytest.approx(29 / 30, rel=0.1)
    assert torch.equal(counts, torch.cat(list(Bootstrap(30, 200, seed=1).counts())))
    assert not torch.equal(counts, torch.cat(list(Bootstrap(30, 200, seed=2).counts())))


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "precision", "ece", "nll"])
def test_one_matrix_product_is_the_metric_of_each_resample(name):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=generator), torch.randint(3, (60,), generator=generator)
    metric, boot = METRICS.build(name, classes=3, concepts=None), Bootstrap(60, 40)
    draws = metric.finish(boot.sums(metric.parts(logits, labels)))

    def fresh(rows):
        again = METRICS.build(name, classes=3, concepts=None)
        again.update(logits[rows], labels[rows])
        return float(again.compute())

    expected = resampled(boot, fresh)
    np.testing.assert_allclose(draws, expected, atol=1e-5)
    low, high = boot.of_metric(metric, metric.parts(logits, labels))
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=1e-5)


def test_group_means_with_missing_truth(concepts, make_truth):
    truth = make_truth(40, 0, 0.5)
    p = torch.rand(40, 8, generator=torch.Generator().manual_seed(1))
    metric, boot = METRICS.build("concept_accuracy", classes=2, concepts=concepts), Bootstrap(40, 30)
    draws = metric.finish(boot.sums(metric.parts(p, truth)))

    def fresh(rows):
        again = METRICS.build("concept_accuracy", classes=2, concepts=concepts)
        again.update(p[rows], truth[rows])
        return float(again.compute())

    np.testing.assert_allclose(draws, resampled(boot, fresh), atol=1e-6)


def test_interval_of_a_mean_is_the_one_of_theory():
    values = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, 400))
    low, high = bootstrap(values, samples=4000)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert low == pytest.approx(float(values.mean()) - half, abs=0.05)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.05)
    narrow = bootstrap(values, samples=4000, level=0.5)
    assert low < narrow.low < narrow.high < high


def test_any_statistic_of_counts():
    values = torch.arange(20.0)
    by_function = bootstrap(lambda counts: counts @ values / 20, images=20, samples=300)
    assert by_function == pytest.approx(bootstrap(values, samples=300), abs=1e-6)


def test_degenerate_cases():
    assert all(math.isnan(v) for v in bootstrap(torch.rand(5), samples=0))
    assert all(math.isnan(v) for v in bootstrap(torch.zeros(0)))
    assert bootstrap(torch.ones(5)) == (1.0, 1.0)
    with pytest.raises(UserError, match="samples=-1"):
        bootstrap(torch.ones(5), samples=-1)
    with pytest.raises(UserError, match="number of images"):
        bootstrap(lambda counts: counts.sum(1))
    with pytest.raises(ValueError, match="3 rows"):
        Bootstrap(4, 10).sums(torch.ones(3, 1))


def test_memory_is_bounded_by_cutting_the_resamples(monkeypatch):
    boot = Bootstrap(50, 20)
    whole = boot.sums(torch.arange(50.0)[:, None])
    monkeypatch.setattr("vitrarium.eval.metrics.resampling._FLOATS_AT_ONCE", 150)
    assert [len(counts) for counts in boot.counts()] == [3] * 6 + [2]
    assert torch.equal(boot.sums(torch.arange(50.0)[:, None]), whole)
