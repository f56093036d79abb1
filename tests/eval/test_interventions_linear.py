"""The closed form for linear readouts against the model's own answers."""

from __future__ import annotations

import pytest
import torch

from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.eval.collect import answer, collect
from vitrarium.eval.interventions import curve as curves
from vitrarium.eval.interventions import intervention_curve
from vitrarium.eval.interventions.linear import LinearSteps
from vitrarium.models.evidence.concepts import Concepts
from vitrarium.models.intervention import Intervention, set_units


@pytest.fixture
def many():
    """Fourteen concepts in eight groups of one, two and three."""
    sizes, groups, start = (2, 1, 3, 1, 2, 1, 3, 1), [], 0
    for g, size in enumerate(sizes):
        members = tuple(range(start, start + size))
        groups.append(ConceptGroup(f"a{g}", members, tuple("xyz"[:size]), size > 1 and g != 4))
        start += size
    return ConceptSet(tuple(groups))


@pytest.fixture
def case(make_model, make_batches, many):
    """A model on fourteen concepts and its answers to forty images, some of whose truth is unknown."""

    def make(evidence="concepts", readout="linear"):
        model = make_model(evidence, readout, with_concepts=many, sharp=4.0)
        if isinstance(evidence, dict) and evidence.get("activation") == "logit":
            model.evidence.absent.copy_(torch.linspace(-3, -1, 14))
            model.evidence.present.copy_(torch.linspace(1, 4, 14))
        collected = collect(model, make_batches(40, 16, with_concepts=False))
        generator = torch.Generator().manual_seed(1)
        truth = torch.zeros(40, 14)
        for group in many.groups:
            drawn = torch.randint(len(group.members), (40, 1), generator=generator)
            if group.categorical:
                truth[:, list(group.members)] = torch.zeros(40, len(group.members)).scatter(1, drawn, 1.0)
            else:
                truth[:, list(group.members)] = torch.randint(2, (40, len(group.members)), generator=generator).float()
        truth[torch.rand(40, 14, generator=generator) < 0.1] = float("nan")
        collected.concepts = truth
        return model, collected

    return make


KINDS = [
    "concepts",
    {"name": "concepts", "side": 3},
    {"name": "concepts", "activation": "logit"},
    {"name": "concepts", "activation": "hard"},
    {"name": "concepts", "bottleneck": False},
]


def steps_of(model, collected, truth):
    units = model.evidence.units
    full = set_units(units, truth, torch.ones_like(truth, dtype=torch.bool))
    with torch.no_grad():
        return LinearSteps.of(
            model, collected.evidence, model.answer(collected.evidence, full).evidence, units, full
        ), full


@pytest.mark.parametrize("evidence", KINDS)
@pytest.mark.parametrize("budgets", [list(range(9)), [0, 3, 8], [2, 5]])
def test_logits_are_those_of_the_model(case, many, evidence, budgets):
    model, collected = case(evidence)
    steps, full = steps_of(model, collected, collected.concepts)
    assert steps is not None
    order = torch.rand(40, 8, generator=torch.Generator().manual_seed(2)).argsort(1)
    found = [t.clone() for t in steps.logits(collected.logits[5:30], order[5:30], budgets, slice(5, 30))]
    group_of = torch.as_tensor(many.group_of)
    for budget, logits in zip(budgets, found, strict=True):
        asked = torch.stack([torch.isin(group_of, order[i, :budget]) for i in range(40)])
        direct = answer(model, collected.evidence, Intervention(full.mask & asked, full.values))
        torch.testing.assert_close(logits, direct[5:30], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("evidence", KINDS)
def test_curves_are_the_same_either_way(case, evidence, monkeypatch):
    model, collected = case(evidence)
    fast = intervention_curve(model, collected, "random", trials=3, chunk=9, bootstrap=0)
    monkeypatch.setattr(curves.LinearSteps, "of", lambda *given: None)
    slow = intervention_curve(model, collected, "random", trials=3, bootstrap=0)
    assert torch.equal(fast.per_trial, slow.per_trial)
    assert torch.equal(fast.right, slow.right)
    if evidence == "concepts":
        assert len(set(fast.accuracy.tolist())) > 4


def test_both_ends_are_the_models_own_answers(case, monkeypatch):
    model, collected = case()

    def wrong(self, start, order, budgets, rows):
        for budget in budgets:
            yield start if budget == 0 else torch.zeros_like(start)

    expected = intervention_curve(model, collected, "random", trials=1, bootstrap=0)
    monkeypatch.setattr(LinearSteps, "logits", wrong)
    found = intervention_curve(model, collected, "random", trials=1, bootstrap=0)
    assert torch.equal(found.right[:, [0, -1]], expected.right[:, [0, -1]])
    assert not torch.equal(found.right[:, 4], expected.right[:, 4])  # so the closed form was in use


class Talking(Concepts):
    """Units that inform each other: correcting one moves its neighbour."""

    def assemble(self, activations, evidence):
        return activations + 0.5 * activations.roll(1, 1)


def test_units_that_inform_each_other_go_the_long_way(case, many, make_batches, monkeypatch):
    model, collected = case()
    talking = Talking(6, many)
    talking.load_state_dict(model.evidence.state_dict())
    model.evidence = talking.eval()
    truth = collected.concepts
    collected = collect(model, make_batches(40, 16, with_concepts=False))
    collected.concepts = truth
    steps, _ = steps_of(model, collected, truth)
    assert steps is None
    curve = intervention_curve(model, collected, "uncertainty", bootstrap=0)
    monkeypatch.setattr(curves.LinearSteps, "of", lambda *given: None)
    assert torch.equal(curve.right, intervention_curve(model, collected, "uncertainty", bootstrap=0).right)


def test_other_readouts_and_wide_groups_go_the_long_way(case, make_model, make_batches):
    model, collected = case(readout="mlp")
    assert steps_of(model, collected, collected.concepts)[0] is None
    model = make_model()  # eight concepts, a group of three: nothing to gain
    collected = collect(model, make_batches(10, 10))
    assert steps_of(model, collected, collected.concepts)[0] is None
