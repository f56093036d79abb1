"""What is trained on slots: the term on their overlap, the events that sharpen and settle them, resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.models import build
from vitrarium.train.events.base import EVENTS, Moment
from vitrarium.train.terms.base import TERMS, Step
from vitrarium.train.terms.slots import slot_overlap

# Three batches.
SHORT = (
    "data.train=24",
    "data.val=8",
    "data.test=8",
    "model.evidence.slots=3",
    "train.epochs=1",
    "train.save_seconds=0",
)


def pool_model(slots=3, size=6, seed=0):
    evidence = {"name": "prototype_pool", "size": size, "slots": slots}
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": evidence, "readout": "class_connected"}
    return build(spec, ("a", "b"), seed=seed)


def step_of(model):
    output = model(torch.rand(3, 3, 16, 16))
    return Step(model, None, output)


def overlap_by_hand(slots):
    total = 0.0
    for slots_of_class in slots.tolist():
        for first in slots_of_class:
            for second in slots_of_class:
                product = sum(a * b for a, b in zip(first, second, strict=True))
                total += product / math.sqrt(sum(a * a for a in first)) / math.sqrt(sum(b * b for b in second))
    return total / (len(slots) * len(slots[0])) - 1


def test_overlap_is_the_mean_cosine_of_slots():
    slots = torch.rand(4, 3, 7, generator=torch.Generator().manual_seed(0)).double()
    assert float(slot_overlap(slots)) == pytest.approx(overlap_by_hand(slots), abs=1e-12)
    same = torch.ones(2, 5, 4).double()
    assert float(slot_overlap(same)) == pytest.approx(4)
    assert float(slot_overlap(torch.eye(4)[None].double())) == pytest.approx(0)
    assert float(slot_overlap(torch.ones(2, 1, 4).double())) == pytest.approx(0), "one slot overlaps with none"


def test_the_term_compares_what_is_drawn_and_teaches_the_choice():
    model = pool_model().train()
    model.evidence.sharpness.fill_(2.0)
    step = step_of(model)
    loss = TERMS.build({"name": "slot_orthogonality"}, source=None)(step)
    drawn = step.output.evidence.state["slots"][1].view(2, 3, 6)
    assert float(loss.detach()) == pytest.approx(overlap_by_hand(drawn.detach()), abs=1e-5)
    loss.backward()
    assert bool((model.evidence.choice.grad.abs() > 0).any())


def test_the_released_term_compares_numbers_that_may_be_negative():
    model = pool_model(slots=2, size=2)
    with torch.no_grad():
        model.evidence.choice[:] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    step = step_of(model.train())
    assert float(
        TERMS.build({"name": "slot_orthogonality", "of": "choice"}, source=None)(step).detach()
    ) == pytest.approx(-1)
    assert float(TERMS.build({"name": "slot_orthogonality"}, source=None)(step).detach()) > -1e-6
    with pytest.raises(UserError, match="assignment"):
        TERMS.build({"name": "slot_orthogonality", "of": "assignments"}, source=None)


def test_a_settled_pool_is_compared_without_noise():
    model = pool_model(slots=2, size=3).eval()
    with torch.no_grad():
        model.evidence.choice.zero_()[:, :, 1] = 1.0
    assert float(TERMS.build({"name": "slot_orthogonality"}, source=None)(step_of(model))) == pytest.approx(1)


def moment(model, progress=0.0, log=None):
    return Moment(model, None, None, None, seed=0, progress=progress, log=log or (lambda name, value: None))


@pytest.mark.parametrize(("epoch", "epochs"), [(1, 30), (7, 30), (30, 30), (44, 30)])
def test_sharpness_is_that_of_the_release(epoch, epochs):
    """1.3 sqrt(((1000 / 1.3)^2 / T) t) up to T epochs, then 1000; here T is half of the stage."""
    model = pool_model()
    EVENTS.build({"name": "sharpen_slots", "until": 0.5}).run(moment(model, epoch / (2 * epochs)))
    wanted = 1.3 * math.sqrt((1000 / 1.3) ** 2 / epochs * epoch) if epoch < epochs else 1000.0
    assert float(model.evidence.sharpness) == pytest.approx(wanted, rel=1e-5)


def test_settled_slots_answer_the_same_and_training_no_longer_changes_them():
    model, logged = pool_model().eval(), {}
    x = torch.rand(4, 3, 16, 16)
    before, slots = model(x).logits, model.evidence.unit_of
    EVENTS.build({"name": "assign_slots"}).run(moment(model, 1.0, logged.__setitem__))
    assert torch.equal(model(x).logits, before)
    used = set(slots.tolist())
    assert model.evidence.alive.tolist() == [m in used for m in range(6)]
    assert logged == {"assign_slots/prototypes_in_use": len(used)}
    model.evidence.train()
    for seed in range(20):
        torch.manual_seed(seed)
        torch.testing.assert_close(model.evidence.assignment().argmax(1), slots)
    keeps = pool_model().eval()
    EVENTS.build({"name": "assign_slots", "retire": False}).run(moment(keeps))
    assert bool(keeps.evidence.alive.all())


def test_events_refuse_what_has_no_slots():
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "prototypes", "readout": "linear"}
    model = build(spec, ("a", "b"), seed=0)
    for name in ("sharpen_slots", "assign_slots"):
        with pytest.raises(UserError, match="needs evidence with slots"):
            EVENTS.build({"name": name}).check(model)
    for options in ({"highest": 0.0}, {"until": 0.0}, {"until": 1.5}):
        with pytest.raises(UserError, match="until="):
            EVENTS.build({"name": "sharpen_slots", **options})


def test_cluster_terms_take_the_chosen_prototypes_as_the_classes_own():
    model = pool_model(slots=2).train()
    with torch.no_grad():
        model.evidence.choice.zero_().scatter_(2, torch.tensor([[[0], [1]], [[1], [4]]]), 1.0)
    step = replace(step_of(model), batch=SimpleNamespace(label=torch.tensor([0, 1, 1])))
    distance = step.output.evidence.state["distance"].detach()
    own, others = {0: [0, 1], 1: [1, 4]}, {0: [2, 3, 4, 5], 1: [0, 2, 3, 5]}
    near = sum(float(distance[b, own[y]].min()) for b, y in enumerate((0, 1, 1))) / 3
    far = sum(float(distance[b, others[y]].min()) for b, y in enumerate((0, 1, 1))) / 3
    assert float(TERMS.build({"name": "cluster"}, source=None)(step).detach()) == pytest.approx(near, abs=1e-6)
    assert float(TERMS.build({"name": "separation"}, source=None)(step).detach()) == pytest.approx(-far, abs=1e-6)


def test_a_pool_resumes_exactly(tiny, tmp_path, monkeypatch):
    """The noise of a step is drawn after seeding, and sharpness is a function of how far training is."""
    from vitrarium.configs.errors import Interrupted
    from vitrarium.train.callbacks import Interruption

    given = ("model=protopool", *tiny, *SHORT)
    whole = vt.fit(*given, out=tmp_path / "whole")
    asked = iter([False] + [True] + [False] * 1000)
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "agreed", lambda self: next(asked))
        with pytest.raises(Interrupted):
            vt.fit(*given, out=tmp_path / "cut")
    cut = vt.fit(*given, out=tmp_path / "cut", resume=True)
    ours, theirs = vt.load(whole.folder).state_dict(), vt.load(cut.folder).state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, equal_nan=True)
