"""The sparse readout against plain loops in float64, and what it means for abstaining."""

from __future__ import annotations

import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import Evidence, build
from vitrarium.models.abstention import AbstentionRule, confidence_of
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.readouts.base import READOUTS


def readout(units=4, classes=3, **options):
    torch.manual_seed(0)
    layer = EVIDENCE.build({"name": "softmax_channels"}, channels=units, classes=classes)
    here = READOUTS.build({"name": "nonnegative", **options}, layer=layer, classes=classes).double()
    with torch.no_grad():
        here.weight.copy_(torch.randn(classes, units))
    return here


def evidence(rows=6, units=4):
    gates = torch.rand(rows, units, dtype=torch.float64)
    gates[0] = 0
    return Evidence(gates, gates)


def logit_by_hand(weights, gates, power, plain):
    score = sum(max(w, 0.0) * g for w, g in zip(weights.tolist(), gates.tolist(), strict=True))
    return score if plain else math.log(1 + score**power)


@pytest.mark.parametrize(("power", "scale"), [(2.0, "log1p"), (1.0, "log1p"), (3.0, "log1p"), (2.0, "plain")])
def test_logits_and_contributions(power, scale):
    here, seen = readout(power=power, scale=scale), evidence()
    logits = here(seen)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    said = here.contributions(seen, classes)
    assert said.additive
    for i, c in enumerate(classes.tolist()):
        logit = logit_by_hand(here.weight.detach()[c], seen.vector[i], power, scale == "plain")
        assert float(logits[i, c].detach()) == pytest.approx(logit, abs=1e-12)
        assert float(said.units[i].sum() + said.remainder[i] + said.bias[i]) == pytest.approx(logit, abs=1e-12)
        parts = [max(w, 0.0) * v for w, v in zip(here.weight[c].tolist(), seen.vector[i].tolist(), strict=True)]
        for m, part in enumerate(parts):
            expected = logit * part / sum(parts) if sum(parts) else 0.0
            assert float(said.units[i, m]) == pytest.approx(expected, abs=1e-12)
    assert (said.units[0] == 0).all()
    assert (said.units >= 0).all()


def test_the_order_of_classes_does_not_depend_on_the_scale():
    curved, plain, seen = readout(), readout(scale="plain"), evidence()
    plain.load_state_dict(curved.state_dict())
    assert torch.equal(curved(seen).argsort(1), plain(seen).argsort(1))


def test_gradients_reach_positive_weights_and_gates_only():
    here, seen = readout(), evidence()
    gates = seen.vector.clone().requires_grad_()
    here(Evidence(gates, gates))[1:].sum().backward()
    assert ((here.weight.grad != 0) == (here.weight > 0)).all()
    assert (gates.grad[1:] != 0).any()
    assert torch.isfinite(gates.grad).all()


def test_it_starts_around_one_and_its_rules_are_the_weights_above_zero():
    model = build(
        {"backbone": {"name": "convnet", "widths": (8, 64)}, "evidence": "softmax_channels", "readout": "nonnegative"},
        [f"class {c}" for c in range(20)],
        seed=0,
    )
    weight = model.readout.weight
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(weight.std()) == pytest.approx(0.1, abs=0.02)
    here = readout()
    rules = here.rules()
    assert [r["class"] for r in rules] == [0, 1, 2]
    for rule, row in zip(rules, here.weight.tolist(), strict=True):
        assert rule["weights"] == pytest.approx({f"prototype_{m}": w for m, w in enumerate(row) if w > 0})
        assert list(rule["weights"].values()) == sorted(rule["weights"].values(), reverse=True)


def test_effective_weights_and_dropped_entries():
    here = readout()
    assert torch.equal(here.effective_weight, here.weight.clamp_min(0))
    here.drop_entries(torch.tensor([False, True, False, False]))
    assert (here.effective_weight[:, 1] == 0).all()
    layer = EVIDENCE.build({"name": "softmax_channels"}, channels=4, classes=3)
    linear = READOUTS.build("linear", layer=layer, classes=3)
    assert torch.equal(linear.effective_weight, linear.linear.weight)
    linear.drop_entries(torch.tensor([True, False, False, False]))
    assert (linear.linear.weight[:, 0] == 0).all()
    assert (linear.linear.weight[:, 1:] != 0).all()
    assert READOUTS.build("mlp", layer=layer, classes=3).effective_weight is None


def test_an_image_without_prototypes_is_the_first_to_be_withheld():
    here = readout()
    with torch.no_grad():
        here.weight.copy_(torch.eye(3, 4) * 2)
    gates = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 1]]
    gates = torch.cat([gates, torch.zeros(1, 4, dtype=torch.float64)])
    logits = here(Evidence(gates, gates))
    assert torch.equal(logits[-1], torch.zeros(3, dtype=torch.float64))
    confidence = confidence_of(logits)
    assert float(confidence[-1]) == pytest.approx(1 / 3)
    assert (confidence[:-1] > confidence[-1]).all()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rule = AbstentionRule().choose(logits, labels)
    assert ((confidence < rule.threshold) == torch.tensor([False] * 5 + [True])).all()


def test_units_without_gates_are_refused():
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "features", "readout": "nonnegative"}
    with pytest.raises(UserError, match="needs gates"):
        build(spec, ("a", "b"))


@pytest.mark.parametrize(("options", "said"), [({"power": 0.5}, "power"), ({"scale": "log1q"}, "did you mean 'log1p'")])
def test_refusals(options, said):
    with pytest.raises(UserError, match=said):
        readout(**options)
