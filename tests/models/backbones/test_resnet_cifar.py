from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vitrarium.models.backbones import build_backbone
from vitrarium.models.backbones.resnet_cifar import ZeroPadShortcut


def test_shortcut_keeps_every_second_place_and_pads_channels_on_both_sides():
    x = torch.randn(2, 4, 5, 6)
    y = ZeroPadShortcut(4)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


@pytest.mark.parametrize(("name", "convolutions", "parameters"), [("resnet20", 19, 269_072), ("resnet56", 55, 852_368)])
def test_size_is_the_published_one(name, convolutions, parameters):
    """He et al. count the classifier, which is not ours, as a layer; they give 0.27 and 0.85 million parameters."""
    backbone = build_backbone(name)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in backbone.modules()) == convolutions
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_forward_is_the_residual_network_written_out():
    torch.manual_seed(0)
    backbone = build_backbone("resnet20").eval().double()
    state = {name.removeprefix("network."): value for name, value in backbone.state_dict().items()}

    def norm(x, at):
        scale = state[f"{at}.weight"] / (state[f"{at}.running_var"] + 1e-5).sqrt()
        return (x - state[f"{at}.running_mean"][:, None, None]) * scale[:, None, None] + state[f"{at}.bias"][
            :, None, None
        ]

    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    y = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    y = norm(F.conv2d(y, state["conv1.weight"], padding=1), "bn1").relu()
    for layer in (1, 2, 3):
        for block in (0, 1, 2):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            inner = norm(F.conv2d(y, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").relu()
            inner = norm(F.conv2d(inner, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            shortcut = torch.zeros_like(inner)
            added = inner.shape[1] - y.shape[1]
            shortcut[:, added // 2 : added // 2 + y.shape[1]] = y[:, :, ::stride, ::stride]
            y = (inner + shortcut).relu()
    assert torch.allclose(backbone(x).map, y, atol=1e-6)


@pytest.mark.parametrize("cut", ["stem", "layer1", "layer2", "layer3"])
def test_named_cuts(cut):
    stem = build_backbone({"name": "resnet20", "cut": cut}).eval()
    assert stem(torch.rand(1, 3, 32, 32)).map.shape == (1, stem.channels, 32 // stem.stride, 32 // stem.stride)
    assert (stem.channels, stem.stride) == {"stem": (16, 1), "layer1": (16, 1), "layer2": (32, 2), "layer3": (64, 4)}[
        cut
    ]


@pytest.mark.parametrize("name", ["resnet20-12fca82f", "resnet56-4bfd9763"])
def test_public_weights_fit_completely(real_data, name):
    path = real_data / "weights_cifar10_resnet" / f"{name}.th"
    report = build_backbone({"name": name.partition("-")[0], "weights": str(path)}).weight_report
    assert report.complete
    assert report.fraction == 1
    assert report.unexpected == ("module.linear.weight", "module.linear.bias")


def test_public_weights_classify(real_data):
    """81.0 % on all 10,000 images of this lossy copy; on 500 of them within five standard errors of that."""
    path = real_data / "weights_cifar10_resnet" / "resnet20-12fca82f.th"
    backbone = build_backbone({"name": "resnet20", "weights": str(path)}).eval()
    head = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    images, labels = cifar10_test(real_data, 500)
    with torch.no_grad():
        pooled = backbone(images).map.mean((2, 3))
        logits = F.linear(pooled, head["module.linear.weight"], head["module.linear.bias"])
    assert (logits.argmax(1) == labels).float().mean() > 0.76


def cifar10_test(real_data, count):
    with np.load(real_data / "cifar10" / "cifar10_test_jpeg.npz") as file:
        jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    images = [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels[:count]).long()
