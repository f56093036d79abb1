"""Whitening by the batch and by running statistics, against matrix algebra in double precision."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from vitrarium.configs.errors import UserError
from vitrarium.models.layers import inverse_root as roots
from vitrarium.models.layers import whitening as module
from vitrarium.models.layers.batch_whitening import whiten
from vitrarium.models.layers.whitening import Whitening

EXACT = ("eigh", "cholesky")


def correlated(batch: int = 6, channels: int = 6, side: int = 3, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=draw, dtype=torch.float64)
    map = torch.randn(batch, channels, side, side, generator=draw, dtype=torch.float64)
    return (torch.einsum("dc,bchw->bdhw", mix, map) + 3).to(dtype)


def covariance(map: torch.Tensor) -> torch.Tensor:
    return torch.cov(map.double().transpose(0, 1).flatten(1), correction=0)


def by_algebra(map: torch.Tensor, method: str, groups: int = 1, eps: float = 1e-5) -> torch.Tensor:
    """Whitening with autograd's own derivatives: plain for Cholesky, through eigenvectors for ZCA."""
    parts = []
    for part in map.chunk(groups, 1):
        x = part.transpose(0, 1).flatten(1)
        centred = x - x.mean(1, keepdim=True)
        sigma = centred @ centred.T / x.shape[1]
        sigma = sigma + (eps * sigma.trace() / len(sigma) + 1e-10) * torch.eye(len(sigma), dtype=x.dtype)
        if method == "cholesky":
            white = torch.linalg.inv(torch.linalg.cholesky(sigma)) @ centred
        else:
            values, vectors = torch.linalg.eigh(sigma)
            white = vectors @ torch.diag(values**-0.5) @ vectors.T @ centred
        parts.append(white.reshape(part.transpose(0, 1).shape).transpose(0, 1))
    return torch.cat(parts, 1)


