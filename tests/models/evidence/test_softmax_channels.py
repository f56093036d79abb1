"""Softmax over channels against plain loops in float64; evaluation never writes."""

from __future__ import annotations

import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import Features, Intervention, build
from vitrarium.models.evidence.base import EVIDENCE

SMALL = {"name": "convnet", "widths": (8, 8)}


def layer(channels=5, **options):
    torch.manual_seed(0)
    return EVIDENCE.build({"name": "softmax_channels", **options}, channels=channels, classes=3)


def by_hand(scores, threshold):
    """Shares and presence of every prototype from loops over places."""
    images, units, height, width = scores.shape
    shares = torch.zeros_like(scores)
    for i in range(images):
        for y in range(height):
            for x in range(width):
                powers = [math.exp(float(s)) for s in scores[i, :, y, x]]
                shares[i, :, y, x] = torch.tensor([p / sum(powers) for p in powers], dtype=scores.dtype)
    presence = torch.zeros(images, units, dtype=scores.dtype)
    for i in range(images):
        for m in range(units):
            best = max(float(v) for v in shares[i, m].flatten())
            presence[i, m] = best if best >= threshold else 0.0
    return shares, presence


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [None, 7])
def test_shares_and_presence(count, training):
    here = layer(count=count, threshold=0.4).double().train(training)
    map = 3 * torch.randn(3, 5, 2, 3, dtype=torch.float64)
    scores = map
    if count is not None:
        weight, bias = here.mix.weight.detach()[:, :, 0, 0], here.mix.bias.detach()
        scores = torch.einsum("md,bdhw->bmhw", weight, map) + bias[:, None, None]
    shares, presence = by_hand(scores, 0.0 if training else 0.4)
    said = here(Features(map))
    torch.testing.assert_close(said.maps, shares, rtol=0, atol=1e-12)
    torch.testing.assert_close(said.activations, presence, rtol=0, atol=1e-12)
    assert torch.equal(said.vector, said.activations)
    if not training:
        assert (said.activations == 0).any()
        assert (said.activations > 0).any()


def test_the_threshold_is_all_that_evaluation_changes():
    here, features = layer(threshold=0.3), Features(torch.randn(4, 5, 3, 3))
    before = {name: value.clone() for name, value in here.state_dict().items()}
    learning, judging = here.train()(features), here.eval()(features)
    assert torch.equal(learning.maps, judging.maps)
    kept = judging.activations > 0
    assert torch.equal(learning.activations[kept], judging.activations[kept])
    assert (learning.activations[~kept] < 0.3).all()
    free = layer(threshold=0.0)
    assert torch.equal(free.train()(features).activations, free.eval()(features).activations)
    for name, value in here.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_banned_region_is_filled_and_a_silenced_prototype_says_nothing():
    model = build({"backbone": SMALL, "evidence": {"name": "softmax_channels"}, "readout": "nonnegative"}, ("a", "b"))
    model.eval()
    x = torch.rand(2, 3, 16, 16)
    evidence = model(x).evidence.detach()
    units, size = evidence.maps.shape[1], evidence.maps.shape[-2:]
    region = torch.ones(2, units, *size)
    best = int(evidence.maps[0, 3].argmax())
    region[0, 3].view(-1)[best] = 0
    nothing = Intervention(torch.zeros(2, units, dtype=torch.bool), torch.zeros(2, units), region)
    second = float(evidence.maps[0, 3].flatten().topk(2).values[1])
    after = model(x, nothing).evidence.detach()
    assert float(after.activations[0, 3]) == pytest.approx(second if second >= 0.1 else 0.0)
    model.evidence.alive[3] = False
    silenced = model(x)
    assert (silenced.evidence.vector[:, 3] == 0).all()
    said = model.contributions(silenced.evidence, torch.tensor([0, 1]))
    assert (said.units[:, 3] == 0).all()


def test_set_by_name_and_half_precision():
    model = build({"backbone": SMALL, "evidence": {"name": "softmax_channels"}, "readout": "nonnegative"}, ("a", "b"))
    assert model.evidence.read_corrections({"prototype_2": "yes"}).values == {2: 1.0}
    half = model.evidence.similarity(torch.randn(2, 8, 3, 3).bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(1), torch.ones(2, 3, 3))


def test_it_has_no_vectors_to_set():
    here = layer()
    assert here.vectors is None
    with pytest.raises(UserError, match="no prototype vectors"):
        here.place_prototypes(torch.tensor([0]), torch.zeros(1, 5, 1, 1))


@pytest.mark.parametrize("options", [{"count": 1}, {"threshold": 1.0}, {"threshold": -0.1}, {"picture": -1}])
def test_refusals(options):
    with pytest.raises(UserError, match="at least 2 prototypes"):
        layer(**options)
