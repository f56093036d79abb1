"""The decoder: any size, in [0, 1], and every unit reaches every pixel."""

from __future__ import annotations

import pytest
import torch

from vitrarium.models.layers.decoder import SIDE, ImageDecoder


@pytest.mark.parametrize("size", [(SIDE, SIDE), (64, 64), (24, 40), (7, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_size_that_is_asked_for(size, channels):
    torch.manual_seed(0)
    image = ImageDecoder(5, channels, width=4)(10 * torch.randn(2, 5), size)
    assert image.shape == (2, channels, *size)
    low, high = image.detach().aminmax()
    assert 0 <= float(low) < float(high) <= 1


def test_at_its_own_size_it_is_its_layers_and_a_sigmoid():
    decoder, units = ImageDecoder(5, width=1).double(), torch.randn(3, 5, dtype=torch.float64)
    grid = (units @ decoder.start.weight.T + decoder.start.bias).view(3, 1, 4, 4)
    for layer in decoder.layers:
        grid = layer(grid)
    torch.testing.assert_close(decoder(units, (SIDE, SIDE)), 1 / (1 + (-grid).exp()))


def test_each_unit_may_change_the_picture_and_learns_from_it():
    torch.manual_seed(0)
    decoder, units = ImageDecoder(6, width=8), torch.rand(1, 6, requires_grad=True)
    decoder(units, (40, 40)).square().mean().backward()
    assert bool((units.grad.abs() > 0).all())
    assert all(bool(p.grad.abs().sum() > 0) for p in decoder.parameters())
