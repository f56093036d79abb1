"""Axes of a whitened layer: formulas in float64, interventions, subspaces, folding, a warm start."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import Intervention, build, load_model, save_model
from vitrarium.models.layers.reduction import REDUCTIONS, reduce_map

CONCEPTS = ConceptSet.categorical({"colour": ("red", "blue"), "thorns": (), "scent": ()})
CUT = {"name": "convnet", "widths": (8, 12), "cut": "last_norm"}
INSIDE = {"name": "timm/resnet10t", "cut": "layer2.0.bn1"}


def make(backbone=CUT, concepts=CONCEPTS, double=True, turned=True, **options):
    spec = {"backbone": backbone, "evidence": {"name": "whitened_axes", **options}, "readout": "network"}
    model = build(spec, ("x", "y", "z"), concepts, Preprocessing(32), seed=0)
    model = model.double() if double else model
    torch.manual_seed(1)
    if turned:
        layer = model.evidence
        layer.rotation.copy_(torch.linalg.qr(torch.randn_like(layer.rotation)).Q)
    x = torch.rand(16, 3, 32, 32, dtype=model.evidence.absent.dtype)
    with torch.no_grad():
        for _ in range(3):
            model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize("groups", [1, 3])
def test_the_map_is_rotated_and_whitened(groups):
    model, x = make(groups=groups)
    layer, width = model.evidence, 12 // groups
    map = model.backbone(x).map.detach()
    maps = layer(model.backbone(x)).maps.detach()
    rows = map.permute(1, 0, 2, 3).flatten(1)
    expected = []
    for g in range(groups):
        part = rows[g * width : (g + 1) * width]
        covariance = layer.whitening.running_covariance[g]
        covariance = covariance + torch.eye(width).double() * (1e-5 * covariance.trace() / width + 1e-10)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors @ torch.diag(values**-0.5) @ vectors.T
        expected.append(layer.rotation[g] @ root @ (part - layer.whitening.running_mean[g][:, None]))
    found = maps.permute(1, 0, 2, 3).flatten(1)
    for m in range(12):
        # Units are dealt out to the groups in turn.
        torch.testing.assert_close(found[m], expected[m % groups][m // groups], rtol=1e-6, atol=1e-6)


def test_in_training_axes_are_uncorrelated_and_of_unit_variance():
    model, x = make()
    rows = model.train()(x).evidence.maps.detach().permute(1, 0, 2, 3).flatten(1)
    covariance = rows @ rows.T / rows.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12).double(), rtol=0, atol=1e-3)
    assert float(rows.mean(1).abs().max()) < 1e-9


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backbone", [CUT, INSIDE], ids=["convnet", "inside a block"])
def test_a_value_shifts_the_map_until_its_reduction_has_it(reduction, backbone):
    model, x = make(backbone, reduction=reduction, groups=4)
    count = len(model.evidence.units)
    mask = torch.zeros(16, count, dtype=torch.bool)
    mask[0, 2] = mask[3, count - 1] = True
    before, after = model(x).evidence, model(x, Intervention(mask, torch.full((16, count), 1.25).double())).evidence
    torch.testing.assert_close(reduce_map(after.maps, reduction)[mask], torch.full((2,), 1.25).double())
    assert torch.equal(after.maps[1], before.maps[1])
    shift = (after.maps - before.maps)[0, 2]
    torch.testing.assert_close(shift, shift[0, 0].expand_as(shift))
    assert torch.equal(after.context["map"], after.maps)


def test_an_intervention_on_the_concepts_leaves_free_axes_alone():
    model, x = make()
    assert model.evidence.units.free == 8
    assert len(model.evidence.units.judged) == 4
    mask = torch.ones(16, 4, dtype=torch.bool)
    before, after = model(x), model(x, Intervention(mask, torch.full((16, 4), 2.0).double()))
    assert torch.equal(after.evidence.activations[:, 4:], before.evidence.activations[:, 4:])
    assert bool((after.evidence.activations[:, :4] == 2).all())
    assert not torch.allclose(after.logits, before.logits)


def test_saliency_and_attacks_pass_in_evaluation():
    model, x = make(INSIDE)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).logits[:, 0].sum(), x, create_graph=True)
    assert float(gradient.detach().abs().sum()) > 0
    gradient.square().sum().backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("backbone", [CUT, INSIDE], ids=["convnet", "inside a block"])
@pytest.mark.parametrize("groups", [1, 2])
def test_deployed_it_is_folded_and_says_the_same(backbone, groups):
    model, x = make(backbone, groups=groups)
    deployed = model.deploy()
    assert deployed.deploy_report.affine == ("evidence.affine",)
    ours, theirs = model(x), deployed(x)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(theirs.evidence.maps, ours.evidence.maps, rtol=0, atol=1e-9)
    assert not any("whitening" in name for name, _ in deployed.named_modules())
    # Nothing is left between the convolution and the layers above.
    torch.testing.assert_close(theirs.features.map, ours.evidence.maps, rtol=0, atol=1e-9)


def test_where_no_convolution_is_before_it_the_step_stays():
    model, x = make({"name": "convnet", "widths": (8, 12), "cut": "stage2.pool"})
    deployed = model.deploy()
    assert deployed.deploy_report.affine == ()
    torch.testing.assert_close(deployed(x).logits, model(x).logits, rtol=0, atol=1e-9)


def test_subspaces_have_free_axes_of_their_own():
    model, _ = make(subspaces=True, free=2)
    layer = model.evidence
    assert [s.tolist() for s in layer.subspaces()] == [[0, 1, 4, 5], [2, 6, 7], [3, 8, 9]]
    assert layer.units.names[4:10] == tuple(f"{g}_free_{n}" for g in ("colour", "thorns", "scent") for n in (1, 2))
    maps = torch.zeros(3, 12, 4, 4).double()
    maps[0, 5], maps[1, 4], maps[2, 6] = 1, 1, 1
    member = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).double()
    found = layer.with_free(member, maps)
    assert found.shape == (3, 10)
    assert found[:, 4:].nonzero().tolist() == [[0, 1], [1, 0], [2, 2]]


def test_axes_by_name():
    model, _ = make(axes=["scent", "dark rim"])
    assert model.evidence.units.names[:3] == ("scent", "dark rim", "axis_2")
    assert model.evidence.units.truth == "none"


def test_saved_and_loaded(tmp_path):
    model, x = make(double=False)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert torch.equal(again(x).logits, model(x).logits)
    assert again.evidence.units.free == 8


def test_contributions_are_of_first_order_and_say_so():
    model, x = make()
    evidence = model(x).evidence
    classes = torch.arange(16) % 3
    said = model.contributions(evidence, classes)
    assert not said.additive
    map = evidence.context["map"].detach().requires_grad_()
    evidence.context["map"] = map
    logit = model.readout(evidence).gather(1, classes[:, None])
    (gradient,) = torch.autograd.grad(logit.sum(), map)
    torch.testing.assert_close(said.units, (gradient * map).sum((2, 3)).detach())
    torch.testing.assert_close(said.units.sum(1) + said.remainder + said.bias, logit[:, 0].detach())


def test_autocast_whitens_in_single_precision():
    model, x = make(double=False)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(x)
    assert output.evidence.maps.dtype == torch.float32
    rows = output.evidence.maps.detach().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(rows @ rows.T / rows.shape[1], torch.eye(12), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reduction": "poolmax"}, "did you mean 'pool_max'"),
        ({"groups": 5}, "cannot be whitened in groups=5"),
        ({"method": "zca"}, "no whitening by 'zca'"),
        ({"axes": [f"a{n}" for n in range(13)]}, "13 axes are asked for"),
        ({"axes": ["a", "a"]}, "named twice"),
        ({"axes": []}, "0 axes are asked for"),
        ({"subspaces": True, "free": 9}, "31 axes are asked for"),
        ({"free": -1}, "free=-1"),
        ({"subspaces": True, "axes": ["a"]}, "leave axes out"),
        ({"eps": 0}, "eps"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(UserError, match=said):
        make(**options)


def test_without_concepts_axes_must_be_named():
    with pytest.raises(UserError, match="name the axes"):
        make(concepts=None)


def test_the_network_needs_something_above_the_cut():
    with pytest.raises(UserError, match="nothing is left above the cut"):
        make({"name": "convnet", "widths": (8, 12)})


def test_a_first_batch_too_small_for_a_covariance_is_refused():
    spec = {"backbone": CUT, "evidence": "whitened_axes", "readout": "network"}
    model = build(spec, ("x", "y"), CONCEPTS, seed=0)
    with pytest.raises(UserError, match="too few for their covariance"):
        model.train()(torch.rand(1, 3, 4, 4))


def test_constant_images_give_no_nan():
    model, x = make(double=False)
    output = model.train()(torch.full_like(x, 0.5))
    output.logits.sum().backward()
    assert bool(torch.isfinite(output.logits).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_warm_start_takes_the_layers_above_from_the_black_box(tmp_path):
    from vitrarium.training import start_from

    plain = {k: v for k, v in INSIDE.items() if k != "cut"}
    black = build(
        {"backbone": plain, "evidence": "features", "readout": "linear"}, ("x", "y", "z"), None, Preprocessing(32), 0
    )
    save_model(black, tmp_path / "black")
    spec = {"backbone": INSIDE, "evidence": "whitened_axes", "readout": "network"}
    model = build(spec, ("x", "y", "z"), CONCEPTS, Preprocessing(32), seed=5)
    report = start_from(model, tmp_path / "black")
    assert report.fraction == 1
    assert all("layer2.0.bn1" in name for name in report.unexpected)
    assert torch.equal(model.readout.linear.weight, black.readout.linear.weight)
    theirs, ours = black.backbone.state_dict(), model.readout.tail.state_dict()
    assert ours
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])
