"""Relevance times concept, re-derived in loops."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import Intervention, build

CLASSES = ("x", "y", "z")


def make(evidence=None, **options):
    spec = {
        "backbone": {"name": "convnet", "widths": (8, 8)},
        "evidence": evidence or {"name": "self_learnt_concepts", "count": 4, "width": 4},
        "readout": {"name": "input_dependent", **options},
    }
    model = build(spec, CLASSES, seed=0).double().eval()
    if model.readout.bias is not None:
        torch.nn.init.normal_(model.readout.bias)
    return model


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"hidden": 0}, {"bias": False}])
def test_logits_are_relevances_times_units(options):
    model = make(**options)
    output, readout = model(images()), model.readout
    theta = readout.relevances(output.evidence)
    assert theta.shape == (3, 3, 4)
    pooled = output.evidence.context["features"]
    hidden = pooled
    if options.get("hidden", 64):
        hidden = (pooled @ readout.hidden[0].weight.T + readout.hidden[0].bias).clamp_min(0)
    by_hand = hidden @ readout.relevance.weight.T + readout.relevance.bias
    bias = torch.zeros(3) if readout.bias is None else readout.bias
    for b in range(3):
        for c in range(3):
            assert float(theta[b, c, 2]) == pytest.approx(float(by_hand[b, 4 * c + 2].detach()), abs=1e-12)
            logit = sum(float(theta[b, c, m] * output.evidence.activations[b, m]) for m in range(4)) + float(bias[c])
            assert float(output.logits[b, c]) == pytest.approx(logit, abs=1e-12)
    # Relevances differ between images: that is the point.
    assert float((theta[0] - theta[1]).abs().max()) > 1e-6


def test_contributions_add_up_and_silence_takes_one_away():
    model = make()
    output, classes = model(images()), torch.tensor([2, 0, 1])
    said = model.contributions(output.evidence, classes)
    assert said.additive
    torch.testing.assert_close(said.units.sum(1) + said.bias, output.logits.gather(1, classes[:, None])[:, 0])
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, 1] = True
    without = model(images(), Intervention(mask, torch.zeros(3, 4))).logits
    before, after = (logits.gather(1, classes[:, None])[:, 0] for logits in (output.logits, without))
    torch.testing.assert_close(after, before - said.units[:, 1])


def test_cached_evidence_is_enough():
    model = make()
    output = model(images())
    again = model.answer(output.evidence.without_maps()[1:])
    torch.testing.assert_close(again.logits, output.logits[1:])


def test_units_that_are_dropped_never_count_again():
    model = make()
    model.readout.drop_entries(torch.tensor([False, True, False, True]))
    theta = model.readout.relevances(model(images()).evidence)
    assert not theta[:, :, [1, 3]].any()
    assert bool((theta[:, :, [0, 2]].abs() > 0).all())


def test_it_learns_and_so_do_units_and_backbone():
    model = make()
    torch.nn.functional.cross_entropy(model(images()).logits, torch.tensor([0, 1, 2])).backward()
    for part in (model.readout.hidden, model.readout.relevance, model.evidence.to_maps, model.backbone):
        assert all(bool(p.grad.abs().sum() > 0) for p in part.parameters() if p.grad is not None)
        assert any(p.grad is not None for p in part.parameters())
    assert bool(model.readout.bias.grad.any())


def test_refusals():
    with pytest.raises(UserError, match="hidden=-1"):
        make(hidden=-1)
    with pytest.raises(UserError, match="needs pooled"):
        make(evidence="features")
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        make(hiden=3)
