"""The opponents: the best single channel, and logistic regression held against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from vitrarium.eval.axes.baselines import Baseline, best_filter, filter_baseline, probe_baseline, strongest
from vitrarium.eval.axes.looking import Seen
from vitrarium.eval.axes.probe import STRENGTHS, logistic_path
from vitrarium.eval.metrics.ranking import concept_aucs

NAN = float("nan")


def drawn(count, seed, channels=6):
    """Concept 0 is low channel 2, concept 1 a mix, concept 2 always present, concept 3 channel 1 with gaps."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, channels, generator=generator)
    noise = torch.randn(count, 4, generator=generator)
    truth = torch.stack(
        [
            -values[:, 2] + 0.5 * noise[:, 0] > 0,
            values[:, 0] + values[:, 3] - values[:, 4] + 0.3 * noise[:, 1] > 0,
            torch.ones(count, dtype=torch.bool),
            values[:, 1] + 0.4 * noise[:, 3] > 0.5,
        ],
        1,
    ).float()
    truth[torch.rand(count, generator=generator) < 0.2, 3] = NAN
    return Seen({"mean": values, "max": values**3}, truth, torch.zeros(count).long(), torch.arange(count))


@pytest.fixture
def splits():
    return [drawn(count, seed) for seed, count in enumerate((300, 120, 150))]


def test_the_best_filter_is_that_of_a_search_by_hand(splits):
    train = splits[0]
    channel, sign = best_filter(train.reduced["mean"], train.truth)
    for k in (0, 1, 3):
        known = ~torch.isnan(train.truth[:, k])
        aucs = [roc_auc_score(train.truth[known, k], train.reduced["mean"][known, c]) for c in range(6)]
        wanted = int(np.argmax(np.abs(np.array(aucs) - 0.5)))
        assert int(channel[k]) == wanted
        assert int(sign[k]) == (1 if aucs[wanted] >= 0.5 else -1)
    assert (int(channel[0]), int(sign[0])) == (2, -1)
    assert int(sign[2]) == 0


def test_a_filter_is_chosen_on_training_images_whatever_the_others_say(splits):
    train, val, test = splits
    found = filter_baseline(train, val, test, "mean")
    # A test split in which another channel is perfect changes nothing.
    test.reduced["mean"][:, 5] = test.truth[:, 0] * 10
    again = filter_baseline(train, val, test, "mean")
    assert found.chosen == again.chosen
    assert found.chosen[0] == "channel 2, low"
    assert found.chosen[2] == ""
    torch.testing.assert_close(found.scores[:, 0], -test.reduced["mean"][:, 2])
    assert bool(torch.isnan(found.scores[:, 2]).all())


def test_constant_channels_are_never_chosen_and_all_constant_ones_do_not_crash(splits):
    train = splits[0]
    values = train.reduced["mean"].clone()
    values[:, 2] = 7.0
    assert int(best_filter(values, train.truth)[0][0]) != 2
    channel, sign = best_filter(torch.ones(300, 3), train.truth)
    assert channel.tolist() == [0, 0, 0, 0]
    assert sign.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("strength", [0, 2, 4])
def test_the_probe_is_that_of_scikit_learn(splits, strength):
    train = splits[0]
    path = logistic_path(train.reduced["mean"].double(), train.truth, iterations=2000, tolerance=1e-14)
    columns = path.standard(train.reduced["mean"].double())
    for k in (0, 1):
        theirs = LogisticRegression(C=1 / (STRENGTHS[strength] * 300), tol=1e-10, max_iter=5000)
        theirs.fit(columns.numpy(), train.truth[:, k].numpy())
        np.testing.assert_allclose(path.weight[strength, k].numpy(), theirs.coef_[0], atol=2e-4)
        assert float(path.bias[strength, k]) == pytest.approx(float(theirs.intercept_[0]), abs=2e-4)
    # Over the known images alone; the loss is divided by all of them.
    known = ~torch.isnan(train.truth[:, 3])
    theirs = LogisticRegression(C=1 / (STRENGTHS[strength] * 300), tol=1e-10, max_iter=5000)
    theirs.fit(columns[known].numpy(), train.truth[known, 3].numpy())
    np.testing.assert_allclose(path.weight[strength, 3].numpy(), theirs.coef_[0], atol=2e-4)
    assert not path.weight[:, 2].any()


def test_single_precision_comes_as_far_as_the_loss_can_tell(splits):
    train = splits[0]
    exact = logistic_path(train.reduced["mean"].double(), train.truth, iterations=3000, tolerance=1e-15)
    usual = logistic_path(train.reduced["mean"], train.truth)
    assert usual.residual <= 1e-7
    for n in range(len(STRENGTHS)):
        chosen = torch.full((4,), n)
        ours = concept_aucs(usual.scores(train.reduced["mean"], chosen), train.truth)
        best = concept_aucs(exact.scores(train.reduced["mean"].double(), chosen), train.truth)
        torch.testing.assert_close(ours, best, atol=1e-3, rtol=0, equal_nan=True)


def test_the_probe_beats_the_filter_on_a_mix_and_chooses_by_validation(splits):
    train, val, test = splits
    probe, single = probe_baseline(train, val, test, "mean"), filter_baseline(train, val, test, "mean")
    aucs = [concept_aucs(b.scores.nan_to_num(0.0), test.truth) for b in (probe, single)]
    assert float(aucs[0][1]) > float(aucs[1][1]) + 0.1
    assert probe.chosen[1].startswith("l2 = ")
    assert probe.chosen[2] == ""
    assert bool(torch.isnan(probe.scores[:, 2]).all())
    path = logistic_path(train.reduced["mean"], train.truth)
    tried = [
        float(concept_aucs(path.scores(val.reduced["mean"], torch.full((4,), n)), val.truth)[1])
        for n in range(len(STRENGTHS))
    ]
    assert probe.chosen[1] == f"l2 = {STRENGTHS[int(np.argmax(tried))]:g}"


def test_a_concept_without_validation_images_takes_the_strength_of_the_others(splits):
    train, val, test = splits
    val.truth[:, 1] = 0.0
    found = probe_baseline(train, val, test, "mean")
    assert found.chosen[1].startswith("l2 = ")
    val.truth[:] = NAN
    nothing = probe_baseline(train, val, test, "mean")
    assert nothing.chosen[1] == f"l2 = {STRENGTHS[0]:g}"
    assert math.isnan(nothing.validation)


def test_constant_and_very_different_columns_do_no_harm(splits):
    train = splits[0]
    values = torch.cat([train.reduced["mean"] * 1e4 + 3e5, torch.full((300, 2), 5.0)], 1)
    plain, scaled = logistic_path(train.reduced["mean"], train.truth), logistic_path(values, train.truth)
    assert not scaled.weight[:, :, 6:].any()
    torch.testing.assert_close(scaled.weight[:, :, :6], plain.weight, atol=5e-2, rtol=5e-2)


def test_the_strongest_is_the_best_on_validation_images():
    made = {n: Baseline(torch.zeros(1, 1), v, n, [""]) for n, v in (("mean", 0.7), ("max", 0.8), ("pool_max", NAN))}
    assert strongest(made).reduction == "max"
