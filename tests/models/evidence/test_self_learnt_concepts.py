"""Learnt units re-derived in float64, what stands beside them, and what is left out when the model is used."""

from __future__ import annotations

import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.models import Intervention, build, load_model, save_model
from vitrarium.train.events.calibrate import Calibrate

CONCEPTS = ConceptSet.categorical({"colour": ("red", "blue", "white"), "thorns": ()})
CLASSES = ("rose", "lily", "daisy")


def make(readout="linear", concepts=CONCEPTS, **options):
    spec = {
        "backbone": {"name": "convnet", "widths": (8, 8)},
        "evidence": {"name": "self_learnt_concepts", "count": 5, "width": 4, **options},
        "readout": readout,
    }
    return build(spec, CLASSES, concepts, seed=0).double().eval()


def images(count=3, seed=0):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ACTIVATE = {"sigmoid": lambda s: 1 / (1 + math.exp(-s)), "relu": lambda s: max(s, 0.0), "identity": lambda s: s}


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "identity"])
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_units_are_those_of_the_formula(activation, reduction):
    model = make(activation=activation, reduction=reduction, head=True)
    features = model.backbone(images())
    evidence, weight = model.observe(features).detach(), model.evidence.to_maps.weight[:, :, 0, 0]
    for b in range(3):
        for m in range(5):
            values = [
                float((weight[m] @ features.map[b, :, y, x] + model.evidence.to_maps.bias[m]).detach())
                for y in range(4) for x in range(4)
            ]  # fmt: skip
            score = sum(values) / 16 if reduction == "mean" else max(values)
            assert float(evidence.activations[b, m]) == pytest.approx(ACTIVATE[activation](score), abs=1e-12)
    assert torch.equal(evidence.vector, evidence.activations)
    pooled = features.map.mean((2, 3))
    torch.testing.assert_close(evidence.context["features"], pooled)
    torch.testing.assert_close(evidence.context["head"], model.evidence.head(pooled))
    assert model.evidence.reads_mean == (reduction == "mean")


def test_annotated_units_come_first_and_are_judged_alone():
    model = make(supervised=True, activation="sigmoid")
    units, output = model.evidence.units, model(images())
    assert units.names == (
        "colour=red",
        "colour=blue",
        "colour=white",
        "thorns",
        *(f"concept_{m}" for m in range(4, 9)),
    )
    assert (units.truth, units.probability, units.free, len(units)) == ("concept", "native", 5, 9)
    assert units.judged.concepts.names == CONCEPTS.names
    evidence = output.evidence
    assert evidence.scores.shape == evidence.probabilities.shape == (3, 4)
    torch.testing.assert_close(evidence.probabilities[:, :3], evidence.scores[:, :3].softmax(1))
    torch.testing.assert_close(evidence.probabilities[:, 3], evidence.scores[:, 3].sigmoid())
    assert torch.equal(evidence.activations[:, :4], evidence.probabilities)
    torch.testing.assert_close(evidence.activations[:, 4:], evidence.maps[:, 4:].mean((2, 3)).sigmoid())
    # Corrections on the annotated ones alone leave the others as they are.
    do = Intervention(torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4))
    after = model(images(), do).evidence.activations
    assert torch.equal(after[:, 4:], evidence.activations[:, 4:])
    assert not after[:, :4].any()


def test_without_annotation_units_have_numbers_and_no_truth():
    model = make(supervised=False, activation="sigmoid")
    units, evidence = model.evidence.units, model(images()).evidence
    assert units.names == tuple(f"concept_{m}" for m in range(5))
    assert (units.truth, units.free, units.named) == ("none", 0, False)
    assert evidence.scores is None
    assert evidence.probabilities is None
    assert units.present.tolist() == [1] * 5
    assert bool(torch.isnan(make(activation="relu").evidence.present).all())


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_where_units_may_not_look_does_not_count(reduction):
    model = make(activation="identity", reduction=reduction)
    evidence = model(images()).evidence
    region = torch.zeros(3, 1, 4, 4)
    region[..., :2, 1:] = 1
    seen = evidence.maps[..., :2, 1:].flatten(2)
    expected = seen.mean(2) if reduction == "mean" else seen.amax(2)
    confined = model.evidence.confine(evidence, region)
    torch.testing.assert_close(confined.activations, expected)
    assert torch.equal(confined.context["features"], evidence.context["features"])
    with pytest.raises(UserError, match="cached without maps"):
        model.evidence.confine(evidence.without_maps(), region)


