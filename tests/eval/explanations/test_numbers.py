"""The numbers of an explanation, derived again from weights in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.explanations import EXPLAINERS, explain, words

FEATURES = [
    ("features", "linear"),
    ({"name": "concepts"}, "linear"),
    ({"name": "concepts", "activation": "logit"}, "linear"),
    ({"name": "concepts", "activation": "hard"}, "linear"),
    ({"name": "concepts", "side": 3}, "linear"),
    ({"name": "concepts", "bottleneck": False}, "linear"),
]


def vector_by_hand(model, image):
    """What the linear readout sees, with numpy loops in float64."""
    pixels = np.moveaxis(image.astype(np.float64) / 255, -1, 0)
    scaled = (pixels - 0.5) / 0.25
    weight = model.backbone.body.weight.detach().double().numpy()
    bias = model.backbone.body.bias.detach().double().numpy()
    maps = np.zeros((6, 4, 4))
    for d in range(6):
        for i in range(4):
            for j in range(4):
                patch = scaled[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                maps[d, i, j] = max(0.0, (patch * weight[d]).sum() + bias[d])
    pooled = maps.mean((1, 2))
    layer = model.evidence
    if not hasattr(layer, "head"):
        return pooled, maps
    head, offset = layer.head.weight.detach().double().numpy()[:, :, 0, 0], layer.head.bias.detach().double().numpy()
    scores = head @ pooled + offset
    probabilities = np.concatenate([softmax(scores[:3]), [1 / (1 + np.exp(-scores[3]))], softmax(scores[4:])])
    activations = {"sigmoid": probabilities, "logit": scores, "hard": harden(probabilities)}[layer.activation]
    maps = np.einsum("kd,dij->kij", head, maps) + offset[:, None, None]
    if not layer.bottleneck:
        return pooled, maps
    if layer.side is not None:
        side = layer.side.weight.detach().double().numpy() @ pooled + layer.side.bias.detach().double().numpy()
        return np.concatenate([activations, side]), maps
    return activations, maps


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def harden(p):
    hard = np.zeros(6)
    hard[np.argmax(p[:3])] = 1
    hard[3] = float(p[3] > 0.5)
    hard[4 + np.argmax(p[4:])] = 1
    return hard


@pytest.mark.parametrize(("evidence", "readout"), FEATURES)
def test_shares_are_weight_times_input(model, image, evidence, readout):
    built = model(evidence, readout)
    vector, maps = vector_by_hand(built, image)
    weight = built.readout.linear.weight.detach().double().numpy()
    bias = built.readout.linear.bias.detach().double().numpy()
    logits = weight @ vector + bias
    first, second = np.argsort(-logits)[:2]
    found = explain(built, image)
    assert found.label == built.class_names[first]
    assert found.rival == built.class_names[second]
    assert found.additive
    owner = built.evidence.unit_of.numpy()
    for m, unit in enumerate(found.units):
        mine = owner == m
        assert unit.share.label == pytest.approx((weight[first] * vector)[mine].sum(), abs=1e-5)
        assert unit.share.rival == pytest.approx((weight[second] * vector)[mine].sum(), abs=1e-5)
    assert found.remainder.label == pytest.approx((weight[first] * vector)[owner < 0].sum(), abs=1e-5)
    assert found.bias.rival == pytest.approx(bias[second], abs=1e-6)
    assert found.logit.label == pytest.approx(logits[first], abs=1e-5)
    by_name = {r.name: r.map for r in found.reasons}
    name = "thorns" if "thorns" in by_name else "channel_3"
    np.testing.assert_allclose(by_name[name], maps[3], atol=1e-4)


@pytest.mark.parametrize(("evidence", "readout"), FEATURES)
@pytest.mark.parametrize("top", [1, 2, 12])
def test_ledger_ends_at_the_logits(model, image, evidence, readout, top):
    found = explain(model(evidence, readout), image, top=top)
    ledger = found.ledger()
    running = [0.0, 0.0]
    for entry in ledger:
        running = [running[0] + entry.share.label, running[1] + entry.share.rival]
        assert entry.running.label == pytest.approx(running[0], abs=1e-9)
        assert entry.running.rival == pytest.approx(running[1], abs=1e-9)
    assert ledger[-1].running.label == pytest.approx(found.logit.label, abs=1e-5)
    assert ledger[-1].running.rival == pytest.approx(found.logit.rival, abs=1e-5)
    differences = sum(entry.share.difference for entry in ledger)
    assert differences == pytest.approx(found.logit.label - found.logit.rival, abs=1e-5)
    assert abs(found.unexplained.label) < 1e-5


def test_reasons_are_groups_with_their_chosen_value(model, image):
    built = model()
    found = explain(built, image)
    answer = built.predict(image)
    assert {r.name for r in found.reasons} == {"petal_colour", "thorns", "leaf"}
    colour = next(r for r in found.reasons if r.name == "petal_colour")
    probabilities = {v: answer.units[f"petal_colour={v}"] for v in ("red", "white", "blue")}
    assert colour.value == max(probabilities, key=probabilities.get)
    assert colour.probability == pytest.approx(max(probabilities.values()))
    members = [u for u in found.units if u.name.startswith("petal_colour=")]
    assert colour.share.label == pytest.approx(sum(u.share.label for u in members))
    thorns = next(r for r in found.reasons if r.name == "thorns")
    assert thorns.value == ("yes" if answer.units["thorns"] > 0.5 else "no")
    assert thorns.probability >= 0.5
    sizes = [abs(r.share.difference) for r in found.reasons]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("activation", ["sigmoid", "logit", "hard"])
def test_corrections_are_explained_and_marked(model, image, activation):
    built = model({"name": "concepts", "activation": activation})
    plain = explain(built, image)
    colour = next(r.value for r in plain.reasons if r.name == "petal_colour")
    other = next(v for v in ("red", "white", "blue") if v != colour)
    found = explain(built, image, do={"petal_colour": other, "thorns": "no"}, top=1)
    marked = {r.name: r for r in found.corrected}
    assert set(marked) == {"petal_colour", "thorns"}
    assert marked["petal_colour"].value == other
    assert marked["petal_colour"].probability == 1.0
    assert marked["thorns"].value == "no"
    assert {r.name for r in found.shown} >= set(marked), "a corrected unit is always shown"
    absent, present = (-2.0, 3.0) if activation == "logit" else (0.0, 1.0)
    by_name = {u.name: u for u in found.units}
    for value in ("red", "white", "blue"):
        expected = present if value == other else absent
        assert by_name[f"petal_colour={value}"].activation == pytest.approx(expected)
    assert not by_name["leaf=round"].corrected
    answer = built.predict(image, {"petal_colour": other, "thorns": "no"})
    assert found.label == answer.label
    assert found.probabilities == pytest.approx(answer.probabilities)
    before = built.predict(image)
    assert found.before == (before.label, pytest.approx(before.probability))
    assert plain.before is None


def test_against_a_class_of_choice(model, image):
    built = model()
    order = list(built.predict(image).probabilities)
    found = explain(built, image, against=order[2])
    assert found.asked
    assert (found.label, found.rival) == (order[0], order[2])
    assert explain(built, image).rival == order[1]
    with pytest.raises(UserError, match="did you mean 'daisy'"):
        explain(built, image, against="dasy")
    with pytest.raises(UserError, match="the predicted class itself"):
        explain(built, image, against=order[0])


def test_readout_that_is_no_sum_is_flagged(model, image):
    found = explain(model(readout={"name": "mlp", "hidden": (8,)}), image)
    assert not found.additive
    assert "first-order" in " ".join(words.margin_words(found))


def test_units_that_stand_beside_the_decision(model, image):
    found = explain(model({"name": "concepts", "bottleneck": False}), image)
    assert not found.units_take_part
    assert found.has_remainder
    assert "no part in the decision" in found.sentence()
    assert explain(model(), image).units_take_part
    assert not explain(model(), image).has_remainder


def test_black_box_says_that_its_units_have_no_names(model, image):
    found = explain(model("features"), image)
    assert not found.named
    assert found.kind == "channel"
    assert "have no names" in found.sentence()
    assert all(r.map.shape == (4, 4) and r.probability is None for r in found.reasons)
    assert explain(model(), image).named


def test_sentence_names_the_weightiest_reasons_with_their_sign(model, image):
    for seed in range(6):
        found = explain(model(seed=seed), image)
        text = found.sentence()
        assert text.startswith(f"{found.label} rather than {found.rival}")
        for reason in found.reasons:
            for part in text.split(reason.title)[1:]:
                said = re.search("\\(([+\N{MINUS SIGN}])([0-9.]+)\\)", part)
                assert said.group(1) == ("+" if reason.share.difference > 0 else "\N{MINUS SIGN}")
                assert float(said.group(2)) == pytest.approx(abs(reason.share.difference), abs=0.051)
        if found.reasons[0].share.difference > found.bias.difference:
            assert found.reasons[0].title in text


def test_pruned_units_are_left_out_unless_they_count(model, image):
    built = model("features")
    built.evidence.alive[2] = False
    with torch.no_grad():
        built.readout.linear.weight[:, 2] = 0
    assert "channel_2" not in {r.name for r in explain(built, image).reasons}


def test_training_mode_is_left_as_it_was(model, image):
    built = model().train()
    explain(built, image)
    assert built.training


def test_bad_input_is_refused(model, image):
    with pytest.raises(UserError, match="at least 1"):
        explain(model(), image, top=0)
    with pytest.raises(UserError, match="petal_colour"):
        explain(model(), image, do={"petal_color": "red"})
    with pytest.raises(UserError, match="no activation that stands for"):
        explain(model("features"), image, do={"channel_1": "yes"})


def test_explainer_is_registered():
    assert EXPLAINERS.get("contributions") is explain
