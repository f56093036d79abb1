"""Evidence made of prototypes: formulas, training and evaluation, interventions, what is kept."""

from __future__ import annotations

import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import Features, Intervention, build, load_model, save_model
from vitrarium.models.evidence.prototypes import Prototypes

KINDS = ("cosine", "log_l2", "exp_l2", "dot")


def layer_of(seed=0, **options):
    torch.manual_seed(seed)
    return Prototypes(6, 3, **{"per_class": 2, "addon": "none", "picture": 0, **options}).double()


def features(rows=3, size=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return Features(torch.rand(rows, 6, size, size, generator=draw, dtype=torch.float64))


def model_of(**options):
    evidence = {"name": "prototypes", "per_class": 2, "picture": 0, **options}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": "class_connected"}
    return build(spec, ("a", "b", "c"), seed=0)


def by_hand(kind, x, p):
    """Similarity and distance of one patch and one prototype."""
    squared = float(((x - p) ** 2).sum())
    cosine = float((x * p).sum() / x.norm() / p.norm())
    return {
        "cosine": (cosine, 1 - cosine),
        "log_l2": (math.log((squared + 1) / (squared + 1e-4)), squared),
        "exp_l2": (math.exp(-math.sqrt(squared + 1e-14)), squared),
        "dot": (float((x * p).sum() / p.norm()), 1 - cosine),
    }[kind]


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize(("pool", "part"), [("max", 1), ("max", 2), ("topk", 1), ("focal", 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_loop(kind, pool, part, mode):
    layer, x = layer_of(similarity=kind, pool=pool, part=part).train(mode == "training"), features()
    with torch.no_grad():
        seen = layer(x)
    for b in range(3):
        for m in range(6):
            pairs = [
                by_hand(kind, x.map[b, :, i : i + part, j : j + part], layer.prototypes[m].detach())
                for i in range(5 - part)
                for j in range(5 - part)
            ]
            similarities = [s for s, _ in pairs]
            best = sorted(similarities, reverse=True)
            pooled = {"max": best[0], "topk": sum(best[:3]) / 3, "focal": best[0] - sum(best) / len(best)}[pool]
            assert seen.maps[b, m].flatten().tolist() == pytest.approx(similarities, abs=1e-9)
            assert float(seen.activations[b, m]) == pytest.approx(pooled, abs=1e-9)
            assert float(seen.state["distance"][b, m]) == pytest.approx(min(d for _, d in pairs), abs=1e-9)
    assert torch.equal(seen.vector, seen.activations)


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_have_the_same_gradients(kind, part):
    # One looks best places up, the other differentiates all maps.
    found = []
    for training in (True, False):
        layer, x = layer_of(similarity=kind, part=part).train(training), features()
        x.map.requires_grad_()
        seen = layer(x)
        weight = torch.linspace(-1, 1, 18).double().view(3, 6)
        (seen.activations * weight + seen.state["distance"] * weight.flip(0)).sum().backward()
        found.append((x.map.grad, layer.prototypes.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
        assert one.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_on_the_maps_is_right_in_training(kind):
    found = []
    for training in (True, False):
        layer, x = layer_of(similarity=kind).train(training), features()
        seen = layer(x)
        (seen.maps.square().mean() + seen.activations.sum()).backward()
        found.append(layer.prototypes.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["cosine", "log_l2", "exp_l2"])
@pytest.mark.parametrize("part", [1, 2])
def test_a_prototype_is_at_distance_zero_from_its_own_patch(kind, part):
    torch.manual_seed(0)
    layer = Prototypes(128, 2, per_class=2, similarity=kind, addon="none", part=part, picture=0).eval()
    x = Features(torch.rand(2, 128, 5, 5))
    which, rows = torch.tensor([0, 3]), torch.tensor([0, 1])
    places = torch.tensor([[1, 2], [3, 0]])
    layer.place_prototypes(which, layer.patches(layer.embed(x), rows, places))
    with torch.no_grad():
        seen = layer(x)
    distance, activation = (t[rows, which].tolist() for t in (seen.state["distance"], seen.activations))
    assert distance == pytest.approx([0, 0], abs=1e-6)
    assert activation == pytest.approx([layer.highest] * 2, abs=2e-6)
    assert seen.maps[rows, which, places[:, 0], places[:, 1]].tolist() == pytest.approx(activation, abs=1e-7)


def test_answers_do_not_depend_on_the_batch():
    layer = model_of(similarity="log_l2").evidence.eval()
    x = torch.rand(5, 8, 6, 6)
    with torch.no_grad():
        whole, single = layer(Features(x)), [layer(Features(row)) for row in x.split(1)]
    torch.testing.assert_close(whole.activations, torch.cat([s.activations for s in single]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_similarities_are_single(kind):
    layer, x = layer_of(similarity=kind).float(), Features(features().map.float())
    for training in (True, False):
        layer.train(training)
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            seen = layer(Features(x.map.bfloat16()))
        assert seen.maps.dtype == seen.activations.dtype == seen.state["distance"].dtype == torch.float32
        torch.testing.assert_close(seen.activations, plain.activations, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["max", "topk"])
def test_a_value_set_on_a_unit_shifts_its_map(kind, pool):
    model = model_of(similarity=kind, pool=pool).eval()
    x, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = True
    region = torch.ones(2, 1, *model(x).evidence.maps.shape[2:])
    region[:, :, 0] = 0
    for where in (None, region):
        before = model(x, Intervention(~torch.ones_like(mask), torch.zeros(2, 6), where)).evidence
        seen = model(x, Intervention(mask, torch.full((2, 6), -2.5), where)).evidence
        reduced = model.evidence.reduce(seen.maps, where)
        torch.testing.assert_close(reduced[mask], torch.full((2,), -2.5), rtol=0, atol=1e-5)
        assert torch.equal(seen.maps[~mask], before.maps[~mask])


def test_focal_maps_are_left_alone_because_no_shift_would_do():
    model = model_of(pool="focal").eval()
    x, mask = torch.rand(1, 3, 16, 16), torch.ones(1, 6, dtype=torch.bool)
    assert torch.equal(model(x).evidence.maps, model(x, Intervention(mask, torch.zeros(1, 6))).evidence.maps)


def test_shared_prototypes_belong_to_all_classes_and_owned_ones_to_one():
    shared, owned = layer_of(shared=4), layer_of()
    assert shared.owners().all()
    assert shared.owners().shape == (4, 3)
    assert "owned" not in shared.gives
    assert owned.owners().int().argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert owned.owners().sum() == 6
    assert torch.equal(owned.unit_owners(), owned.owners())


def test_the_class_map_is_saved(tmp_path):
    model = model_of()
    assert "evidence.class_of" in model.state_dict()
    model.evidence.class_of[0] = 2
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").evidence.class_of.tolist() == [2, 0, 1, 1, 2, 2]


def test_a_pruned_unit_says_nothing_and_learns_nothing():
    layer = layer_of().train()
    layer.alive[2] = False
    seen = layer(features())
    seen.vector.sum().backward()
    assert not seen.vector[:, 2].any()
    assert not layer.prototypes.grad[2].any()


def test_deployed_it_is_the_same_bit_by_bit():
    model = model_of(similarity="log_l2", part=2).eval()
    deployed, x = model.deploy(fold=False), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x).evidence.activations, deployed(x).evidence.activations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "cosin"}, "did you mean 'cosine'"),
        ({"pool": "mean"}, "no pool 'mean'"),
        ({"addon": "relu"}, "no addon 'relu'"),
        ({"width": 5}, "width=5 with addon=none"),
        ({"per_class": 0}, "per_class=0"),
        ({"part": 0}, "part=0"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        layer_of(**options)


def test_a_map_smaller_than_the_part_is_refused():
    with pytest.raises(UserError, match="covers 3 x 3 places, and the map has only 2 x 2"):
        layer_of(part=3)(features(size=2))
