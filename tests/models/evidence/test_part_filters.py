"""Part filters: the masked map by its formula, places, bans, values, steepness that follows, refusals, saving."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import Features, Intervention, build, load_model, save_model
from vitrarium.models.evidence.part_filters import PartFilters
from vitrarium.models.layers.reduction import reduce_map

CLASSES = ("rose", "lily", "daisy")


def make(seed=0, backbone=None, **options):
    spec = {
        "backbone": {"name": "convnet", "widths": (8, 8), **(backbone or {})},
        "evidence": {"name": "part_filters", **options},
        "readout": "linear",
    }
    return build(spec, CLASSES, None, Preprocessing(16), seed).eval()


def some_map(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masked(plane, place, beta):
    """max(x o T_mu, 0) / tau of one map, entry by entry."""
    height, width = plane.shape
    found = torch.zeros_like(plane)
    for i in range(height):
        for j in range(width):
            weight = 1 - beta * (abs(i - place[0]) / height + abs(j - place[1]) / width)
            found[i, j] = max(float(plane[i, j]) * weight, 0)
    return found


def place_of(plane, mask):
    if mask == "argmax":
        return divmod(int(plane.argmax()), plane.shape[1])
    mass = float(plane.sum())
    weighted = [(i, j, float(plane[i, j]) / mass) for i in range(plane.shape[0]) for j in range(plane.shape[1])]
    return round(sum(i * w for i, _, w in weighted)), round(sum(j * w for _, j, w in weighted))


@pytest.mark.parametrize("reduction", ["mean", "max"])
@pytest.mark.parametrize("mask", ["argmax", "centre_of_mass"])
def test_forward_against_loops(mask, reduction):
    layer = make(mask=mask, reduction=reduction, steepness=3.0).evidence
    map = some_map(3, 8, 4, 6)
    evidence = layer(Features(map))
    for b in range(3):
        for m in range(8):
            plane = map[b, m].clamp_min(0)
            expected = masked(plane, place_of(plane, mask), 3.0)
            torch.testing.assert_close(evidence.maps[b, m], expected, rtol=0, atol=1e-5)
            value = expected.mean() if reduction == "mean" else expected.max()
            torch.testing.assert_close(evidence.activations[b, m], value, rtol=0, atol=1e-5)
    assert torch.equal(evidence.vector, evidence.activations)
    assert not evidence.state  # kept in training alone


def test_without_masks_it_is_the_plain_network():
    layer, map = make(mask="none").evidence, some_map(2, 8, 4, 4)
    evidence = layer(Features(map))
    assert torch.equal(evidence.maps, map.clamp_min(0))
    torch.testing.assert_close(evidence.activations, map.clamp_min(0).mean((2, 3)))


def test_filters_of_its_own():
    layer, map = make(filters=5).evidence, some_map(2, 8, 4, 4)
    assert len(layer.units) == 5
    assert layer.units.names == tuple(f"filter_{m}" for m in range(5))
    whole = torch.nn.functional.conv2d(map, layer.convolution.weight, layer.convolution.bias, padding=1).relu()
    assert torch.equal(layer.respond(Features(map)), whole)
    assert (layer(Features(map)).maps <= whole).all()


def test_in_training_the_unmasked_maps_are_handed_on_with_their_graph():
    model = make().train()
    x = torch.rand(2, 3, 16, 16)
    evidence = model(x).evidence
    assert set(evidence.state) == {"whole", "place"}
    assert torch.equal(evidence.state["place"], evidence.state["whole"].flatten(2).argmax(2))
    evidence.state["whole"].sum().backward()
    assert model.backbone.network.stage2.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("backbone", ["resnet20", "timm/resnet10t"])
def test_after_a_residual_block(backbone):
    spec = {"backbone": {"name": backbone}, "evidence": "part_filters", "readout": "linear"}
    model = build(spec, CLASSES, None, Preprocessing(64), 0).eval()
    output = model(torch.rand(2, 3, 64, 64))
    assert (output.evidence.maps >= 0).all()
    assert output.evidence.maps.amax() > 0


def test_a_map_of_one_place_is_refused_by_the_name_of_the_cut():
    model = make(backbone={"widths": (8, 8, 8, 8)})
    with pytest.raises(UserError, match=r"cut 'stage4' is 1 x 1.*data\.size"):
        model(torch.rand(1, 3, 16, 16))
    assert model(torch.rand(1, 3, 32, 48)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask": "argmx"}, "argmax"),
        ({"reduction": "men"}, "mean"),
        ({"filters": 0}, "at least 1 filter"),
        ({"steepness": 0.0}, "steepness above 0"),
        ({"momentum": 0.0}, "momentum"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(UserError, match=says):
        make(**options)


@pytest.mark.parametrize("reduction", ["mean", "max", "pool_max"])
def test_a_value_shifts_the_map(reduction):
    model = make(reduction=reduction)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    x = torch.rand(2, 3, 16, 16)
    before, after = model(x).evidence, model(x, Intervention(mask, torch.full((2, 8), 1.5))).evidence
    torch.testing.assert_close(reduce_map(after.maps, reduction), after.activations, rtol=0, atol=1e-5)
    assert torch.equal(after.activations[mask], torch.full((2,), 1.5))
    assert torch.equal(after.maps[~mask], before.maps[~mask])


def test_a_banned_place_is_not_counted():
    model, x = make(), torch.rand(2, 3, 16, 16)
    before = model(x).evidence
    region = torch.ones(2, 1, 4, 4)
    region[:, :, :2] = 0
    nothing = torch.zeros(2, 8, dtype=torch.bool), torch.zeros(2, 8)
    after = model(x, Intervention(*nothing, region=region)).evidence
    torch.testing.assert_close(after.activations, (before.maps * region).mean((2, 3)))
    assert (after.maps[:, :, :2] == 0).all()
    with pytest.raises(UserError, match="cached without maps"):
        model.evidence.confine(before.without_maps(), region)


def test_a_filter_that_was_switched_off_says_nothing():
    model, x = make(), torch.rand(2, 3, 16, 16)
    model.evidence.alive[2] = False
    output = model(x)
    assert (output.evidence.vector[:, 2] == 0).all()
    assert output.evidence.activations[:, 2].abs().sum() > 0


def test_classes_are_unknown_then_one_each():
    layer = make().evidence
    assert layer.unit_owners().all()
    layer.class_of[:] = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1])
    owners = layer.unit_owners()
    assert owners[:7].int().argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert owners.sum(1).tolist() == [1] * 7 + [3]


class TestSteepness:
    def test_it_follows_the_spread_in_training_alone(self):
        layer = make(learn_steepness=True, momentum=0.5).evidence
        map = torch.zeros(2, 8, 4, 4)
        map[:, 0, 1, 1] = 1.0  # no spread: as steep as may be
        map[:, 1] = 1.0  # as flat as can be: sqrt(2 * 0.3125) = 0.79 in coordinates from -1 to 1
        map[:, 2, 0, 0] = map[:, 2, 3, 3] = 1.0  # corners: spread sqrt(2 * 0.75^2) = 1.06
        layer(Features(map))
        assert torch.equal(layer.beta, torch.full((8,), 4.0))
        layer.train()(Features(map))
        targets = [6.0, 6.0, 6 / (2 * 0.5625) ** 0.5]
        expected = [4 + 0.5 * (target - 4) for target in targets] + [4.0] * 5  # a filter that is silent keeps its own
        torch.testing.assert_close(layer.beta, torch.tensor(expected))

    def test_masks_use_it_and_it_is_saved(self, tmp_path):
        model = make(learn_steepness=True)
        model.evidence.beta[:] = torch.linspace(3, 6, 8)
        map = some_map(1, 8, 4, 4)
        evidence = model.evidence(Features(map))
        for m in range(8):
            plane = map[0, m].clamp_min(0)
            expected = masked(plane, place_of(plane, "argmax"), float(model.evidence.beta[m]))
            torch.testing.assert_close(evidence.maps[0, m], expected, rtol=0, atol=1e-5)
        model.evidence.class_of[:] = 2
        save_model(model, tmp_path / "model")
        again = load_model(tmp_path / "model").evidence
        assert torch.equal(again.beta, model.evidence.beta)
        assert torch.equal(again.class_of, model.evidence.class_of)

    def test_without_it_there_is_no_buffer(self):
        layer = make().evidence
        assert isinstance(layer, PartFilters)
        assert not hasattr(layer, "beta")
        assert layer.betas == 4.0
