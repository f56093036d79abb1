"""The readout of units that belong to classes."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import build, load_model, save_model

CLASSES = ("a", "b", "c")


def model_of(readout=None, **evidence):
    spec = {
        "backbone": {"name": "convnet", "widths": (4, 4)},
        "evidence": {"name": "prototypes", "per_class": 2, "picture": 0, **evidence},
        "readout": {"name": "class_connected", **(readout or {})},
    }
    return build(spec, CLASSES, seed=0).eval()


@pytest.mark.parametrize(("own", "other"), [(1.0, -0.5), (2.0, 0.0)])
def test_weights_start_by_ownership_and_there_is_no_bias(own, other):
    readout = model_of({"own": own, "other": other}).readout
    for c in range(3):
        for m in range(6):
            assert float(readout.linear.weight.detach()[c, m]) == (own if m // 2 == c else other)
            assert bool(readout.mine[c, m]) == (m // 2 == c)
    assert readout.linear.bias is None


def test_logits_and_contributions_are_plain_sums():
    model, x = model_of().double(), torch.rand(3, 3, 16, 16, dtype=torch.float64)
    output = model(x)
    activations = output.evidence.activations.detach()
    for b in range(3):
        for c in range(3):
            terms = [float(activations[b, m]) * (1 if m // 2 == c else -0.5) for m in range(6)]
            assert float(output.logits[b, c]) == pytest.approx(sum(terms), abs=1e-12)
    said = model.contributions(output.evidence, torch.tensor([0, 1, 2]))
    assert said.additive
    torch.testing.assert_close(said.units.sum(1), output.logits.diagonal())
    assert not said.bias.any()


def test_slots_of_a_pool_belong_to_their_class():
    spec = {
        "backbone": {"name": "convnet", "widths": (4, 4)},
        "evidence": {"name": "prototype_pool", "size": 4, "slots": 3, "picture": 0},
        "readout": "class_connected",
    }
    mine = build(spec, CLASSES, seed=0).readout.mine
    assert mine.int().argmax(0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert mine.sum() == 9


def test_a_refit_spares_own_weights_and_keeps_within_bounds():
    readout = model_of().readout
    readout.lower[0, 5], readout.upper[1, 0] = 0.2, 0.0
    problem = readout.refit_problem()
    assert torch.equal(problem.penalised, ~readout.mine)
    assert float(problem.lower[0, 5]) == pytest.approx(0.2)
    assert float(problem.upper[1, 0]) == 0
    assert torch.isinf(problem.lower).sum() == problem.lower.numel() - 1


def test_ownership_and_bounds_are_saved(tmp_path):
    model = model_of()
    model.readout.upper[2, 0] = 0.0
    model.readout.mine[2, 0] = True
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model").readout
    assert torch.equal(again.mine, model.readout.mine)
    assert torch.equal(again.upper, model.readout.upper)


def test_its_gradient_reaches_weights_and_prototypes():
    model = model_of().train()
    torch.nn.functional.cross_entropy(model(torch.rand(3, 3, 16, 16)).logits, torch.tensor([0, 1, 2])).backward()
    for learnt in (model.readout.linear.weight, model.evidence.prototypes):
        assert learnt.grad.abs().sum() > 0


@pytest.mark.parametrize("evidence", [{"name": "features"}, {"name": "prototypes", "shared": 4}])
def test_units_that_nobody_owns_are_refused(evidence):
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": evidence, "readout": "class_connected"}
    with pytest.raises(UserError, match=r"owned|does not say which class"):
        build(spec, CLASSES, seed=0)
