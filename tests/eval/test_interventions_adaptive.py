"""Policies that look again after each answer."""

from __future__ import annotations

import pytest
import torch

from vitrarium.eval.collect import collect
from vitrarium.eval.interventions import Policy, accuracy_fully_corrected, intervention_curve


class Mute(Policy):
    """Has nothing to say about any group."""

    static = False

    def score(self, context):
        return torch.full(context.asked.shape, float("-inf")).masked_fill(context.asked, 0.0)


class Adaptive(Policy):
    """Most uncertain first, but by the activations as they are after the answers: answered groups are certain."""

    static = False

    def __init__(self):
        self.seen = []

    def score(self, context):
        self.seen.append((context.asked.clone(), context.evidence.activations.clone(), context.logits.clone()))
        doubt = 0.5 - (context.evidence.activations - 0.5).abs()
        scores = torch.zeros(context.asked.shape, dtype=torch.float64)
        return scores.index_add(1, context.units.group_of, doubt.double()) + context.logits.double().amax(1)[:, None]


def test_adaptive_policies_see_the_evidence_after_each_answer(make_model, make_batches, concepts):
    model, batches = make_model(), make_batches(20, 20, missing=0.2)
    collected = collect(model, batches)
    policy = Adaptive()
    curve = intervention_curve(model, collected, policy, bootstrap=0)
    # Replay by hand, image by image.
    group_of = concepts.group_of
    for i in range(20):
        asked, do_mask = [], torch.zeros(1, 8, dtype=torch.bool)
        for k in range(4):
            seen_asked, activations, logits = (t[i] for t in policy.seen[k])
            assert set(seen_asked.nonzero()[:, 0].tolist()) == set(asked)
            truth = collected.concepts[i].nan_to_num(0.0)
            expected = torch.where(do_mask[0], truth, collected.evidence.activations[i])
            torch.testing.assert_close(activations, expected)
            hit = bool(logits.argmax() == collected.labels[i])
            assert curve.right[i, k] == hit
            doubt = 0.5 - (activations - 0.5).abs()
            scores = [sum(float(doubt[m]) for m in range(8) if group_of[m] == g) for g in range(4)]
            chosen = max((g for g in range(4) if g not in asked), key=lambda g: scores[g])
            asked.append(chosen)
            members = list(concepts.groups[chosen].members)
            known = ~torch.isnan(collected.concepts[i, members])
            if not concepts.groups[chosen].categorical or known.all():
                do_mask[0, members] = known


@pytest.mark.parametrize("chunk", [4096, 6])
def test_recomputing_changes_nothing_in_a_plain_bottleneck(make_model, make_batches, chunk):
    model = make_model()
    collected = collect(model, make_batches(40, 40, missing=0.2))
    once = intervention_curve(model, collected, "uncertainty", bootstrap=0)
    again = intervention_curve(model, collected, {"name": "uncertainty", "recompute": True}, bootstrap=0, chunk=chunk)
    assert torch.equal(once.right, again.right)
    assert torch.equal(once.cost, again.cost)
    assert (once.choices["ranked"], again.choices["ranked"]) == ("once", "after each answer")
    few = intervention_curve(model, collected, {"name": "uncertainty", "recompute": True}, bootstrap=0, budgets=[2])
    assert torch.equal(few.right[:, 0], once.right[:, 2])


def test_a_group_is_never_asked_twice(make_model, make_batches):
    model = make_model()
    collected = collect(model, make_batches(20, 20))
    curve = intervention_curve(model, collected, Mute(), bootstrap=0)
    assert curve.cost.tolist() == [0.0, 1.0, 3.0, 3.5, 6.5]
    assert curve.fully_corrected == accuracy_fully_corrected(model, collected)
