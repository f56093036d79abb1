"""The last normalisation of a network is found and taken out; what else it did stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import build_backbone
from vitrarium.models.backbones.norms import is_norm, last_norm, without_norm

LAST = {
    "convnet": "stage4.norm1",
    "resnet20": "layer3.2.bn2",
    "timm/resnet18": "layer4.1.bn2",
    "timm/convnext_atto": "stages.3.blocks.1.norm",
    "timm/efficientnet_lite0": "bn2",
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_norm_is_the_cut(name):
    backbone = build_backbone({"name": name, "cut": "last_norm"})
    assert backbone.cut == LAST[name]


@pytest.mark.parametrize("name", ["convnet", "timm/resnet10t", "timm/efficientnet_lite0"])
def test_opened_the_map_is_what_the_norm_was_given(name):
    whole = build_backbone({"name": name}).eval()
    torch.manual_seed(0)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    path = last_norm(whole)
    norm, given, x = whole.network.get_submodule(path), [], torch.rand(2, 3, 64, 64)
    hook = norm.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach().clone()))
    with torch.no_grad():
        final = whole(x).map
        hook.remove()
        stem = whole.truncate(path)
        assert stem.open_norm()
        features = stem(x)
        torch.testing.assert_close(features.map, given[0])
        # The norm's arithmetic put back by hand gives the final map of the uncut network.
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        normed = (features.map - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        tail, _ = stem.tail()
        torch.testing.assert_close(tail(normed, *features.carry), final, rtol=1e-4, atol=1e-4)


def test_a_cut_that_is_no_norm_stays():
    stem = build_backbone({"name": "convnet", "cut": "stage2.relu1"})
    assert not stem.open_norm()
    assert not build_backbone("convnet").open_norm()


def test_a_network_without_norms_is_refused():
    with pytest.raises(UserError, match="cannot be cut at a normalisation"):
        build_backbone({"name": "convnet", "norm": "none", "cut": "last_norm"})


def test_an_unknown_cut_names_the_closest():
    with pytest.raises(UserError, match=r"stage4\.norm1"):
        build_backbone({"name": "convnet", "cut": "stage4.nrom1"})


def test_named_cuts_of_timm_keep_their_tail():
    stem = build_backbone({"name": "timm/resnet10t", "cut": "layer2"}).eval()
    whole = build_backbone({"name": "timm/resnet10t"}).eval()
    x = torch.rand(1, 3, 64, 64)
    tail, channels = stem.tail()
    assert tail.eval()(stem(x).map).shape == whole(x).map.shape
    assert channels == whole.channels


class Odd(nn.Module):
    """A normalisation of unknown making."""


class OddNorm(Odd):
    pass


def test_what_counts_as_a_norm():
    assert all(is_norm(module) for module in (nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), OddNorm()))
    assert not is_norm(nn.ReLU())
    assert not is_norm(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert isinstance(without_norm(nn.GroupNorm(1, 2)), nn.Identity)
    assert without_norm(OddNorm()) is None
