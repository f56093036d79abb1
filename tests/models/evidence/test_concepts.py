"""The concept bottleneck against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.models import Features, Intervention
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.evidence.concepts import GroupSoftmax
from vitrarium.models.intervention import set_units

SETS = {
    "mixed": ConceptSet.categorical({"a": ("x", "y", "z"), "b": (), "c": ("u", "v"), "d": ()}),
    "all categorical": ConceptSet.categorical({"a": ("x", "y"), "b": ("u", "v", "w")}),
    "all binary": ConceptSet.binary(["p", "q", "r"]),
}


@pytest.mark.parametrize("name", SETS)
def test_probabilities_against_loops(name):
    concepts, rng = SETS[name], np.random.default_rng(0)
    scores = rng.normal(size=(6, len(concepts))) * 4
    expected, hard = np.zeros_like(scores), np.zeros_like(scores)
    for n in range(6):
        for group in concepts.groups:
            members = list(group.members)
            if group.categorical:
                e = np.exp(scores[n, members] - scores[n, members].max())
                expected[n, members] = e / e.sum()
                hard[n, members[int(scores[n, members].argmax())]] = 1
            else:
                expected[n, members] = 1 / (1 + np.exp(-scores[n, members]))
                hard[n, members] = scores[n, members] > 0
    softmax = GroupSoftmax(concepts)
    got = softmax(torch.tensor(scores))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(softmax.harden(got).numpy(), hard)


def layer(concepts=SETS["mixed"], **options):
    torch.manual_seed(0)
    return EVIDENCE.build(
        {"name": "concepts", **options}, channels=5, concepts=concepts, classes=3, backbone=None
    ).double()


FEATURES = Features(torch.randn(4, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_scores_are_the_mean_of_the_maps_and_equal_a_linear_layer_on_pooled_features():
    one = layer()
    evidence = one(FEATURES)
    torch.testing.assert_close(evidence.maps.mean((2, 3)), evidence.scores)
    pooled = FEATURES.map.mean((2, 3))
    torch.testing.assert_close(evidence.scores, pooled @ one.head.weight[:, :, 0, 0].T + one.head.bias)


def test_hard_is_zero_or_one_with_the_gradient_of_the_probability():
    hard, soft = layer(activation="hard"), layer(activation="sigmoid")
    evidence = hard(FEATURES)
    torch.testing.assert_close(evidence.activations, evidence.activations.round())
    weight = torch.randn_like(evidence.activations)
    (evidence.activations * weight).sum().backward()
    (soft(FEATURES).activations * weight).sum().backward()
    torch.testing.assert_close(hard.head.weight.grad, soft.head.weight.grad)


def test_the_side_channel_stands_beside_the_concepts():
    one = layer(side=2)
    evidence = one(FEATURES)
    assert evidence.vector.shape == (4, 9)
    assert one.unit_of.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1]
    every = Intervention(torch.ones(4, 7, dtype=torch.bool), torch.full((4, 7), 0.5, dtype=torch.float64))
    changed = one.intervene(evidence, every)
    torch.testing.assert_close(changed.vector[:, 7:], evidence.vector[:, 7:])
    assert (changed.vector[:, :7] == 0.5).all()


def test_without_a_bottleneck_corrections_do_not_reach_the_vector():
    one = layer(bottleneck=False)
    evidence = one(FEATURES)
    every = Intervention(torch.ones(4, 7, dtype=torch.bool), torch.zeros(4, 7, dtype=torch.float64))
    assert torch.equal(one.intervene(evidence, every).vector, evidence.vector)


def test_a_region_pools_the_maps_over_it():
    one = layer(activation="logit")
    evidence = one(FEATURES)
    region = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    region[:, :, 0] = 1
    nothing = Intervention(torch.zeros(4, 7, dtype=torch.bool), torch.zeros(4, 7), region)
    torch.testing.assert_close(one.intervene(evidence, nothing).activations, evidence.maps[:, :, 0].mean(2))


def test_truth_becomes_the_values_that_stand_for_it():
    one = layer(activation="logit")
    one.absent.copy_(torch.arange(7.0))
    one.present.copy_(torch.arange(7.0) + 10)
    truth = torch.full((1, 7), float("nan"))
    truth[0, 1], truth[0, 3] = 1.0, 0.25
    do = set_units(one.units, truth, torch.ones(1, 7, dtype=torch.bool))
    assert do.mask.tolist() == [[False, True, False, True, False, False, False]]
    assert float(do.values[0, 1]) == 11
    assert float(do.values[0, 3]) == 3 + 0.25 * 10


def test_uncalibrated_scores_cannot_be_set():
    with pytest.raises(UserError, match="calibrate"):
        layer(activation="logit").units.read({"a": "x"})
