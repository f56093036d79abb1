from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import (
    PREFIXES,
    Prefix,
    build_backbone,
    describe_backbone,
    list_backbones,
)
from vitrarium.models.backbones.base import Backbone, for_channels


@pytest.mark.parametrize("spec", ["convnet", "resnet20", "timm/resnet10t", {"name": "convnet", "in_channels": 1}])
def test_map_is_what_channels_and_stride_say(spec):
    backbone = build_backbone(spec).eval()
    assert isinstance(backbone, Backbone)
    map = backbone(torch.rand(2, backbone.in_channels, 64, 64)).map
    assert map.shape == (2, backbone.channels, 64 // backbone.stride, 64 // backbone.stride)
    assert backbone.cut in backbone.cuts
    assert backbone.gives == {"map"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("convnt", "did you mean 'convnet'"),
        ("resnet18", "did you mean 'timm/resnet18'"),
        ("tim/resnet18", "'timm/resnet18'"),
        ("timm/resnet1", "'timm/resnet1"),
        ("timm/resnet18.a1in1k", "'a1_in1k'"),
        ({"name": "convnet", "widhts": [8]}, "'widths'"),
        ({"name": "timm/resnet10t", "pretrained": True}, "no option 'pretrained'"),
        ({"cut": "stage1"}, "needs a name"),
        ({"name": "convnet", "cut": "stage9"}, "'stage4'"),
        ({"name": "timm/resnet10t", "cut": "layer4.0.bn"}, "'layer4.0.bn1'"),
        ({"name": "timm/resnet10t", "image_size": 64}, "any size"),
        ({"name": "resnet20", "in_channels": 0}, "at least one channel"),
        ({"name": "timm/resnet10t", "in_channels": 0}, "in_channels"),
        ({"name": "timm/vit_tiny_patch16_224", "image_size": 0}, "image_size"),
    ],
)
def test_refusals_name_the_closest(spec, said):
    with pytest.raises(UserError) as refused:
        build_backbone(spec)
    assert said in str(refused.value)


def test_list_has_registered_and_timm_names():
    assert {"convnet", "resnet20", "resnet56"} <= set(list_backbones("*net*"))
    names = list_backbones("timm/resnet1*")
    assert "timm/resnet18" in names
    assert all(name.startswith("timm/resnet1") for name in names)
    assert list_backbones("resnet20") == ["resnet20"]
    assert len(list_backbones()) > 900


def test_describe_lists_named_cuts_and_the_one_asked_for():
    rows = describe_backbone({"name": "timm/resnet10t", "cut": "layer2.0.bn1", "weights": "not/read"}, size=96)
    assert [row[:5] for row in rows] == [
        ("act1", 64, 2, 48, 48),
        ("layer1", 64, 4, 24, 24),
        ("layer2", 128, 8, 12, 12),
        ("layer3", 256, 16, 6, 6),
        ("layer4", 512, 32, 3, 3),
        ("final", 512, 32, 3, 3),
        ("layer2.0.bn1", 128, 8, 12, 12),
    ]
    for row in rows:
        part = build_backbone({"name": "timm/resnet10t", "cut": row.cut})
        assert row.parameters == sum(p.numel() for p in part.parameters()), row.cut
    with pytest.raises(UserError, match="takes no images of 1 pixels"):
        describe_backbone("convnet", size=1)
    assert [row.cut for row in describe_backbone("convnet")] == ["stage1", "stage2", "stage3", "stage4"]


def test_a_prefix_is_a_module_imported_when_asked_for(monkeypatch):
    family = types.ModuleType("test_family")
    family.build = lambda model, widths=(8,): build_backbone({"name": "convnet", "widths": widths})
    family.names = lambda: ["small"]
    monkeypatch.setitem(sys.modules, "test_family", family)
    monkeypatch.setitem(PREFIXES, "mine", Prefix("test_family", "build", "names"))
    assert list_backbones("mine/*") == ["mine/small"]
    assert build_backbone({"name": "mine/small", "widths": [8, 12]}).channels == 12
    with pytest.raises(UserError, match=r"'mine/small'.*'width'.*did you mean 'widths'"):
        build_backbone({"name": "mine/small", "width": 3})


def test_timm_is_imported_only_when_asked_for():
    code = (
        "import sys; import vitrarium.models.backbones as b; import vitrarium.models.backbones.base\n"
        "b.build_backbone('convnet'); b.list_backbones('conv*'); b.describe_backbone('resnet20')\n"
        "assert 'timm' not in sys.modules and 'torchvision' not in sys.modules\n"
        "b.list_backbones('timm/resnet18'); assert 'timm' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 4, 32, 32), (3, 32, 32)])
def test_images_of_another_channel_count_are_refused(shape):
    with pytest.raises(UserError, match="in_channels"):
        build_backbone("convnet")(torch.rand(shape))


def test_standardisation_is_saved_with_the_model():
    backbone = build_backbone({"name": "convnet", "widths": [4]})
    state = backbone.state_dict()
    assert torch.equal(state["mean"], torch.full((3,), 0.5))
    assert torch.equal(state["std"], torch.full((3,), 0.25))
    pixels = torch.rand(2, 3, 4, 4)
    expected = (pixels - 0.5) / 0.25
    assert torch.allclose(backbone.standardise(pixels), expected)


def test_for_channels_averages_where_the_number_differs():
    assert for_channels((1.0, 2.0, 6.0), 3) == (1.0, 2.0, 6.0)
    assert for_channels((1.0, 2.0, 6.0), 2) == (3.0, 3.0)


def test_same_seed_gives_the_same_weights_whatever_the_cut():
    states = []
    for cut in (None, "layer1", "layer1.0.bn2"):
        torch.manual_seed(3)
        states.append(build_backbone({"name": "timm/resnet10t", "cut": cut}).state_dict())
    for state in states[1:]:
        assert len(state) < len(states[0])
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