def turns(groups: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.linalg.qr(torch.randn(groups, width, width, generator=draw, dtype=torch.float64)).Q


@pytest.fixture(autouse=True)
def _fresh_warnings(monkeypatch):
    monkeypatch.setattr(roots, "_warned", set())


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_values_and_gradients_are_those_of_algebra(method, groups, last):
    memory = torch.channels_last if last else torch.contiguous_format
    map = correlated().contiguous(memory_format=memory).requires_grad_()
    weight = torch.randn(map.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    white, mean, sigma = whiten(map, groups, method)
    expected = by_algebra(map, method, groups)
    torch.testing.assert_close(white, expected)
    found, wanted = (torch.autograd.grad(out, map, weight)[0] for out in (white, expected))
    torch.testing.assert_close(found, wanted)
    assert not mean.requires_grad
    assert not sigma.requires_grad
    torch.testing.assert_close(mean.flatten(), map.detach().mean((0, 2, 3)))
    full = covariance(map.detach())
    for g, block in enumerate(sigma):
        part = slice(g * len(block), (g + 1) * len(block))
        torch.testing.assert_close(block, full[part, part])
        torch.testing.assert_close(
            covariance(white.detach())[part, part], torch.eye(len(block)).double(), atol=2e-3, rtol=0
        )


@pytest.mark.parametrize("method", [*EXACT, "iternorm"])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_derivatives(method, rotated, groups, eps):
    """eps is a share of the variance, so a derivative that took it for a constant would be wrong at 0.3."""
    map = correlated(2, 4, 2).requires_grad_()
    rotation = turns(groups, 4 // groups) if rotated else None

    def function(x):
        return whiten(x, groups, method, eps, 4, rotation)[0]

    assert gradcheck(function, map)
    assert gradgradcheck(function, map, fast_mode=True)


@pytest.mark.parametrize("method", EXACT)
def test_equal_eigenvalues_have_finite_right_derivatives(method):
    """Autograd through eigenvectors divides by differences of eigenvalues, and gives NaN here."""
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(12, 4, generator=draw, dtype=torch.float64)
    rows = torch.linalg.qr(wide - wide.mean(0)).Q
    map = rows.reshape(3, 2, 2, 4).permute(0, 3, 1, 2).contiguous().requires_grad_()
    assert gradcheck(lambda x: whiten(x, method=method)[0], map)


def spectra(channels: int) -> dict[str, torch.Tensor]:
    """Eigenvalues of condition 1e4."""
    one_small = torch.ones(channels, dtype=torch.float64)
    one_small[0] = 1e-4
    return {"even": torch.logspace(-4, 0, channels, dtype=torch.float64), "one small": one_small}


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", ["even", "one small"])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_white_at_condition_ten_thousand(method, name, offset):
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(1568, 64, generator=draw, dtype=torch.float64)
    rows = torch.linalg.qr(wide - wide.mean(0)).Q * 1568**0.5 * spectra(64)[name].sqrt() @ turns(1, 64)[0]
    map = (rows + offset).float().reshape(32, 7, 7, 64).permute(0, 3, 1, 2)
    values = torch.linalg.eigvalsh(covariance(Whitening(64, method=method)(map).detach()))
    assert float(values.min()) > 0.9
    assert float(values.max()) < 1.1


@pytest.mark.parametrize("method", [*EXACT, "iternorm"])
def test_evaluation_with_the_statistics_of_the_batch_gives_what_training_gave(method):
    map, layer = correlated(), Whitening(6, 2, method, momentum=1.0, iterations=20).double()
    before = layer(map)
    torch.testing.assert_close(layer.eval()(map), before, atol=1e-6, rtol=1e-5)


def test_running_statistics_are_moving_averages_of_means_and_covariances():
    layer, maps = Whitening(6, 3, momentum=0.3).double(), [correlated(seed=seed) for seed in range(3)]
    mean, sigma = maps[0].mean((0, 2, 3)), covariance(maps[0])
    layer(maps[0])
    for map in maps[1:]:
        layer(map)
        mean = 0.7 * mean + 0.3 * map.mean((0, 2, 3))
        sigma = 0.7 * sigma + 0.3 * covariance(map)
    torch.testing.assert_close(layer.running_mean.flatten(), mean)
    blocks = torch.stack([sigma[g : g + 2, g : g + 2] for g in (0, 2, 4)])
    torch.testing.assert_close(layer.running_covariance, blocks)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    white = layer(maps[0])
    matrix = layer.matrix()
    expected = torch.einsum("dc,bchw->bdhw", matrix, maps[0] - mean[:, None, None])
    torch.testing.assert_close(white, expected)
    eye = torch.eye(2, dtype=torch.float64)
    for g, block in enumerate(blocks):
        own = matrix[2 * g : 2 * g + 2, 2 * g : 2 * g + 2]
        torch.testing.assert_close(own @ block @ own.T, eye, atol=1e-3, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))


def test_evaluation_is_affine_and_lets_gradients_through():
    layer = Whitening(6).double()
    layer(correlated())
    layer.eval()
    map = correlated(2, seed=3).requires_grad_()
    weight = torch.randn(map.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(layer(map), map, weight)
    torch.testing.assert_close(found, torch.einsum("dc,bdhw->bchw", layer.matrix(), weight))
    assert gradcheck(layer, map)


@pytest.mark.parametrize("training", [True, False])
def test_a_rotation_is_applied_after_whitening_and_gets_no_gradient(training):
    layer, rotation = Whitening(6, 2).double(), turns(2, 3).requires_grad_()
    layer(correlated())
    layer.train(training)
    map = correlated(seed=3)
    expected = torch.nn.functional.conv2d(
        copy.deepcopy(layer)(map), rotation.detach().flatten(0, 1)[..., None, None], groups=2
    )
    turned = layer(map.requires_grad_(), rotation)
    torch.testing.assert_close(turned, expected)
    turned.square().sum().backward()
    assert rotation.grad is None
    assert map.grad is not None


def test_the_matrix_is_computed_once_for_evaluation(monkeypatch):
    calls, real = [], module.inverse_root
    monkeypatch.setattr(module, "inverse_root", lambda *args: calls.append(1) or real(*args))
    layer, map = Whitening(6), correlated(dtype=torch.float32)
    for _ in range(300):
        layer(map)
    assert not calls
    layer.eval()
    first = layer(map)
    for _ in range(5):
        assert torch.equal(layer(map), first)
    assert len(calls) == 1
    layer.running_covariance.mul_(4)
    torch.testing.assert_close(layer(map), first / 2)
    layer(map)
    assert len(calls) == 2


def test_a_state_is_taken_over_in_evaluation_too(tmp_path):
    layer, other, map = Whitening(6, 2), Whitening(6, 2).eval(), correlated(dtype=torch.float32)
    for seed in range(3):
        layer(correlated(seed=seed, dtype=torch.float32))
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    before = other(map)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not torch.allclose(other(map), before)
    assert torch.equal(other(map), layer.eval()(map))
    # Training goes on as if it had not stopped.
    assert torch.equal(other.train()(map), layer.train()(map))
    for name, buffer in layer.state_dict().items():
        assert torch.equal(buffer, other.state_dict()[name])
    assert torch.equal(copy.deepcopy(other).eval()(map), other.eval()(map))


@pytest.mark.parametrize("method", [*EXACT, "iternorm"])
@pytest.mark.parametrize("value", [0.0, 7.0, 1e4])
def test_channels_that_are_constant_become_zero(method, value):
    map = correlated(channels=4, dtype=torch.float32)
    map[:, 1] = value
    map.requires_grad_()
    layer = Whitening(4, method=method)
    white = layer(map)
    (gradient,) = torch.autograd.grad(white, map, torch.ones_like(white) + map.detach().sin())
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(white[:, 1], torch.zeros_like(white[:, 1]), atol=5e-2, rtol=0)
    assert torch.isfinite(layer.eval()(map)).all()
    if method != "iternorm":
        others = covariance(white.detach())[[0, 2, 3]][:, [0, 2, 3]]
        torch.testing.assert_close(others, torch.eye(3, dtype=torch.float64), atol=1e-2, rtol=0)


@pytest.mark.parametrize("method", [*EXACT, "iternorm"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_map_that_is_constant_everywhere_becomes_zero(method, value):
    map = torch.full((3, 4, 3, 3), value, requires_grad=True)
    layer = Whitening(4, method=method)
    white = layer(map)
    assert not white.any()
    (gradient,) = torch.autograd.grad(white, map, torch.randn(white.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(gradient).all()
    assert not layer.eval()(map).isnan().any()


@pytest.mark.parametrize("method", [*EXACT, "iternorm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_not_hidden(method, value):
    map, layer = correlated(dtype=torch.float32), Whitening(6, method=method)
    layer(map)
    before = copy.deepcopy(layer.state_dict())
    map[1, 2, 0, 0] = value
    with pytest.raises(UserError, match="NaN or infinity"):
        layer(map)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))
    assert layer.eval()(map)[1].isnan().any() or layer.eval()(map)[1].isinf().any()


def test_too_few_values_for_a_covariance():
    layer = Whitening(12, 2)
    small = torch.randn(1, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"6 values for each of 6 channels") as caught:
        layer(small)
    for cure in ("batch_size", "backbone.cut", "groups"):
        assert cure in str(caught.value)
    # A last batch that is too small is whitened by what the others taught.
    layer(correlated(channels=12, dtype=torch.float32))
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer(small), copy.deepcopy(layer).eval()(small))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="too few"):
        whiten(small, 2)


def test_half_precision_is_whitened_in_single():
    map = correlated(dtype=torch.float32)
    layer, other = Whitening(6), Whitening(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(map)
        half = layer.eval()(map.bfloat16())
    assert found.dtype == half.dtype == torch.float32
    assert torch.equal(found, other(map))
    assert torch.equal(half, other.eval()(map.bfloat16().float()))


def test_newtons_iteration_says_once_when_it_has_not_converged(caplog):
    easy, hard = correlated(40, 3), correlated(40, 3) * torch.tensor([1e-3, 1, 1])[:, None, None]
    with caplog.at_level(logging.WARNING):
        whiten(easy, method="iternorm", iterations=30)
        assert not caplog.records
        for _ in range(3):
            whiten(hard, method="iternorm", iterations=5)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "5 Newton iterations" in message
    assert "eigh" in message


def test_newtons_iteration_converges_to_the_symmetric_root():
    map = correlated(40, 4)
    newton, exact = (whiten(map, method=method, iterations=40)[0] for method in ("iternorm", "eigh"))
    torch.testing.assert_close(newton, exact, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"groups": 4}, "6 channels cannot be whitened in groups=4"),
        ({"groups": 0}, "groups=0"),
        ({"method": "eihg"}, "eigh"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"momentum": 0.0}, "momentum=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_what_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        Whitening(6, **options)


def test_printing():
    assert repr(Whitening(6, 2, "cholesky")) == "Whitening(6, groups=2, method=cholesky, eps=1e-05)"
