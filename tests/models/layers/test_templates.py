"""Position templates against loops in double precision: places, masks, spreads, banks, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.layers.templates import (
    centres_of_mass,
    find_places,
    log_priors,
    masks,
    refuse_small,
    spreads,
    templates,
    traces,
)

CPU = torch.device("cpu")


def template(mu, beta, tau, height, width):
    """T_mu by the formula."""
    return [
        [tau * max(1 - beta * (abs(i - mu[0]) / height + abs(j - mu[1]) / width), -1) for j in range(width)]
        for i in range(height)
    ]


def some_maps(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (2, 2)])
def test_the_bank_is_the_formula(height, width):
    bank = templates(height, width, 4.0, 0.3, CPU)
    assert bank.shape == (height * width + 1, height * width)
    for i in range(height):
        for j in range(width):
            expected = torch.tensor(template((i, j), 4.0, 0.3, height, width)).flatten()
            torch.testing.assert_close(bank[i * width + j], expected, rtol=0, atol=1e-6)
    assert torch.equal(bank[-1], torch.full((height * width,), -0.3))


def test_each_filter_may_have_its_own_steepness():
    beta = torch.tensor([3.0, 6.0])
    bank, maps = templates(3, 4, beta, 0.5, CPU), some_maps(2, 2, 3, 4)
    for m, steep in enumerate(beta.tolist()):
        one = templates(3, 4, steep, 0.5, CPU)
        torch.testing.assert_close(bank[m], one)
        torch.testing.assert_close(traces(maps, bank)[:, m], traces(maps[:, m : m + 1], one)[:, 0])


def test_traces_are_those_of_the_matrix_product():
    maps = some_maps(2, 3, 4, 4)
    bank = templates(4, 4, 4.0, 1.0, CPU)
    said = traces(maps, bank)
    for t in range(17):
        # tr(x T) of matrices, T symmetric in that sum: the sum of products of entries.
        expected = [[float((maps[b, m] * bank[t].view(4, 4)).sum()) for m in range(3)] for b in range(2)]
        torch.testing.assert_close(said[:, :, t], torch.tensor(expected))


def test_priors_are_equal_by_default_and_sum_to_one():
    torch.testing.assert_close(log_priors(9, None, CPU).exp(), torch.full((10,), 0.1))
    given = log_priors(4, 0.6, CPU).exp()
    torch.testing.assert_close(given, torch.tensor([0.15, 0.15, 0.15, 0.15, 0.4]))


def test_places():
    maps = torch.zeros(1, 4, 3, 4)
    maps[0, 0, 1, 3] = 2.0
    maps[0, 1, 0, 1] = maps[0, 1, 2, 2] = 1.0  # of equal ones the first; the middle of both is at (1, 1.5)
    maps[0, 2, 0, 0], maps[0, 2, 2, 3] = 1.0, 3.0
    assert find_places(maps, "argmax").tolist() == [[7, 1, 11, 0]]
    assert find_places(maps, "centre_of_mass").tolist() == [[7, 6, 10, 0]]
    row, column = centres_of_mass(maps)
    assert row.tolist() == [[1.0, 1.0, 1.5, 0.0]]
    assert column.tolist() == [[3.0, 1.5, 2.25, 0.0]]
    with pytest.raises(UserError, match="argmax"):
        find_places(maps, "argmx")


@pytest.mark.parametrize("beta", [4.0, torch.tensor([1.0, 5.0])])
def test_masks_are_the_positive_parts_of_the_templates(beta):
    places = torch.tensor([[0, 7], [11, 5]])
    found = masks(places, beta, (3, 4))
    for b in range(2):
        for m in range(2):
            steep = beta if isinstance(beta, float) else float(beta[m])
            mu = divmod(int(places[b, m]), 4)
            expected = torch.tensor(template(mu, steep, 1.0, 3, 4)).clamp_min(0)
            torch.testing.assert_close(found[b, m], expected, rtol=0, atol=1e-6)


def test_spread_is_a_standard_deviation_in_coordinates_from_minus_one_to_one():
    maps = some_maps(2, 3, 4, 6, seed=1)
    maps[1, 2] = 0
    said = spreads(maps)
    for b in range(2):
        for m in range(3):
            mass = [
                (float(maps[b, m, i, j]), 2 * (i + 0.5) / 4 - 1, 2 * (j + 0.5) / 6 - 1)
                for i in range(4)
                for j in range(6)
            ]
            total = sum(w for w, _, _ in mass)
            if not total:
                assert float(said[b, m]) == 0
                continue
            middle = [sum(entry[0] * entry[axis] for entry in mass) / total for axis in (1, 2)]
            square = sum(w * ((y - middle[0]) ** 2 + (x - middle[1]) ** 2) for w, y, x in mass) / total
            assert float(said[b, m]) == pytest.approx(math.sqrt(square), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_a_map_without_two_places_is_refused(size):
    refuse_small(2, 2, "stage4")
    with pytest.raises(UserError, match=rf"'stage4' is {size[0]} x {size[1]}.*2 x 2.*earlier"):
        refuse_small(*size, "stage4")
