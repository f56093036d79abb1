from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import build_backbone
from vitrarium.models.backbones.base import Backbone, Cut
from vitrarium.models.types import Features

CASES = [
    # backbone, cut, carried tensors, image size
    ("timm/resnet18", "layer4.0.bn1", 1, 32),
    ("timm/resnet18", "layer2", 0, 32),
    ("timm/resnet18", "layer2.0.downsample.0", 1, 32),
    ("timm/resnet18", "layer4.1.act2", 0, 32),
    ("convnet", "stage2", 0, 32),
    ("convnet", "stage2.conv1", 0, 32),
    ("convnet", "stage2.norm1", 0, 32),
    ("convnet", "stage2.relu1", 0, 32),
    ("convnet", "stage4", 0, 32),
    ("resnet20", "stem", 0, 32),
    ("resnet20", "layer2.0.bn1", 1, 32),
    ("resnet20", "layer2.0.shortcut", 1, 32),
    ("timm/vgg11_bn", "features.9", 0, 32),
    ("timm/vit_tiny_patch16_224", "blocks.1", 1, 64),
    ("timm/vit_tiny_patch16_224", "blocks.1.norm2", 2, 64),
    ("timm/swin_tiny_patch4_window7_224", "layers.1.downsample", 0, 56),
    ("timm/test_convnext", "stages.1.blocks.0.norm", 1, 160),
]
SIZES = {"timm/vit_tiny_patch16_224": 64, "timm/swin_tiny_patch4_window7_224": 56}


@pytest.fixture(scope="module")
def built(small_timm):
    """Whole backbones in float64 evaluation mode with running statistics that are not the identity, by name."""
    kept = {}

    def build(name):
        if name not in kept:
            torch.manual_seed(0)
            backbone = build_backbone({"name": name, **({"image_size": SIZES[name]} if name in SIZES else {})})
            for module in backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.running_mean, -0.1, 0.1)
                    nn.init.uniform_(module.running_var, 0.5, 2)
                    nn.init.uniform_(module.weight, 0.5, 2)
            kept[name] = backbone.double().eval()
        return kept[name]

    return build


@pytest.mark.parametrize(("name", "cut", "carried", "size"), CASES)
def test_stem_and_tail_make_the_whole_and_share_its_parameters(built, name, cut, carried, size):
    backbone = built(name)
    stem, tail = backbone.split(cut)
    x = torch.rand(2, 3, size, size, dtype=torch.float64)
    features = stem(x)
    assert len(features.carry) == carried
    assert stem.gives == ({"map", "carry"} if carried else {"map"})
    assert features.map.shape == (2, stem.channels, size // stem.stride, size // stem.stride)
    held = [t.clone() for t in (features.map, *features.carry)]
    out = tail(features.map, *features.carry)
    assert torch.allclose(out, backbone(x).map, rtol=1e-9, atol=1e-9)
    # Nothing was written into what others may look at.
    assert all(torch.equal(a, b) for a, b in zip(held, (features.map, *features.carry), strict=True))

    below, above = set(stem.parameters()), set(tail.parameters())
    assert below | above == set(backbone.parameters())
    assert not below & above
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), [*below, *above, features.map])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[-1].abs().max() > 0


def test_the_map_is_the_output_of_the_named_module(built):
    backbone = built("timm/resnet18")
    stem, _ = backbone.split("layer4.0.bn1")
    seen = []
    handle = backbone.network.get_submodule("layer4.0.bn1").register_forward_hook(lambda *a: seen.append(a[2].clone()))
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    backbone(x)
    map = stem(x).map
    handle.remove()
    assert torch.allclose(map, seen[0])
    assert torch.allclose(map, seen[1])


def test_modes_follow_train_and_eval():
    backbone = build_backbone("timm/resnet10t").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    stem, tail = backbone.split("layer3.0.bn1")
    after = backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "cutting must not train norms"
    assert all(module.training for module in backbone.modules())

    x = torch.rand(4, 3, 64, 64)
    features = stem(x)
    tail(features.map, *features.carry)
    for part, name in ((stem, "layer3.0.bn1"), (tail, "layer4.0.bn1")):
        norm = part.network.get_submodule(name)
        assert norm.num_batches_tracked == 1
    stem.eval()
    stem(x)
    assert stem.network.get_submodule("layer3.0.bn1").num_batches_tracked == 1


