"""Reductions of maps, the places that win them, and the gradient that turns axes."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.layers.reduction import REDUCTIONS, alignment_gradients, reduce_map, shift_to, winners

SIZES = [(7, 7), (6, 6), (4, 5), (2, 3), (1, 1)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(map: torch.Tensor, how: str) -> torch.Tensor:
    """One map (h, w), place by place."""
    height, width = map.shape
    values = [map[i, j] for i in range(height) for j in range(width)]
    if how == "mean":
        return sum(values) / len(values)
    if how == "max":
        return max(values)
    if how == "positive_mean":
        positive = [v for v in values if v > 0]
        return sum(positive, torch.zeros((), dtype=map.dtype)) / (len(positive) + 1e-4)
    windows = [
        max(map[i, j] for i in range(top, min(top + 3, height)) for j in range(left, min(left + 3, width)))
        for top in range(0, height, 3)
        for left in range(0, width, 3)
    ]
    return sum(windows) / len(windows)


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_reduction_place_by_place(how, size):
    maps = noise(2, 3, *size)
    expected = torch.stack([torch.stack([by_hand(map, how) for map in image]) for image in maps])
    torch.testing.assert_close(reduce_map(maps, how), expected)


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_winners_are_the_derivative_and_give_the_reduction(how, size):
    maps = noise(2, 3, *size).requires_grad_()
    weights = winners(maps, how)
    assert not weights.requires_grad
    (derivative,) = torch.autograd.grad(reduce_map(maps, how).sum(), maps)
    torch.testing.assert_close(weights, derivative)
    torch.testing.assert_close((weights * maps).sum((2, 3)), reduce_map(maps, how))
    total, count = weights.sum((2, 3)), (maps > 0).sum((2, 3)).double()
    torch.testing.assert_close(total, count / (count + 1e-4) if how == "positive_mean" else torch.ones_like(total))


@pytest.mark.parametrize("how", REDUCTIONS)
def test_one_place_wins_among_equals(how):
    maps = torch.full((1, 2, 4, 4), 2.0)
    torch.testing.assert_close(winners(maps, how).sum((2, 3)), torch.ones(1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(reduce_map(maps, how), torch.full((1, 2), 2.0), atol=2e-5, rtol=0)


def test_no_positive_place_means_nothing():
    maps = -noise(2, 3, 5, 5).abs()
    assert torch.equal(reduce_map(maps, "positive_mean"), torch.zeros(2, 3, dtype=torch.float64))
    assert not winners(maps, "positive_mean").any()


def test_every_row_and_column_counts_in_windows():
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, 6, 6] = 9
    assert reduce_map(maps, "pool_max").item() == pytest.approx(1)


@pytest.mark.parametrize("how", REDUCTIONS)
def test_infinite_and_missing_numbers_are_not_hidden(how):
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 1] = float("inf")
    assert not torch.isfinite(reduce_map(maps, how)).any()


@pytest.mark.parametrize("function", [reduce_map, winners])
def test_an_unknown_reduction(function):
    with pytest.raises(UserError, match="pool_max"):
        function(torch.zeros(1, 1, 3, 3), "poolmax")


@pytest.mark.parametrize("how", REDUCTIONS)
def test_gradient_of_the_mean_activation_of_an_axis(how):
    """sums / counts is what autograd finds for the mean over a concept's images of the reduction of r_j^T x."""
    whitened, rows = noise(6, 5, 7, 7), torch.linalg.qr(noise(5, 5, seed=1)).Q[:3].clone().requires_grad_()
    member = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.float64)
    axes = torch.einsum("kc,bchw->bkhw", rows, whitened)
    sums, counts = alignment_gradients(whitened, axes, member, how)
    objective = (reduce_map(axes, how) * member).sum()
    (expected,) = torch.autograd.grad(objective, rows)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(counts, torch.tensor([3.5, 3, 0], dtype=torch.float64))
    assert not sums.requires_grad
    assert not sums[2].any()
    # The reductions are of first order in the map, so the gradient along the axis is the activation itself.
    torch.testing.assert_close((sums * rows).sum(1), (reduce_map(axes, how) * member).sum(0))


@pytest.mark.parametrize("how", REDUCTIONS)
def test_released_gradient_takes_the_places_of_each_channel(how):
    whitened, rotation = noise(4, 5, 7, 7), torch.linalg.qr(noise(5, 5, seed=1)).Q
    rotated = torch.einsum("dc,bchw->bdhw", rotation, whitened)
    member = torch.eye(4, dtype=torch.float64)[:, :2]
    sums, counts = alignment_gradients(whitened, rotated[:, :2], member, how, released=True, rotated=rotated)
    for concept in range(2):
        for channel in range(5):
            weights = winners(rotated, how)[concept, channel]
            torch.testing.assert_close(sums[concept, channel], (weights * whitened[concept, channel]).sum())
    assert torch.equal(counts, torch.ones(2, dtype=torch.float64))
    true, _ = alignment_gradients(whitened, rotated[:, :2], member, how)
    assert torch.allclose(true, sums) == (how == "mean")
    with pytest.raises(ValueError, match="rotated"):
        alignment_gradients(whitened, rotated[:, :2], member, how, released=True)


def test_membership_may_be_yes_or_no():
    whitened = noise(3, 4, 2, 2)
    yes = torch.tensor([[True], [False], [True]])
    sums, counts = alignment_gradients(whitened, whitened[:, :1], yes, "mean")
    torch.testing.assert_close(sums[0], whitened[[0, 2]].mean((2, 3)).sum(0))
    assert counts.tolist() == [2]


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shifted_map_has_the_value(how, size, dtype):
    maps = noise(3, 4, *size).to(dtype)
    values = 3 * noise(3, 4, seed=1).to(dtype)
    values = values.abs() + 0.01 if how == "positive_mean" else values
    shift = shift_to(maps, how, values)
    torch.testing.assert_close(reduce_map(maps + shift[:, :, None, None], how), values, atol=2e-5, rtol=1e-4)


def test_the_shift_to_a_positive_mean_is_the_smallest():
    maps, values = noise(1, 40, 3, 3), noise(1, 40, seed=1).abs()
    shift = shift_to(maps, "positive_mean", values)[0]
    grid = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    for map, value, found in zip(maps[0], values[0], shift, strict=True):
        reduced = reduce_map((map + grid[:, None, None])[None], "positive_mean")[0]
        crossed = (reduced[1:] - value) * (reduced[:-1] - value) <= 0
        # Where a place becomes positive the mean jumps: such a step over the value does not reach it.
        crossed &= (reduced[1:] - reduced[:-1]).abs() < 2e-3
        assert float(found.abs()) <= float(grid[1:][crossed].abs().min()) + 1e-3


def test_a_positive_mean_cannot_be_below_zero():
    maps = noise(2, 3, 4, 4)
    for value in (0.0, -2.0):
        shift = shift_to(maps, "positive_mean", torch.full((2, 3), value, dtype=torch.float64))
        moved = maps + shift[:, :, None, None]
        assert float(moved.max()) <= 1e-12
        torch.testing.assert_close(moved.amax((2, 3)), maps.amax((2, 3)).clamp_max(0), atol=1e-12, rtol=0)
