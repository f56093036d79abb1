"""The curvilinear search, against the same search with matrices of all channels."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.layers.rotation import orthonormal, rotate_towards


def orthogonal(channels: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(channels, channels, generator=draw, dtype=torch.float64)).Q


def gradients(k: int, channels: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(k, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def search_by_definition(rotation, gradient, rows, steps=1):
    """Cayley curves with C x C inverses, the derivative from the definition of the curve's tangent."""
    channels = len(rotation)
    full, eye = torch.zeros_like(rotation), torch.eye(channels, dtype=torch.float64)
    full[rows] = gradient
    for _ in range(steps):
        skew = full @ rotation.T - rotation @ full.T
        start, slope = (full * rotation).sum(), -0.5 * skew.square().sum()
        low, high, t = 0.0, 1e8, 1000.0
        while True:
            inverse = torch.linalg.inv(eye + t / 2 * skew)
            turned = inverse @ (eye - t / 2 * skew) @ rotation
            tangent = -0.5 * inverse @ skew @ (rotation + turned)
            if (full * turned).sum() > start + 1e-4 * t * slope:
                high = t
            elif (full * tangent).sum() < 0.9 * slope:
                low = t
            else:
                break
            t = (low + high) / 2
        rotation = turned
    return rotation


@pytest.mark.parametrize(("channels", "k"), [(5, 1), (12, 3), (12, 7), (8, 8), (30, 4)])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_search_is_that_with_matrices_of_all_channels(channels, k, scale, steps):
    rotation, gradient = orthogonal(channels), scale * gradients(k, channels)
    rows = torch.randperm(channels, generator=torch.Generator().manual_seed(2))[:k]
    found = rotate_towards(rotation, gradient, rows, steps=steps)
    torch.testing.assert_close(found, search_by_definition(rotation, gradient, rows, steps), atol=1e-8, rtol=0)
    torch.testing.assert_close(found @ found.T, torch.eye(channels, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (gradient * found[rows]).sum() < (gradient * rotation[rows]).sum()


def test_a_gradient_in_a_few_directions_only_changes_nothing_else():
    """Two rows alike and one of zeros: the span has fewer dimensions than twice the rows."""
    rotation, gradient, rows = orthogonal(9), gradients(4, 9), torch.tensor([7, 0, 3, 4])
    gradient[1], gradient[3] = gradient[0], 0
    found = rotate_towards(rotation, gradient, rows)
    torch.testing.assert_close(found, search_by_definition(rotation, gradient, rows, 2), atol=1e-8, rtol=0)
    # What is orthogonal to the axes and to where they should go stays where it is.
    still = rotation @ torch.linalg.svd(torch.cat([rotation[rows], gradient])).Vh[-2:].T
    torch.testing.assert_close(found.T @ still, rotation.T @ still, atol=1e-9, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_many_updates_reach_the_best_orthogonal_matrix(k):
    """The least <G, R> over orthogonal R is minus the sum of the singular values of G."""
    rotation, gradient, rows = orthogonal(10), gradients(k, 10), torch.arange(k)
    for _ in range(150):
        rotation = rotate_towards(rotation, gradient, rows)
    least = -torch.linalg.svdvals(gradient).sum()
    torch.testing.assert_close((gradient * rotation[:k]).sum(), least, rtol=1e-3, atol=0)


def test_gradients_of_very_different_lengths_keep_the_rotation_orthogonal():
    rotation = orthogonal(24).float()
    gradient = (gradients(5, 24) * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e5])[:, None]).float()
    for _ in range(10):
        before = float((gradient * rotation[:5]).sum())
        rotation = rotate_towards(rotation, gradient, torch.arange(5))
        assert float((gradient * rotation[:5]).sum()) <= before + 1e-6 * float(gradient.norm())
    assert float((rotation @ rotation.T - torch.eye(24)).abs().max()) < 1e-5


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1.0, 1e12])
def test_the_objective_falls_whatever_the_scale(scale):
    rotation, gradient, rows = orthogonal(8), scale * gradients(2, 8), torch.tensor([1, 5])
    found = rotate_towards(rotation, gradient, rows)
    assert (gradient * found[rows]).sum() < (gradient * rotation[rows]).sum()
    torch.testing.assert_close(found @ found.T, torch.eye(8, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8])
def test_a_search_that_is_cut_short_never_raises_the_objective(limit):
    for seed in range(6):
        rotation, gradient, rows = orthogonal(6, seed), 30 * gradients(3, 6, seed), torch.arange(3)
        found = rotate_towards(rotation, gradient, rows, steps=1, limit=limit)
        assert (gradient * found[rows]).sum() <= (gradient * rotation[rows]).sum() + 1e-12


def test_thousands_of_updates_in_single_precision_stay_orthogonal():
    rotation, draw = torch.eye(32), torch.Generator().manual_seed(0)
    for _ in range(1500):
        rotation = rotate_towards(rotation, torch.randn(4, 32, generator=draw), torch.arange(4))
    assert float((rotation.double() @ rotation.double().T - torch.eye(32)).abs().max()) <= 1e-5


def test_without_a_gradient_nothing_moves():
    rotation = orthogonal(6).float()
    assert torch.equal(rotate_towards(rotation, torch.zeros(2, 6), torch.tensor([0, 3])), rotation)


def test_an_axis_that_points_where_it_should_stays():
    rotation = orthogonal(6)
    found = rotate_towards(rotation, -rotation[2:3], torch.tensor([2]))
    torch.testing.assert_close(found, rotation, atol=1e-12, rtol=0)


def test_the_given_rotation_is_not_changed_and_its_precision_is_kept():
    rotation = orthogonal(6).float()
    before = rotation.clone()
    found = rotate_towards(rotation, gradients(2, 6), torch.tensor([0, 3]))
    assert found.dtype == torch.float32
    assert torch.equal(rotation, before)
    assert not torch.equal(found, before)


def test_what_is_refused():
    rotation = torch.eye(3)
    with pytest.raises(UserError, match="4 axes are to be turned, and there are 3 channels"):
        rotate_towards(rotation, torch.ones(4, 3), torch.arange(4))
    for wrong in (float("nan"), float("inf")):
        gradient = torch.ones(2, 3)
        gradient[1, 1] = wrong
        with pytest.raises(UserError, match=r"gradient .*is not finite"):
            rotate_towards(rotation, gradient, torch.arange(2))


def test_rounding_is_taken_out_of_a_rotation():
    exact = orthogonal(16)
    noisy = torch.stack([exact, exact.T]) + 1e-4 * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    polished = orthonormal(noisy)
    eye = torch.eye(16, dtype=torch.float64)
    assert float((noisy @ noisy.mT - eye).abs().max()) > 1e-4
    assert float((polished @ polished.mT - eye).abs().max()) < 1e-6
    assert float((polished - noisy).abs().max()) < 1e-3
    assert orthonormal(torch.eye(4)).dtype == torch.float32
