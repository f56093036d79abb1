from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.interventions import POLICIES, Context
from vitrarium.eval.interventions.policies import group_entropy
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable


def context(units, probabilities, seed=0):
    n, g = len(probabilities), len(units.groups)
    evidence = Evidence(probabilities, probabilities, probabilities=probabilities)
    return Context(
        None, evidence, torch.zeros(n, 2), units, torch.zeros(n, g, dtype=torch.bool), torch.ones(g),
        torch.Generator().manual_seed(seed),
    )  # fmt: skip


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_entropies_against_loops(concepts, reduce):
    p = np.random.default_rng(0).random((30, 8))
    p[0, 3], p[1, 3] = 0.0, 1.0  # 0 ln 0 = 0
    expected = np.zeros((30, 4))
    for i in range(30):
        for g, group in enumerate(concepts.groups):
            values = [float(p[i, m]) for m in group.members]
            if group.categorical:
                expected[i, g] = -sum(v * math.log(v) for v in values)
            else:
                each = [-sum(v * math.log(v) for v in (q, 1 - q) if v > 0) for q in values]
                expected[i, g] = max(each) if reduce == "max" else sum(each) / len(each)
    units = UnitTable.of_concepts(concepts)
    np.testing.assert_allclose(group_entropy(torch.tensor(p), units, reduce), expected, atol=1e-12)
    policy = POLICIES.build({"name": "uncertainty", "group": reduce})
    order = policy.rank(context(units, torch.tensor(p)))
    for i in range(30):
        asked = [expected[i, g] for g in order[i].tolist()]
        assert asked == sorted(asked, reverse=True)


def test_equal_scores_keep_the_order_of_the_groups(concepts):
    units = UnitTable.of_concepts(concepts)
    p = torch.full((2, 8), 0.0)
    assert POLICIES.build("uncertainty").rank(context(units, p)).tolist() == [[0, 1, 2, 3]] * 2


def test_random_orders(concepts):
    units, p = UnitTable.of_concepts(concepts), torch.rand(4000, 8)
    each = POLICIES.build("random").rank(context(units, p))
    counts = Counter(map(tuple, each.tolist()))
    assert len(counts) == 24
    assert max(counts.values()) < 2 * min(counts.values())  # all orders about equally often
    assert torch.equal(each, POLICIES.build("random").rank(context(units, p)))
    assert not torch.equal(each, POLICIES.build("random").rank(context(units, p, seed=1)))
    shared = POLICIES.build({"name": "random", "order": "one_for_all"})
    assert len({tuple(row) for row in shared.rank(context(units, p)).tolist()}) == 1
    assert shared.choices["order"] == "one_for_all"


def test_refusals(concepts):
    with pytest.raises(UserError, match="did you mean 'one_for_all'"):
        POLICIES.build({"name": "random", "order": "one_for_al"})
    with pytest.raises(UserError, match="cannot reduce a group by 'sum'"):
        POLICIES.build({"name": "uncertainty", "group": "sum"})
    with pytest.raises(UserError, match="did you mean 'uncertainty'"):
        POLICIES.build("uncertainy")
    channels = UnitTable.anonymous("channel", 4)
    with pytest.raises(UserError, match="channel units have no concept as truth"):
        POLICIES.build("random").require(channels)
    silent = UnitTable.of_concepts(concepts)
    silent.probability = "none"
    POLICIES.build("random").require(silent)
    with pytest.raises(UserError, match="no probability"):
        POLICIES.build("uncertainty").require(silent)
    uncalibrated = UnitTable.of_concepts(concepts)
    uncalibrated.present = torch.full((8,), float("nan"))
    with pytest.raises(UserError, match="absent and present"):
        POLICIES.build("random").require(uncalibrated)
