"""AUC of units for concepts: the formulas again in loops, and what must not crash."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitrarium.eval.axes.measures import (
    common,
    enough,
    gain,
    label_counts,
    masked_scores,
    mean_auc,
    rate,
    share_closed,
    subspaces_of,
)
from vitrarium.eval.metrics.ranking import area_under_roc, crossed_aucs
from vitrarium.eval.metrics.resampling import Bootstrap, StratifiedBootstrap

NAN = float("nan")


def pairs_auc(scores, truth):
    """Every pair of a positive and a negative, by hand."""
    known = [(s, t) for s, t in zip(scores.tolist(), truth.tolist(), strict=True) if t == t and t != 0.5]
    positive, negative = [s for s, t in known if t > 0.5], [s for s, t in known if t < 0.5]
    if not positive or not negative:
        return NAN
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return won / (len(positive) * len(negative))


@pytest.fixture
def scores():
    # In quarters, so that many are equal.
    return (torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 4).round() / 4


@pytest.fixture
def truth():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(2, (40, 4), generator=generator).float()
    truth[torch.rand(40, 4, generator=generator) < 0.15] = NAN
    truth[3, 1] = 0.5
    truth[:, 3] = 1.0
    return truth


def test_every_score_for_every_concept_is_the_share_of_pairs(scores, truth):
    found = crossed_aucs(scores, truth)
    assert found.shape == (5, 4)
    for c in range(5):
        for k in range(4):
            assert float(found[c, k]) == pytest.approx(pairs_auc(scores[:, c], truth[:, k]), nan_ok=True)


def test_ranks_are_the_same_a_few_columns_at_a_time(scores, truth, monkeypatch):
    whole = crossed_aucs(scores, truth)
    monkeypatch.setattr("vitrarium.eval.metrics.ranking.RANKS_AT_ONCE", 1)
    torch.testing.assert_close(crossed_aucs(scores, truth), whole, rtol=0, atol=0, equal_nan=True)


def test_a_rating_is_the_share_of_pairs_with_intervals_around_it(scores, truth):
    rated = rate({"axis": scores[:, :4]}, truth, Bootstrap(40, 200))["axis"]
    for k in range(4):
        assert float(rated.auc[k]) == pytest.approx(pairs_auc(scores[:, k], truth[:, k]), nan_ok=True)
    assert bool((rated.low[:3] <= rated.auc[:3]).all())
    assert bool((rated.auc[:3] <= rated.high[:3]).all())
    assert rated.draws.shape == (200, 4)
    assert math.isnan(float(rated.auc[3]))
    assert math.isnan(float(rated.low[3]))


def test_the_interval_is_that_of_stratified_resamples(scores, truth):
    rated = rate({"axis": scores[:, :4]}, truth, Bootstrap(40, 100), seed=5)["axis"]
    known = ~torch.isnan(truth[:, 0])
    label, said = truth[known, 0] > 0.5, scores[known, 0]
    boot = StratifiedBootstrap(label, 100, 5)
    counts = torch.cat(list(boot.counts())).long()
    drawn = []
    for row in counts:
        chosen = torch.repeat_interleave(torch.arange(len(said)), row)
        drawn.append(pairs_auc(said[chosen], label[chosen].float()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (float(rated.low[0]), float(rated.high[0])) == pytest.approx((low, high), abs=1e-6)


def test_stratified_resamples_keep_the_size_of_each_stratum():
    strata = torch.tensor([True] * 3 + [False] * 50)
    counts = torch.cat(list(StratifiedBootstrap(strata, 64, 0).counts()))
    assert counts.shape == (64, 53)
    assert bool((counts[:, :3].sum(1) == 3).all())
    assert bool((counts[:, 3:].sum(1) == 50).all())
    assert len({tuple(row) for row in counts.tolist()}) > 50
    assert torch.equal(counts, torch.cat(list(StratifiedBootstrap(strata, 64, 0).counts())))
    assert not torch.equal(counts, torch.cat(list(StratifiedBootstrap(strata, 64, 1).counts())))


def test_a_rare_concept_has_an_interval_although_plain_resamples_lose_it():
    truth, scores = torch.zeros(60, 1), torch.arange(60.0)[:, None]
    truth[30] = 1.0
    rated = rate({"axis": scores}, truth, Bootstrap(60, 300))["axis"]
    assert float(rated.auc[0]) == pytest.approx(30 / 59)
    assert float(rated.low[0]) < 30 / 59 < float(rated.high[0])
    assert bool(torch.isnan(rated.draws).any())


def test_constant_activations_score_one_half(truth):
    rated = rate({"axis": torch.full((40, 4), 3.0)}, truth, Bootstrap(40, 50))["axis"]
    for values in (rated.auc, rated.low, rated.high):
        assert values[:3].tolist() == [0.5] * 3


def test_a_column_of_nan_is_no_score(scores, truth):
    given = scores[:, :4].clone()
    given[:, 1] = NAN
    boot = Bootstrap(40, 30)
    rated = rate({"axis": given, "probe": scores[:, 1:5]}, truth, boot)
    assert torch.isnan(rated["axis"].auc).tolist() == [False, True, False, True]
    assert bool(torch.isnan(rated["axis"].draws[:, 1]).all())
    chosen = torch.ones(4, dtype=torch.bool)
    assert common(list(rated.values()), chosen).tolist() == [True, False, True, False]
    assert mean_auc(rated["axis"], chosen, boot).concepts == 2


def test_means_differences_and_shares_are_paired(scores, truth):
    boot = Bootstrap(40, 150)
    good = truth[:, :4].nan_to_num(0.5) + 0.6 * torch.randn(40, 4, generator=torch.Generator().manual_seed(4))
    best = truth[:, :4].nan_to_num(0.5)
    rated = rate({"axis": good, "filter": scores[:, :4], "probe": best}, truth, boot)
    axis, floor, ceiling = rated.values()
    chosen = torch.tensor([True, True, True, False])
    means = [float(r.auc[:3].mean()) for r in (axis, floor, ceiling)]
    share = share_closed(axis, floor, ceiling, chosen, boot)
    assert share.value == pytest.approx((means[0] - means[1]) / (means[2] - means[1]))
    won = gain(axis, floor, chosen, boot)
    assert won.value == pytest.approx(means[0] - means[1])
    by_hand = axis.draws[:, :3].mean(1) - floor.draws[:, :3].mean(1)
    assert won.interval == pytest.approx(tuple(np.quantile(by_hand.numpy(), [0.025, 0.975])))
    # An exact copy: no doubt about the difference, although there is about both.
    same = gain(axis, rate({"axis": good}, truth, boot)["axis"], chosen, boot)
    assert (same.value, *same.interval) == (0, 0, 0)


def test_there_is_no_share_of_a_gap_that_is_none(scores, truth):
    boot = Bootstrap(40, 40)
    rated = rate({"axis": scores[:, :4], "filter": scores[:, 1:5]}, truth, boot)
    chosen = torch.tensor([True, True, True, False])
    assert math.isnan(share_closed(rated["axis"], rated["filter"], rated["filter"], chosen, boot).value)
    low, high = sorted(rated.values(), key=lambda r: float(r.auc[:3].mean()))
    unsure = share_closed(low, low, high, chosen, boot)
    assert unsure.value == 0
    assert math.isnan(unsure.interval.low)
    nothing = mean_auc(low, torch.zeros(4, dtype=torch.bool), boot)
    assert math.isnan(nothing.value)
    assert nothing.concepts == 0


def test_no_resamples_give_values_without_intervals(scores, truth):
    boot = Bootstrap(40, 0)
    rated = rate({"axis": scores[:, :4]}, truth, boot)["axis"]
    mean = mean_auc(rated, torch.tensor([True, True, True, False]), boot)
    assert mean.value == pytest.approx(float(rated.auc[:3].mean()))
    assert math.isnan(mean.interval.low)
    assert bool(torch.isnan(rated.low).all())


def test_concepts_need_images_of_both_labels(truth):
    positive, negative = label_counts(truth)
    for k in range(4):
        column = truth[:, k].tolist()
        assert int(positive[k]) == sum(t > 0.5 for t in column)
        assert int(negative[k]) == sum(t < 0.5 for t in column)
    assert enough(truth, 10).tolist() == [True, True, True, False]
    assert not enough(truth).any()


def test_masked_scores_are_cosines_with_the_axis_in_its_subspace():
    said = torch.randn(12, 7, generator=torch.Generator().manual_seed(2))
    said[4, [0, 1, 5]] = 0
    found = masked_scores(said, [torch.tensor([0, 1, 5]), torch.tensor([2]), torch.tensor([3, 6])], 4)
    for i in range(12):
        for k, units in ((0, (0, 1, 5)), (1, (0, 1, 5)), (3, (3, 6))):
            length = math.sqrt(sum(float(said[i, u]) ** 2 for u in units))
            assert float(found[i, k]) == pytest.approx(float(said[i, k]) / length if length else 0.0, abs=1e-6)
    assert bool(torch.isnan(found[:, 2]).all())


def test_subspaces_are_the_layers_or_else_the_groups():
    class Told:
        def subspaces(self):
            return [torch.tensor([0, 1, 7])]

    class Silent:
        def subspaces(self):
            return None

    assert subspaces_of(Told(), [(0, 1)])[0].tolist() == [0, 1, 7]
    for layer in (Silent(), object()):
        assert [s.tolist() for s in subspaces_of(layer, [(0, 1), (2,)])] == [[0, 1], [2]]


def test_a_counted_auc_agrees_with_the_plain_one(scores, truth):
    known = ~torch.isnan(truth[:, 0])
    once = torch.ones(int(known.sum()), 1)
    counted = area_under_roc(scores[known, 0], truth[known, 0] > 0.5, once)
    assert float(counted) == pytest.approx(pairs_auc(scores[:, 0], truth[:, 0]))
