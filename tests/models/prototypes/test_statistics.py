"""Prototypes compared with each other, against loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from vitrarium.models.prototypes.statistics import by_class, mean_pair_distance, pair_distances, subspace_distances


def test_rows_are_sorted_by_owner_whatever_their_order():
    rows = torch.arange(12.0).view(6, 2)
    owner, living = torch.tensor([2, 0, -1, 2, 0, 2]), torch.tensor([1, 1, 1, 0, 1, 1]).bool()
    basis, filled = by_class(rows, owner, living, 4)
    assert filled.tolist() == [[True, True], [False, False], [True, True], [False, False]]
    assert torch.equal(basis[0], rows[[1, 4]])
    assert torch.equal(basis[2], rows[[0, 5]])
    assert (basis[[1, 3]] == 0).all()


def test_subspace_distances_against_projectors():
    basis = torch.randn(5, 3, 7, dtype=torch.float64)
    basis[2, 1:] = 0
    found = subspace_distances(basis)
    for i, j in itertools.product(range(5), repeat=2):
        apart = (basis[i].T @ basis[i] - basis[j].T @ basis[j]).norm()
        assert float(found[i, j]) == pytest.approx(float(apart), abs=1e-9)


def test_near_pairs_keep_their_digits():
    """The expansion in single precision would find 0 or 1e-3 between rows that are 1e-5 apart."""
    rows = torch.rand(40, 16) + 10
    rows[1] = rows[0]
    rows[1, 3] += 1e-5
    found = pair_distances(rows)
    expected = (rows.double()[:, None] - rows.double()[None]).square().sum(2).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-7)
    assert (found.diagonal() == 0).all()
    assert mean_pair_distance(rows) == pytest.approx(float(expected.mean()), rel=1e-6)


def test_no_rows_have_no_mean():
    assert mean_pair_distance(torch.zeros(0, 3)) != mean_pair_distance(torch.zeros(0, 3))
