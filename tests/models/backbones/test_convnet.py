from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import build_backbone


def by_hand(backbone, x, widths, depth, norm, pool):
    """Convolution, norm, ReLU, in that order, then pooling: the definition, from the state dict."""
    state = {name.removeprefix("network."): value for name, value in backbone.state_dict().items()}
    x = (x - 0.5) / 0.25
    for stage in range(1, len(widths) + 1):
        for n in range(1, depth + 1):
            at = f"stage{stage}."
            x = F.conv2d(x, state[f"{at}conv{n}.weight"], state.get(f"{at}conv{n}.bias"), padding=1)
            if norm == "batch":
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
                x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
            elif norm == "group":
                groups = x.unflatten(1, (-1, 4))
                mean = groups.mean((2, 3, 4), keepdim=True)
                var = groups.var((2, 3, 4), unbiased=False, keepdim=True)
                x = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
            if norm != "none":
                x = x * state[f"{at}norm{n}.weight"][:, None, None] + state[f"{at}norm{n}.bias"][:, None, None]
            x = x.clamp_min(0)
        blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        x = blocks.amax((3, 5)) if pool == "max" else blocks.mean((3, 5))
    return x


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("depth", [1, 2])
def test_values_and_gradients_are_those_of_the_definition(norm, pool, depth):
    torch.manual_seed(0)
    widths = [4, 12]
    backbone = build_backbone({"name": "convnet", "widths": widths, "depth": depth, "norm": norm, "pool": pool})
    backbone.double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            # Scales of either sign: pooling before the ReLU must not depend on it.
            parameter.add_(0.5 * torch.randn_like(parameter))
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 12, 2, 2, dtype=torch.float64)
    got = backbone(x).map
    expected = by_hand(backbone, x, widths, depth, norm, pool)
    assert torch.allclose(got, expected, atol=1e-10)
    (mine,) = torch.autograd.grad((got * weight).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(mine, theirs, atol=1e-10)


def test_bias_only_without_a_norm():
    biases = {
        norm: [m.bias is not None for m in build_backbone({"name": "convnet", "norm": norm}).modules() if is_conv(m)]
        for norm in ("batch", "group", "none")
    }
    assert not any(biases["batch"] + biases["group"])
    assert all(biases["none"])


def is_conv(module):
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize("depth", [1, 3])
def test_every_module_is_called_once_and_nothing_is_in_place(depth):
    backbone = build_backbone({"name": "convnet", "depth": depth})
    leaves = [m for m in backbone.modules() if not list(m.children())]
    calls = {m: 0 for m in leaves}
    for module in leaves:
        module.register_forward_hook(lambda m, *_: calls.__setitem__(m, calls[m] + 1))
    backbone(torch.rand(2, 3, 32, 32))
    assert set(calls.values()) == {1}
    assert not any(getattr(m, "inplace", False) for m in leaves)


def test_cuts_have_the_channels_and_strides_they_say():
    whole = build_backbone("convnet")
    for name, (channels, stride) in whole.cuts.items():
        stem = build_backbone({"name": "convnet", "cut": name})
        assert (stem.channels, stem.stride) == (channels, stride)
        assert stem(torch.rand(1, 3, 64, 64)).map.shape == (1, channels, 64 // stride, 64 // stride)
    small = build_backbone({"name": "convnet", "cut": "stage1"})
    assert {name for name, _ in small.named_parameters()} == {
        "network.stage1.conv1.weight",
        "network.stage1.norm1.weight",
        "network.stage1.norm1.bias",
    }


@pytest.mark.parametrize(
    "options", [{"widths": []}, {"widths": [8, 0]}, {"depth": 0}, {"norm": "layer"}, {"pool": "min"}, {"widths": ["8"]}]
)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        build_backbone({"name": "convnet", **options})