def test_halves_can_be_copied_saved_and_filled_again():
    backbone = build_backbone("resnet20").eval()
    stem, tail = backbone.split("layer2.0.bn1")
    copies = copy.deepcopy(stem), copy.deepcopy(tail)
    torch.manual_seed(9)
    fresh, above = build_backbone("resnet20").eval().split("layer2.0.bn1")
    fresh.load_state_dict(stem.state_dict())
    above.load_state_dict(tail.state_dict())
    assert {name.removeprefix("network.") for name in stem.state_dict()} - {"mean", "std"} <= set(
        backbone.network.state_dict()
    )
    x = torch.rand(1, 3, 32, 32)
    for lower, upper in (copies, (fresh, above)):
        features = lower(x)
        assert torch.equal(upper(features.map, *features.carry), backbone(x).map)


def test_a_cut_backbone_still_offers_its_tail():
    stem = build_backbone({"name": "resnet20", "cut": "layer2.0.bn1"})
    tail, channels = stem.tail()
    features = stem(torch.rand(1, 3, 32, 32))
    assert tail(features.map, *features.carry).shape == (1, channels, 8, 8)
    assert not set(stem.parameters()) & set(tail.parameters())
    with pytest.raises(UserError, match="nothing is left"):
        build_backbone("resnet20").tail()
    with pytest.raises(UserError, match=r"already ends at 'layer2\.0\.bn1'"):
        stem.split("layer1")


def test_cut_at_the_end_leaves_an_empty_tail():
    backbone = build_backbone({"name": "timm/resnet10t", "in_channels": 2})
    stem, tail = backbone.split("final")
    assert stem is backbone
    map = torch.rand(1, 512, 2, 2)
    assert torch.equal(tail(map), map)
    assert list(tail.parameters()) == []


class Toy(Backbone):
    """A backbone around any network, for what no real network should do."""

    def __init__(self, network):
        super().__init__()
        self.standardise_by((0.0,) * 3, (1.0,) * 3)
        self.network, self.cuts, self.cut = network, {"end": Cut(3, 1)}, "end"

    def forward(self, x):
        return Features(self.network(self.standardise(x)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.side = nn.Conv2d(3, 3, 1)
        self.twice = nn.ReLU()
        self.last = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))

    def forward(self, x):
        self.side(x)
        x = self.twice(self.first(x))
        return self.last(self.twice(x))


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class ByKind(nn.Module):
    """Goes another way when it is given something else than a tensor, and says nothing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if isinstance(x, torch.Tensor) else self.conv(x) + 1


class ByMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) * 2 if self.training else self.conv(x)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.back = nn.Unflatten(1, (3, 64, 128))

    def forward(self, x):
        return self.back(self.flat(x))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        y += x
        y = nn.functional.relu(y, inplace=True)
        return y.mul_(2)


@pytest.mark.parametrize(
    ("network", "cut", "said"),
    [
        (Branching(), "firts", "did you mean 'first'"),
        (Branching(), "twice", "used 2 times"),
        (Branching(), "side", "does not depend on"),
        (nn.Sequential(ByValue()), "0.conv", "cannot follow Sequential to '0.conv'"),
        (nn.Sequential(ByKind()), "0.conv", "cannot follow Sequential to '0.conv'"),
        (nn.Sequential(ByMode()), "0.conv", "differs between training and evaluation"),
        (Pooled(), "flat", "no map"),
    ],
)
def test_refusals_say_why(network, cut, said):
    with pytest.raises(UserError) as refused:
        Toy(network).split(cut)
    assert said in str(refused.value)


def test_what_cannot_be_followed_can_stay_whole():
    network = nn.Sequential(ByValue(), nn.ReLU(), ByMode())
    toy = Toy(network).eval()
    stem, tail = toy.split("1")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(tail(stem(x).map), toy(x).map)


def test_operations_in_place_become_ordinary_ones():
    toy = Toy(InPlace())
    stem, tail = toy.split("conv")
    x = torch.rand(2, 3, 8, 8)
    features = stem(x)
    kept = features.map.clone()
    assert torch.equal(tail(features.map, *features.carry), 2 * (kept + x).clamp_min(0))
    assert torch.equal(features.map, kept)
    leaf = kept.detach().requires_grad_()
    tail(leaf, *features.carry).sum().backward()
    assert leaf.grad is not None
