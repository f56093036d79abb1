from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import build_backbone, describe_backbone
from vitrarium.models.backbones.timm_adapter import has_narrow_strided_pointwise

CASES = [
    # model, image size, whether the size must be told
    ("resnet18", 64, False),
    ("resnet10t", 64, False),
    ("vit_tiny_patch16_224", 64, True),
    ("convnext_atto", 64, False),
    ("swin_tiny_patch4_window7_224", 56, True),
    ("mobilenetv3_small_050", 64, False),
    ("efficientnet_lite0", 64, False),
    ("densenet121", 64, False),
    ("vgg11_bn", 64, False),
    ("pit_ti_224", 64, True),  # ends in a class token: no final map
]
pytestmark = pytest.mark.usefixtures("small_timm")


def spec(model, size, told, **options):
    return {"name": f"timm/{model}", **({"image_size": size} if told else {}), **options}


def reference(model, size, told, in_channels, state):
    """The same model made by timm itself, with the same weights where it has them."""
    options = {"img_size": size} if told else {}
    network = timm.create_model(model, pretrained=False, num_classes=0, in_chans=in_channels, **options)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    return network.eval(), missing


@pytest.mark.parametrize(("model", "size", "told"), CASES)
@pytest.mark.parametrize("in_channels", [3, 1])
def test_final_map_is_that_of_timm_and_channels_come_first(model, size, told, in_channels):
    backbone = build_backbone(spec(model, size, told, in_channels=in_channels)).eval()
    x = torch.rand(2, in_channels, size, size)
    with torch.no_grad():
        map = backbone(x).map
        network, _ = reference(model, size, told, in_channels, backbone.network.state_dict())
        mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        if in_channels == 1:
            mean, std = [sum(mean) / 3], [sum(std) / 3]
        pixels = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        final = network.forward_features(pixels)
        if model.startswith("vit"):
            final = torch.stack([final[:, 1 + i] for i in range(16)], -1).reshape(2, -1, 4, 4)
        elif model.startswith("swin"):
            final = torch.stack([final[..., d] for d in range(final.shape[-1])], 1)
        elif model.startswith("pit"):
            final = network.forward_intermediates(pixels, intermediates_only=True)[-1]
    assert map.shape == (2, backbone.channels, *final.shape[2:])
    assert torch.allclose(map, final, atol=1e-4)
    assert backbone.cut == (list(backbone.cuts)[-1] if model.startswith("pit") else "final")
    assert size // map.shape[2] == backbone.stride


@pytest.mark.parametrize(("model", "size", "told"), CASES)
def test_every_parameter_is_used(model, size, told):
    """No head stays behind: vgg's alone would be 120 million unused numbers."""
    backbone = build_backbone(spec(model, size, told)).eval()
    backbone(torch.rand(2, 3, size, size)).map.square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("model", "size", "told"), [case for case in CASES if case[0] not in ("pit_ti_224", "vgg11_bn")]
)
def test_named_cuts_are_timms_features_without_what_lies_above(model, size, told):
    names = [row.cut for row in describe_backbone(spec(model, size, told))]
    assert names[-1] == "final"
    for place in (0, len(names) // 2):
        cut = build_backbone(spec(model, size, told, cut=names[place])).eval()
        assert list(cut.cuts) == names[: place + 1]
        network, missing = reference(model, size, told, 3, cut.network.state_dict())
        assert missing, "layers above the cut are gone"
        x = torch.rand(1, 3, size, size)
        with torch.no_grad():
            expected = network.forward_intermediates(cut.standardise(x), output_fmt="NCHW", intermediates_only=True)
        map = cut(x).map
        assert torch.allclose(map, expected[place], atol=1e-4)
        assert map.shape == (1, cut.channels, size // cut.stride, size // cut.stride)
        map.square().sum().backward()
        assert all(parameter.grad is not None for parameter in cut.parameters())


def test_any_other_module_is_cut_by_fx():
    stem = build_backbone(spec("vit_tiny_patch16_224", 64, True, cut="blocks.1.norm1", in_channels=1))
    features = stem(torch.rand(2, 1, 64, 64))
    assert features.map.shape == (2, 192, 4, 4)
    assert [tuple(t.shape) for t in features.carry] == [(2, 1, 192), (2, 17, 192)]
    assert stem.gives == {"map", "carry"}
    assert not any("blocks.2." in name for name, _ in stem.named_parameters())


def test_images_of_another_size_are_refused_before_timm_fails():
    with pytest.raises(UserError, match=r"takes 64 x 64 pixels, got 32 x 64.*image_size"):
        build_backbone(spec("vit_tiny_patch16_224", 64, True))(torch.rand(1, 3, 32, 64))
    with pytest.raises(UserError, match="8 x 8"):
        build_backbone(spec("vit_tiny_patch16_224", 8, True))


def test_a_model_without_final_map_cannot_be_split():
    with pytest.raises(UserError, match=r"transformers\.0"):
        build_backbone(spec("pit_ti_224", 64, True)).split("transformers.1")
    with pytest.raises(UserError, match="without a cut"):
        build_backbone(spec("resnet10t", 64, False, cut="layer2")).split("layer1")


def test_branches_through_one_module_have_names_of_their_own():
    """Crossvit: two branches of tokens, patches of 12 and 16 pixels, whose features timm files under one name."""
    rows = describe_backbone("timm/crossvit_tiny_240")
    assert [row.cut for row in rows] == ["blocks.0", "blocks.1", "blocks.2", "blocks.0:2", "blocks.1:2", "blocks.2:2"]
    for cut, width, places in (("blocks.1", 96, 20), ("blocks.1:2", 192, 14)):
        backbone = build_backbone({"name": "timm/crossvit_tiny_240", "cut": cut})
        assert backbone(torch.rand(1, 3, 240, 240)).map.shape == (1, backbone.channels, places, places)
        assert backbone.channels == width


def test_nothing_is_done_in_place():
    backbone = build_backbone("timm/mobilenetv3_small_050")
    assert not any(getattr(module, "inplace", False) is True for module in backbone.modules())


def test_memory_order_spares_networks_it_would_crash():
    assert build_backbone("timm/resnet10t").channels_last
    assert not build_backbone("timm/fastvit_t8").channels_last
    assert has_narrow_strided_pointwise(nn.Sequential(nn.Conv2d(3, 8, 1, stride=2)))
    assert not has_narrow_strided_pointwise(nn.Sequential(nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(3, 8, 1)))


def test_building_leaves_statistics_and_modes_alone():
    backbone = build_backbone("timm/resnet10t")
    assert all(module.training for module in backbone.modules())
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(module.num_batches_tracked == 0 for module in norms)
