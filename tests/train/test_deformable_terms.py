"""Terms of deformable prototypes against loops in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models import build
from vitrarium.train.terms.base import TERMS, Step
from vitrarium.train.terms.deformable import mean_square_offset, with_margin


def model_of(classes=3, per_class=2, seed=0):
    evidence = {"name": "deformable_prototypes", "per_class": per_class}
    spec = {"backbone": {"name": "convnet", "widths": (6, 6)}, "evidence": evidence, "readout": "class_connected"}
    model = build(spec, tuple("abcdefg"[:classes]), seed=seed).double()
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.evidence.offsets.weight, std=0.3)
    torch.nn.init.normal_(model.evidence.prototypes)
    return model.train()


def step_of(model, labels=(0, 2, 1, 1)):
    images = torch.rand(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    batch = Batch(images, torch.tensor(labels))
    return Step(model, batch, model(images))


def test_offsets_are_measured_in_squares_of_places():
    offsets = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    for b, found in enumerate(mean_square_offset(offsets).tolist()):
        each = [float(offsets[b, 0, n, i, j]) ** 2 + float(offsets[b, 1, n, i, j]) ** 2
                for n in range(4) for i in range(5) for j in range(6)]  # fmt: skip
        assert found == pytest.approx(sum(each) / len(each))


def test_the_offset_term_teaches_the_offsets():
    """The released code computes it under no_grad, and its weight of 0.8 does nothing."""
    model = model_of()
    step = step_of(model)
    loss = TERMS.build({"name": "offsets"}, source=None)(step)
    assert float(loss.detach()) == pytest.approx(
        float(mean_square_offset(step.output.evidence.state["offsets"]).mean().detach())
    )
    loss.backward()
    assert bool((model.evidence.offsets.weight.grad.abs() > 0).any())


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.2])
def test_margins_are_those_of_angles(margin):
    cosines = [-1 + 1e-6, -0.7, -0.1, 0.0, 0.3, 0.9, 0.994, 0.996, 1 - 1e-6, 1.0]
    found = with_margin(torch.tensor(cosines, dtype=torch.float64), margin).tolist()
    for cosine, given in zip(cosines, found, strict=True):
        assert given == pytest.approx(math.cos(max(math.acos(cosine) - margin, 0)), abs=3e-6)


def test_margins_have_finite_gradients_everywhere():
    cosine = torch.tensor([-1.0, -0.5, 0.0, math.cos(0.1), 0.999, 1.0, 1.0 + 1e-7]).requires_grad_()
    with_margin(cosine, 0.1).sum().backward()
    assert torch.isfinite(cosine.grad).all()
    assert float(cosine.grad[5]) == 0


class Source:
    """What weights of classes are counted on."""

    class_names = ("a", "b", "c")
    splits: ClassVar = {"train": SimpleNamespace(labels=[0, 1, 2])}


def term(**options):
    return TERMS.build({"name": "margin_cross_entropy", **options}, source=Source())


def test_prototypes_of_other_classes_are_seen_nearer_than_they_are():
    model = model_of()
    step = step_of(model)
    cosine = step.output.evidence.state["cosine"].detach()
    assert bool((cosine < 0).any()), "a prototype on the other side is tested too"
    weight = model.readout.linear.weight.detach()
    total = 0.0
    for b, label in enumerate((0, 2, 1, 1)):
        activations = []
        for p in range(6):
            theta = math.acos(float(cosine[b, p]))
            own = p // 2 == label
            activations.append(max(0.0, math.cos(theta if own else max(theta - 0.2, 0))))
        logits = [sum(float(w) * a for w, a in zip(row, activations, strict=True)) for row in weight]
        total += math.log(sum(math.exp(value) for value in logits)) - logits[label]
    assert float(term(margin=0.2)(step).detach()) == pytest.approx(total / 4, abs=1e-6)


def test_without_a_margin_it_is_the_cross_entropy():
    step = step_of(model_of())
    plain = torch.nn.functional.cross_entropy(step.output.logits, step.batch.label)
    torch.testing.assert_close(term(margin=0.0)(step), plain)
    assert float(term(margin=0.3)(step).detach()) > float(plain.detach())


def test_the_margin_teaches_prototypes_offsets_and_backbone():
    model = model_of()
    term()(step_of(model)).backward()
    taught = [model.evidence.prototypes, model.evidence.offsets.weight, next(model.backbone.parameters())]
    assert all(bool((tensor.grad.abs() > 0).any()) for tensor in taught)


def test_a_pruned_prototype_has_no_say():
    model = model_of()
    model.evidence.alive[2] = False
    loss = term()(step_of(model))
    loss.backward()
    assert not model.evidence.prototypes.grad[2].any()


def test_parts_of_one_class_are_made_orthogonal_not_those_of_several():
    """The release reshapes class-major prototypes as (per_class, classes): its rows mix classes."""
    model = model_of()
    with torch.no_grad():
        # All parts of a class are orthogonal to each other; all classes are the same.
        basis = torch.eye(8).double().view(2, 4, 8).transpose(1, 2).reshape(2, 8, 2, 2)
        model.evidence.prototypes[:] = basis.repeat(3, 1, 1, 1)
    orthogonality = TERMS.build({"name": "orthogonality", "norm": "squared", "rows": "part", "unit": True}, source=None)
    assert float(orthogonality(step_of(model)).detach()) == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        model.evidence.prototypes[3] = model.evidence.prototypes[2]
    assert float(orthogonality(step_of(model)).detach()) == pytest.approx(8)


@pytest.mark.parametrize("margin", [-0.1, 2.0])
def test_refuses_angles_out_of_range(margin):
    with pytest.raises(UserError, match="radians"):
        term(margin=margin)
