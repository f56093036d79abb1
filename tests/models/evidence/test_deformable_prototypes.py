"""Deformable prototypes against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import Features, build
from vitrarium.models.evidence.deformable_prototypes import DeformablePrototypes
from vitrarium.models.prototypes.receptive import receptive_field


def layer_of(offsets=0.0, seed=0, classes=2, per_class=2, channels=3, **options):
    torch.manual_seed(seed)
    layer = DeformablePrototypes(channels, classes, per_class, **options).double().eval()
    if offsets:
        torch.nn.init.normal_(layer.offsets.weight, std=offsets)
        torch.nn.init.normal_(layer.offsets.bias, std=offsets)
    return layer


def features(seed=1, channels=3, low=0.0):
    draw = torch.rand(4, channels, 4, 5, generator=torch.Generator().manual_seed(seed)).double()
    return Features((draw + low).relu() if low <= 0 else draw)


def between(z, y, x, squares):
    """z (E, h, w) at a place between places; beyond the border the nearest one inside."""
    _, height, width = z.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    total = torch.zeros(len(z), dtype=z.dtype)
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if share_y * share_x > 0:
                value = z[:, row, column]
                total += share_y * share_x * (value**2 if squares else value)
    return total.sqrt() if squares else total / total.norm()


def by_hand(layer, x, squares=True):
    """Cosines (B, P, h, w) by loops, and the parts (B, h, w, k^2, E)."""
    part = layer.part
    map_ = torch.cat([x.map.relu(), torch.full_like(x.map[:, :2], 1e-4)], 1)
    z = map_ / (map_**2).sum(1, keepdim=True).sqrt()
    offsets = layer.offsets(z).detach()
    reach = float(layer.steps.max())
    line = [0.0] if part == 1 else [-reach + 2 * reach * n / (part - 1) for n in range(part)]
    cosines = torch.zeros(len(z), len(layer.prototypes), *z.shape[2:], dtype=z.dtype)
    parts = torch.zeros(len(z), *z.shape[2:], part**2, z.shape[1], dtype=z.dtype)
    for b in range(len(z)):
        for i in range(z.shape[2]):
            for j in range(z.shape[3]):
                for n in range(part**2):
                    y = i + line[n // part] + float(offsets[b, n, i, j])
                    x_ = j + line[n % part] + float(offsets[b, part**2 + n, i, j])
                    parts[b, i, j, n] = between(z[b], y, x_, squares)
                for p, prototype in enumerate(layer.prototypes):
                    pieces = prototype.flatten(1).T
                    cosines[b, p, i, j] = sum(
                        piece @ seen / piece.norm() for piece, seen in zip(pieces, parts[b, i, j], strict=True)
                    ) / len(pieces)
    return cosines, parts


@pytest.mark.parametrize("part", [1, 2, 3])
@pytest.mark.parametrize("interpolation", ["squares", "linear"])
def test_maps_are_those_of_loops(part, interpolation):
    layer = layer_of(0.4, part=part, interpolation=interpolation, reach=1.2)
    x = features()
    evidence = layer(x)
    cosines, _ = by_hand(layer, x, interpolation == "squares")
    torch.testing.assert_close(evidence.maps, cosines.relu(), rtol=0, atol=1e-6)
    torch.testing.assert_close(evidence.activations, cosines.flatten(2).amax(2).relu(), rtol=0, atol=1e-6)
    torch.testing.assert_close(evidence.state["cosine"], cosines.flatten(2).amax(2), rtol=0, atol=1e-6)
    assert evidence.maps.shape == (4, 4, 4, 5)
    assert layer.units.names[0] == "prototype_0"


@pytest.mark.parametrize("interpolation", ["squares", "linear"])
def test_interpolation_keeps_the_length(interpolation):
    """Plain bilinear interpolation does not, and cosines would then be dot products of vectors too short."""
    layer, x = layer_of(0.7, interpolation=interpolation), features()
    latent = layer.embed(x)
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(4, 4, 5).double())
    parts = layer.deformed(latent, layer.offsets_of(latent))
    torch.testing.assert_close(parts.norm(dim=1), torch.ones(4, 4, 4, 5).double(), rtol=0, atol=1e-9)
    middle = (latent[..., 0, 0] + latent[..., 0, 1]) / 2
    assert bool((middle.norm(dim=1) < 0.99).any())


def test_a_place_without_features_still_has_a_direction():
    layer = layer_of()
    evidence = layer(Features(torch.zeros(2, 3, 4, 5).double()))
    assert torch.isfinite(evidence.maps).all()
    latent = layer.embed(Features(torch.zeros(2, 3, 4, 5).double()))
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(2, 4, 5).double())


@pytest.mark.parametrize("interpolation", ["squares", "linear"])
def test_projected_onto_a_deformed_patch_a_prototype_is_wholly_similar_to_it(interpolation):
    layer, x = layer_of(0.4, interpolation=interpolation), features()
    latent = layer.embed(x)
    _, parts = by_hand(layer, x, interpolation == "squares")
    rows, places = torch.tensor([3, 0, 3]), torch.tensor([[1, 2], [0, 0], [3, 4]])
    patches = layer.patches(latent, rows, places)
    for patch, row, (i, j) in zip(patches, rows.tolist(), places.tolist(), strict=True):
        torch.testing.assert_close(patch.flatten(1).T, parts[row, i, j], rtol=0, atol=1e-6)
    layer.place_prototypes(torch.tensor([0, 2, 3]), patches)
    maps = layer.similarity(latent)
    for prototype, row, (i, j) in zip((0, 2, 3), rows.tolist(), places.tolist(), strict=True):
        assert float(maps[row, prototype, i, j]) == pytest.approx(1, abs=1e-9)


def test_offsets_start_at_zero_and_learn():
    """A hidden layer before them that starts at 0 as well would leave only a bias to learn."""
    layer = layer_of(per_class=3).train()
    evidence = layer(features())
    assert not evidence.state["offsets"].any()
    assert evidence.state["offsets"].shape == (4, 2, 4, 4, 5)
    evidence.vector.square().sum().backward()
    for tensor in (layer.offsets.weight, layer.offsets.bias, layer.prototypes):
        assert torch.isfinite(tensor.grad).all()
        assert bool((tensor.grad.abs() > 0).any())


def test_gradients_stay_finite_where_features_are_zero():
    layer = layer_of(0.3).train()
    x = features(low=-0.5)
    assert float((x.map == 0).double().mean()) > 0.3
    x.map.requires_grad_()
    layer(x).maps.sum().backward()
    assert torch.isfinite(x.map.grad).all()


def test_prototypes_are_owned_class_by_class():
    layer = layer_of(classes=3, per_class=2)
    assert layer.class_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert layer.owners().T.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_its_field_is_the_whole_image():
    evidence = {"name": "deformable_prototypes", "per_class": 1}
    spec = {"backbone": {"name": "convnet", "widths": (4, 4, 4)}, "evidence": evidence, "readout": "class_connected"}
    model = build(spec, ("a", "b"), seed=0)
    field = receptive_field(model, 48)
    assert field.boxes(torch.tensor([[0, 0], [5, 3]])).tolist() == [[0, 0, 1, 1]] * 2


def test_autocast_compares_in_single_precision():
    layer = layer_of().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(Features(features().map.float())).activations.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interpolation": "square"}, "squares"),
        ({"addon": "plane"}, "plain"),
        ({"width": 2}, "addon"),
        ({"part": 0}, "at least 1"),
        ({"reach": -1.0}, "reach"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(UserError, match=said):
        DeformablePrototypes(3, 2, **options)