def test_what_a_unit_looks_like():
    model = make(activation="relu", count=4)
    layer = model.evidence
    with pytest.raises(UserError, match="no activation that stands for"):
        layer.decode_units(torch.tensor([0]), (20, 24))
    layer.absent.copy_(torch.tensor([0.0, 1, 2, 3]))
    layer.present.copy_(torch.tensor([1.0, 5, 4, 9]))
    asked = torch.tensor([[0.5, 5, 3, 6], [0.5, 3, 3, 9]], dtype=torch.float64)
    shown = layer.decode_units(torch.tensor([1, 3]), (20, 24))
    torch.testing.assert_close(shown, layer.decode(asked, (20, 24)))
    assert shown.shape == (2, 3, 20, 24)
    absent = layer.decode(torch.tensor([[0.5, 1, 3, 6]], dtype=torch.float64), (20, 24))
    torch.testing.assert_close(layer.decode_units(torch.tensor([1]), (20, 24), present=False), absent)


def test_a_deployed_model_answers_without_what_stood_beside():
    model = make({"name": "input_dependent"}, head=True, rotation=True)
    plain = model.deploy()
    names = [name for name, _ in plain.evidence.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"to_maps"}
    assert {"decodes", "head", "turns"} <= model.evidence.gives
    assert not {"decodes", "head", "turns"} & plain.evidence.gives
    torch.testing.assert_close(plain(images()).logits, model(images()).logits)
    assert "head" not in plain(images()).evidence.context
    for call in (
        lambda: plain.evidence.decode(torch.zeros(1, 5), (8, 8)),
        lambda: plain.evidence.tell_turn(torch.zeros(1, 5)),
    ):
        with pytest.raises(UserError, match="has no"):
            call()
    assert model.evidence.decode(torch.zeros(1, 5, dtype=torch.float64), (8, 8)).shape == (1, 3, 8, 8)


def test_saved_and_loaded_it_still_decodes(tmp_path):
    model = make(supervised=True, head=True, rotation=True).float()
    save_model(model, tmp_path / "model")
    again, units = load_model(tmp_path / "model"), torch.rand(2, 9)
    assert torch.equal(again.evidence.decode(units, (12, 12)), model.evidence.decode(units, (12, 12)))
    assert torch.equal(again.evidence.tell_turn(units), model.evidence.tell_turn(units))
    assert again.evidence.units.free == 5
    x = images().float()
    assert torch.equal(again(x).evidence.context["head"], model(x).evidence.context["head"])


def test_units_can_be_set_by_name_once_they_are_calibrated():
    model = make(activation="identity")
    with pytest.raises(UserError, match="no activation that stands for"):
        model.intervention({"concept_2": "yes"})
    from types import SimpleNamespace

    from vitrarium.data.batch import Batch

    batch = Batch(images(40), torch.zeros(40, dtype=torch.int64))
    Calibrate(low=0.0, high=1.0).run(SimpleNamespace(model=model, loaders=lambda split: [batch]))
    seen = model(images(40)).evidence.activations.detach().float()
    for answer, end in (("yes", seen.amax(0)), ("no", seen.amin(0))):
        done = model.intervention({"concept_2": answer})
        assert float(done.values[0, 2]) == pytest.approx(float(end[2]), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"reduction": "men"}, "did you mean 'mean'"),
        ({"count": 0}, "at least one unit"),
        ({"supervised": True, "count": -1}, "at least one unit"),
        ({"width": 0}, "one channel"),
        ({"supervised": True, "concepts": None}, "needs a data set with concepts"),
        ({"cuont": 3}, "did you mean 'count'"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(UserError, match=said):
        make(**options)
