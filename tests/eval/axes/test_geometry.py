"""Correlations and likeness of concepts, again in loops over places and pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitrarium.eval.axes.geometry import Moments, axis_correlation, covariance_of, intra_inter

NAN = float("nan")


def test_moments_of_batches_are_those_of_all_places():
    maps = torch.randn(7, 4, 3, 2, generator=torch.Generator().manual_seed(0)) + 1000
    moments = Moments()
    for batch in maps.split(3):
        moments.update(batch)
    rows = maps.double().permute(0, 2, 3, 1).reshape(-1, 4)
    np.testing.assert_allclose(moments.covariance().numpy(), np.cov(rows.numpy().T, bias=True), atol=1e-6)
    assert moments.count == 7 * 6
    torch.testing.assert_close(covariance_of(rows), moments.covariance(), atol=1e-6, rtol=1e-6)


def test_correlation_is_that_of_numpy_and_leaves_constant_channels_out():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double()
    rows[:, 3] = rows[:, 0] * -2 + 0.5 * rows[:, 1]
    rows = torch.cat([rows, torch.full((50, 1), 3.0)], 1)
    found = axis_correlation(covariance_of(rows))
    wanted = np.abs(np.corrcoef(rows[:, :4].numpy().T))
    np.testing.assert_allclose(found.matrix[:4, :4].numpy(), wanted, atol=1e-12)
    assert found.mean == pytest.approx(np.mean(wanted[~np.eye(4, dtype=bool)]))
    assert found.constant == 1
    assert bool(torch.isnan(found.matrix[4]).all())


def test_fewer_than_two_varying_channels_have_no_correlation():
    for rows in (torch.ones(5, 3), torch.cat([torch.ones(5, 2), torch.arange(5.0)[:, None]], 1), torch.zeros(1, 2)):
        assert math.isnan(axis_correlation(covariance_of(rows)).mean)


def by_pairs(vectors, truth, i, j):
    """Mean cosine over pairs of different images, one of each concept."""
    found = []
    for a in range(len(vectors)):
        for b in range(len(vectors)):
            if a != b and truth[a, i] == 1 and truth[b, j] == 1:
                va, vb = vectors[a].double(), vectors[b].double()
                length = float(va.norm() * vb.norm())
                found.append(float(va @ vb) / length if length else 0.0)
    return np.mean(found) if found else NAN


def test_likeness_is_that_of_all_pairs_without_an_image_and_itself():
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(15, 4, generator=generator) + 0.5
    vectors[2] = 0
    truth = torch.randint(2, (15, 4), generator=generator).float()
    truth[5, 0], truth[7, 1] = NAN, NAN
    truth[:, 3] = 0
    truth[1, 3] = 1
    found = intra_inter(vectors, truth)
    cosine = np.array([[by_pairs(vectors, truth, i, j) for j in range(4)] for i in range(4)])
    np.testing.assert_allclose(found.cosine.numpy(), cosine, atol=1e-12)
    relative = np.abs(cosine) / np.sqrt(np.abs(np.outer(cosine.diagonal(), cosine.diagonal())))
    np.testing.assert_allclose(found.relative.numpy(), relative, atol=1e-9)
    assert found.relative.diagonal()[:3].tolist() == pytest.approx([1, 1, 1])
    # One image is no pair.
    assert math.isnan(float(found.cosine[3, 3]))
    assert found.intra == pytest.approx(np.nanmean(cosine.diagonal()))
    off = ~np.eye(4, dtype=bool)
    assert found.inter == pytest.approx(np.nanmean(relative[off]))


def test_the_mean_cosine_within_random_vectors_is_0_however_few_they_are():
    generator = torch.Generator().manual_seed(4)
    found = [
        intra_inter(torch.randn(3, 16, generator=generator), torch.ones(3, 1)).intra for _ in range(400)
    ]  # fmt: skip
    # With the pairs of an image and itself it would be 1 / 3.
    assert abs(np.mean(found)) < 0.03


def test_nobody_has_anything():
    found = intra_inter(torch.zeros(4, 3), torch.zeros(4, 2))
    assert math.isnan(found.intra)
    assert math.isnan(found.inter)
