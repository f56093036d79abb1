"""The receptive field found by trying against the formula of convolutional arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.models import build
from vitrarium.models.prototypes.receptive import _last, _of_latent, receptive_field


def formula(layers, size):
    """Araujo et al. (Distill 2019): fields of a chain of (kernel, stride, padding), cut at the border of the image."""
    length, jump, start, count = 1, 1, 0, size
    for kernel, stride, padding in layers:
        length, start = length + (kernel - 1) * jump, start - padding * jump
        count, jump = (count + 2 * padding - kernel) // stride + 1, jump * stride
    begins = [start + jump * i for i in range(count)]
    return [(max(b, 0), min(b + length, size)) for b in begins]


def make(backbone, **evidence):
    evidence = {"name": "prototypes", "per_class": 1, **evidence}
    return build({"backbone": backbone, "evidence": evidence, "readout": "class_connected"}, ("a", "b"), seed=0)


STAGE = [(3, 1, 1), (2, 2, 0)]


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_convnet(norm):
    model = make({"name": "convnet", "widths": (8, 8, 8), "norm": norm})
    field = receptive_field(model, (48, 40))
    assert list(zip(field.top.tolist(), field.bottom.tolist(), strict=True)) == formula(STAGE * 3, 48)
    assert list(zip(field.left.tolist(), field.right.tolist(), strict=True)) == formula(STAGE * 3, 40)
    boxes = field.boxes(torch.tensor([[1, 0], [5, 4]]))
    torch.testing.assert_close(boxes[0], torch.tensor([0 / 40, 1 / 48, 15 / 40, 23 / 48]))
    assert boxes[1].tolist() == pytest.approx([25 / 40, 33 / 48, 1, 1])


def test_parts_see_what_their_places_see():
    single = receptive_field(make({"name": "convnet", "widths": (4, 4)}), 32)
    double = receptive_field(make({"name": "convnet", "widths": (4, 4)}, part=3), 32)
    assert torch.equal(double.top, single.top[:-2])
    assert torch.equal(double.bottom, single.bottom[2:])
    assert len(double.left) == len(single.left) - 2


def test_residual_network():
    """ResNet-20 before its first widening: seven convolutions of 3 x 3, and a shortcut that sees less."""
    model = make({"name": "resnet20", "cut": "layer1"})
    field = receptive_field(model, 32)
    assert list(zip(field.top.tolist(), field.bottom.tolist(), strict=True)) == formula([(3, 1, 1)] * 7, 32)


def test_global_operations_see_the_whole_image():
    field = receptive_field(make({"name": "convnet", "widths": (8, 8), "norm": "group"}), 32)
    assert not field.top.any()
    assert (field.right == 32).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(),
        nn.Sigmoid(), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(3).eval(), nn.LeakyReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_nan_goes_through_what_networks_are_made_of(layer, memory):
    reach = int(isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)))
    with torch.no_grad():
        field = _of_latent(lambda x: layer(x.contiguous(memory_format=memory)), 9, 11, 3)
    assert list(zip(field.left.tolist(), field.right.tolist(), strict=True)) == formula([(1 + 2 * reach, 1, reach)], 11)
    assert list(zip(field.top.tolist(), field.bottom.tolist(), strict=True)) == formula([(1 + 2 * reach, 1, reach)], 9)


def test_dilation_and_holes():
    conv = nn.Conv2d(3, 2, 3, dilation=4, padding=4)
    with torch.no_grad():
        field = _of_latent(conv, 16, 16, 3)
    assert list(zip(field.left.tolist(), field.right.tolist(), strict=True)) == [
        (max(i - 4, i % 4), min(i + 4, 15 - (15 - i) % 4) + 1) for i in range(16)
    ]


def test_it_is_computed_once(monkeypatch):
    model = make({"name": "convnet", "widths": (4, 4)})
    first = receptive_field(model, 32)
    monkeypatch.setattr("vitrarium.models.prototypes.receptive._of_latent", None)
    assert receptive_field(model, 32) is first


def test_refusals():
    with pytest.raises(UserError, match="no similarity maps"):
        receptive_field(build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ("a", "b")), 32)
    with pytest.raises(UserError, match="cannot be measured"):
        _of_latent(torch.nan_to_num, 4, 4, 3)
    assert _last(lambda edges: torch.tensor([[e <= 3, True] for e in edges]), 6).tolist() == [3, 5]
