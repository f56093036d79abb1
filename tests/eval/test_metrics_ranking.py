from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vitrarium.eval.metrics import METRICS, Bootstrap
from vitrarium.eval.metrics.ranking import area_under_roc, concept_aucs


def by_pairs(scores, positive, weights=None):
    weights = np.ones(len(scores)) if weights is None else weights
    total = pairs = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            w = float(weights[i]) * float(weights[j])
            pairs += w
            total += w * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return total / pairs if pairs else math.nan


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_against_all_pairs_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 90) / levels
    positive = rng.random(90) < 0.3
    auc = float(area_under_roc(torch.tensor(scores), torch.tensor(positive)))
    assert auc == pytest.approx(by_pairs(scores, positive), abs=1e-12)
    counts = rng.integers(0, 4, (5, 90))
    drawn = area_under_roc(torch.tensor(scores), torch.tensor(positive), torch.tensor(counts.T, dtype=torch.float32))
    np.testing.assert_allclose(drawn, [by_pairs(scores, positive, w) for w in counts], atol=1e-6)


def test_auc_needs_both_labels():
    scores = torch.rand(5)
    for positive in (torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)):
        assert math.isnan(float(area_under_roc(scores, positive)))
        assert torch.isnan(area_under_roc(scores, positive, torch.ones(5, 2))).all()


def test_probabilities_are_not_thresholded():
    # Perfect ranking, every probability below one half: thresholded answers would give .5.
    assert float(area_under_roc(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([False, False, True, True]))) == 1.0


def test_streamed_concept_auc_is_over_all_images_not_the_mean_of_batches(concepts, make_truth):
    truth = make_truth(80, 1, 0.2)
    truth[:, 6] = 0.0  # one label only
    p = torch.rand(80, 8, generator=torch.Generator().manual_seed(2))
    metric = METRICS.build("concept_auc", classes=2, concepts=concepts)
    for rows in torch.arange(80).split(7):
        metric.update(p[rows], truth[rows])
    expected = []
    for k in range(8):
        known = ~torch.isnan(truth[:, k])
        if k != 6:
            expected.append(roc_auc_score(truth[known, k].numpy(), p[known, k].numpy()))
    assert float(metric.compute()) == pytest.approx(np.mean(expected), abs=1e-6)
    each = concept_aucs(p, truth)
    assert torch.isnan(each).nonzero()[:, 0].tolist() == [6]
    empty = METRICS.build("concept_auc", classes=2, concepts=concepts)
    assert torch.isnan(empty.each()).all()


def test_resampled_auc_matches_auc_of_the_resampled_images():
    rng = np.random.default_rng(0)
    scores, positive = torch.tensor(rng.random(40)), torch.tensor(rng.random(40) < 0.5)
    boot = Bootstrap(40, 6)
    drawn = boot.draws(lambda counts: area_under_roc(scores, positive, counts.T))
    for sample, counts in enumerate(torch.cat(list(boot.counts()))):
        rows = torch.repeat_interleave(torch.arange(40), counts.long())
        assert float(drawn[sample]) == pytest.approx(float(area_under_roc(scores[rows], positive[rows])), abs=1e-6)
