"""What the decision loses when units are shuffled, again by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.eval.axes.importance import permutation_importance
from vitrarium.eval.collect import collect
from vitrarium.eval.metrics.resampling import Bootstrap


def said_by(model, batches):
    found = collect(model, batches)
    return found.evidence.activations[found.index.argsort()], found


def test_it_is_the_rise_of_the_loss_under_exchanged_activations(make_axes, make_batches):
    model, batches = make_axes(), make_batches(images=30)
    said, found = said_by(model, batches)
    lost = permutation_importance(model, lambda: batches, said, range(3), Bootstrap(30, 50), seed=2)
    generator = torch.Generator().manual_seed(2)
    weight, bias = model.readout.linear.weight.detach().double(), model.readout.linear.bias.detach().double()
    for j in range(3):
        order = torch.randperm(30, generator=generator)
        changed = said.double().clone()
        changed[:, j] = said[order, j].double()
        before, after = (v @ weight.T + bias for v in (said.double(), changed))
        rise = [functional.cross_entropy(x, found.labels, reduction="none") for x in (before, after)]
        fall = [(x.argmax(1) == found.labels).double() for x in (before, after)]
        assert float(lost.loss[j]) == pytest.approx(float((rise[1] - rise[0]).mean()), abs=1e-5)
        for c in range(3):
            mine = found.labels == c
            assert float(lost.loss_by_class[j, c]) == pytest.approx(float((rise[1] - rise[0])[mine].mean()), abs=1e-5)
            assert float(lost.recall_by_class[j, c]) == pytest.approx(float((fall[0] - fall[1])[mine].mean()))
    assert bool((lost.low <= lost.loss).all())
    assert bool((lost.loss <= lost.high).all())
    assert float(lost.loss.abs().max()) > 1e-3


def test_a_unit_that_nobody_reads_loses_nothing(make_axes, make_batches):
    model, batches = make_axes(), make_batches(images=20)
    with torch.no_grad():
        model.readout.linear.weight[:, 1] = 0
    lost = permutation_importance(model, lambda: batches, said_by(model, batches)[0], (0, 1), Bootstrap(20, 10))
    assert float(lost.loss[1]) == 0
    assert not lost.loss_by_class[1].any()
    assert not lost.recall_by_class[1].any()
    assert float(lost.loss[0]) != 0


def test_neither_batches_nor_their_order_matter(make_axes, make_batches):
    model = make_axes()
    plain, other = make_batches(images=30, batch=16), make_batches(images=30, batch=7, shuffled=True)
    boot, said = Bootstrap(30, 0), said_by(model, plain)[0]
    first, second = (permutation_importance(model, lambda b=b: b, said, range(4), boot) for b in (plain, other))
    torch.testing.assert_close(first.loss, second.loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first.loss_by_class, second.loss_by_class, atol=1e-6, rtol=1e-5)


def test_repeats_are_averaged(make_axes, make_batches):
    model, batches = make_axes(), make_batches(images=20)
    said, boot = said_by(model, batches)[0], Bootstrap(20, 0)
    both = permutation_importance(model, lambda: batches, said, (0, 2), boot, seed=0, repeats=2)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(20, generator=generator) for _ in range(4)]
    found = collect(model, batches)
    weight, bias = model.readout.linear.weight.detach(), model.readout.linear.bias.detach()
    plain = functional.cross_entropy(said @ weight.T + bias, found.labels)
    for j, unit in enumerate((0, 2)):
        rises = []
        for order in (orders[j], orders[2 + j]):
            changed = said.clone()
            changed[:, unit] = said[order, unit]
            rises.append(float(functional.cross_entropy(changed @ weight.T + bias, found.labels) - plain))
        assert float(both.loss[j]) == pytest.approx(np.mean(rises), abs=1e-5)


def test_a_class_without_images_has_no_value(make_axes, make_batches):
    model, batches = make_axes(classes=4), make_batches(images=20, classes=3)
    lost = permutation_importance(model, lambda: batches, said_by(model, batches)[0], (0,), Bootstrap(20, 0))
    assert torch.isnan(lost.loss_by_class[0]).tolist() == [False, False, False, True]


def test_refusals(make_axes, make_batches):
    model, batches = make_axes(), make_batches(images=8)
    said = said_by(model, batches)[0]
    with pytest.raises(UserError, match="repeats=0"):
        permutation_importance(model, lambda: batches, said, (0,), Bootstrap(8, 0), repeats=0)
    for batch in batches:
        batch.index = None
    with pytest.raises(UserError, match="without positions"):
        permutation_importance(model, lambda: batches, said, (0,), Bootstrap(8, 0))
