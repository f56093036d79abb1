from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import collect
from vitrarium.eval.interventions import (
    Corrector,
    Policy,
    accuracy_fully_corrected,
    annotator,
    intervention_curve,
    plot_curves,
)
from vitrarium.models.units import UnitTable


class Fixed(Policy):
    """Asks in an order that is given."""

    def __init__(self, order):
        self.order = order

    def score(self, context):
        position = torch.empty_like(self.order).scatter_(1, self.order, torch.arange(4).expand_as(self.order))
        return -position.double()


class Twice(Fixed):
    """Asks the first group again and again."""

    def rank(self, context):
        return torch.zeros_like(self.order)


def loop_curve(model, batches, order, concepts, absent=None, present=None):
    """Image by image, group by group, through the whole model, in float64."""
    model = model.double()
    images = torch.cat([b.image for b in batches]).double()
    labels = torch.cat([b.label for b in batches]).tolist()
    truth = torch.cat([b.concepts for b in batches]).double()
    absent = [0.0] * 8 if absent is None else absent
    present = [1.0] * 8 if present is None else present
    right = np.zeros((len(labels), 5))
    for i in range(len(labels)):
        for k in range(5):
            with torch.no_grad():
                evidence = model.observe(model.backbone(images[i : i + 1]))
                vector = evidence.vector[0].tolist()
                for g in order[i][:k].tolist():
                    group = concepts.groups[g]
                    values = [float(truth[i, m]) for m in group.members]
                    if group.categorical and any(math.isnan(v) for v in values):
                        continue
                    for m, v in zip(group.members, values, strict=True):
                        if not math.isnan(v):
                            vector[m] = absent[m] + v * (present[m] - absent[m])
                weight, bias = model.readout.linear.weight, model.readout.linear.bias
                logits = [
                    float(bias[c]) + sum(float(w) * x for w, x in zip(weight[c], vector, strict=True)) for c in range(3)
                ]
            right[i, k] = logits.index(max(logits)) == labels[i]
    model.float()
    return right


@pytest.fixture
def order():
    generator = torch.Generator().manual_seed(4)
    return torch.rand(30, 4, generator=generator).argsort(1)


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("evidence", ["concepts", {"name": "concepts", "side": 2}])
def test_against_a_loop_over_images_and_attributes(make_model, make_batches, concepts, order, missing, evidence):
    model, batches = make_model(evidence), make_batches(30, 8, missing=missing)
    truth = torch.cat([b.concepts for b in batches])
    truth[0, 0], truth[1, 6] = float("nan"), float("nan")  # half a categorical group, half of another group
    batches[0].concepts[0, 0], batches[0].concepts[1, 6] = float("nan"), float("nan")
    expected = loop_curve(model, batches, order, concepts)
    collected = collect(model, batches)
    runs = model.backbone.runs
    for chunk in (4096, 7):
        curve = intervention_curve(model, collected, Fixed(order), chunk=chunk, bootstrap=50)
        np.testing.assert_array_equal(curve.right, expected)
        np.testing.assert_allclose(curve.accuracy, expected.mean(0), atol=1e-12)
    assert model.backbone.runs == runs
    assert expected.mean(0).std() > 0.01  # corrections do something here


def test_logit_units_are_set_to_their_training_quantiles(make_model, make_batches, concepts, order):
    model, batches = make_model({"name": "concepts", "activation": "logit"}), make_batches(30, 30)
    collected = collect(model, batches)
    with pytest.raises(UserError, match="absent and present"):
        intervention_curve(model, collected, "random")
    model.evidence.absent.copy_(torch.linspace(-3, -1, 8))
    model.evidence.present.copy_(torch.linspace(1, 4, 8))
    absent, present = model.evidence.absent.tolist(), model.evidence.present.tolist()
    expected = loop_curve(model, batches, order, concepts, absent, present)
    curve = intervention_curve(model, collected, Fixed(order), bootstrap=0)
    np.testing.assert_array_equal(curve.right, expected)
    assert curve.choices["values"] == "training quantiles"


def test_zero_questions_change_nothing_and_all_questions_leave_nothing_to_order(make_model, make_batches):
    model = make_model()
    collected = collect(model, make_batches(40, 40))
    curves = [
        intervention_curve(model, collected, policy, trials=3)
        for policy in ("random", "uncertainty", {"name": "random", "order": "one_for_all"})
    ]
    start = (collected.logits.argmax(1) == collected.labels).double().mean()
    for curve in curves:
        assert curve.budgets == [0, 1, 2, 3, 4]
        assert curve.start == float(start)
        assert curve.fully_corrected == pytest.approx(curves[0].fully_corrected, abs=1e-12)
        assert curve.cost[0] == 0
        assert float(curve.cost[-1]) == pytest.approx(6.5)
    assert curves[0].fully_corrected == pytest.approx(accuracy_fully_corrected(model, collected), abs=1e-12)


def test_exactly_k_groups_are_asked_of_each_image(make_model, make_batches, order, concepts, monkeypatch):
    model = make_model()
    collected = collect(model, make_batches(30, 30))
    masks = []
    intervene = model.evidence.intervene
    monkeypatch.setattr(
        type(model.evidence), "intervene", lambda self, e, do: (masks.append(do.mask), intervene(e, do))[1]
    )
    intervention_curve(model, collected, Fixed(order), bootstrap=0)
    assert len(masks) == 4  # first everything, which is the same for all orders; nothing is answered for k = 0
    for k, mask in zip((4, 1, 2, 3), masks, strict=True):
        for i in range(30):
            asked = {concepts.group_of[m] for m in mask[i].nonzero()[:, 0].tolist()}
            assert asked == set(order[i][:k].tolist())
            assert all(bool(mask[i, list(concepts.groups[g].members)].all()) for g in asked)


def test_costs_and_unanswered_questions(make_model, make_batches, order, concepts):
    model, batches = make_model(), make_batches(30, 30, missing=0.3)
    collected = collect(model, batches)
    curve = intervention_curve(model, collected, Fixed(order), bootstrap=0)
    prices = [g.cost for g in concepts.groups]
    truth = collected.concepts
    for k in range(5):
        asked = [order[i][:k].tolist() for i in range(30)]
        assert float(curve.cost[k]) == pytest.approx(np.mean([sum(prices[g] for g in row) for row in asked]))
        silent = [
            sum(bool(torch.isnan(truth[i, list(concepts.groups[g].members)]).all()) for g in row)
            for i, row in enumerate(asked)
        ]
        assert float(curve.unanswered[k]) == pytest.approx(np.mean(silent))
    assert curve.choices["unanswered"] == pytest.approx(float(curve.unanswered[-1]) / 4, abs=1e-6)


def test_nothing_is_learned_where_nobody_knows(make_model, make_batches):
    model = make_model()
    collected = collect(model, make_batches(30, 30, missing=1.0))
    curve = intervention_curve(model, collected, "uncertainty", bootstrap=0)
    assert len(set(curve.accuracy.tolist())) == 1
    assert float(curve.unanswered[-1]) == 4


def test_trials_are_averaged_never_the_best(make_model, make_batches):
    model = make_model()
    collected = collect(model, make_batches(60, 60))
    curve = intervention_curve(model, collected, {"name": "random", "order": "one_for_all"}, trials=7, seed=3)
    single = [
        intervention_curve(model, collected, {"name": "random", "order": "one_for_all"}, trials=t, seed=3, bootstrap=0)
        for t in (1, 7)
    ]
    assert torch.equal(curve.per_trial, single[1].per_trial)
    assert torch.equal(curve.per_trial[:1], single[0].per_trial)
    assert curve.per_trial.shape == (7, 5)
    np.testing.assert_allclose(curve.accuracy, curve.per_trial.numpy().mean(0), atol=1e-12)
    np.testing.assert_allclose(curve.sd, curve.per_trial.numpy().std(0, ddof=1), atol=1e-12)
    assert curve.sd[2] > 0
    assert curve.sd[0] == curve.sd[4] == 0
    assert torch.isnan(single[0].sd).all()
    assert intervention_curve(model, collected, "uncertainty", trials=7, bootstrap=0).trials == 1
    low, high = curve.bootstrap.of_mean(curve.right[:, 2])
    assert (float(curve.low[2]), float(curve.high[2])) == pytest.approx((low, high))
    assert (curve.low <= curve.accuracy).all()
    assert (curve.accuracy <= curve.high).all()


def test_area_and_table(make_model, make_batches, order):
    model = make_model()
    collected = collect(model, make_batches(30, 30))
    curve = intervention_curve(model, collected, Fixed(order))
    a = curve.accuracy.tolist()
    assert curve.area == pytest.approx(sum((a[k] + a[k + 1]) / 2 for k in range(4)) / 4)
    assert curve.gain == pytest.approx(a[4] - a[0])
    low, high = curve.area_interval
    assert low <= curve.area <= high
    low, high = curve.gain_interval
    assert low <= curve.gain <= high
    rows = curve.table()
    assert [row["budget"] for row in rows] == [0, 1, 2, 3, 4]
    assert list(rows[0]) == ["policy", "budget", "cost", "accuracy", "low", "high", "sd", "trials"]
    some = intervention_curve(model, collected, Fixed(order), budgets=[4, 0, 1], bootstrap=0)
    assert some.budgets == [0, 1, 4]
    assert some.area == pytest.approx(((a[0] + a[1]) / 2 + 3 * (a[1] + a[4]) / 2) / 4)
    assert math.isnan(intervention_curve(model, collected, Fixed(order), budgets=[0, 1], bootstrap=0).fully_corrected)


def test_half_an_answer_about_a_categorical_group_is_none(concepts):
    nan = float("nan")
    truth = torch.tensor(
        [
            [nan, 1.0, 0.0, 1.0, 1.0, 0.0, nan, 1.0],
            [0.0, 1.0, 0.0, nan, nan, 0.0, nan, nan],
        ]
    )
    answers, known = Corrector(truth).answers(UnitTable.of_concepts(concepts))
    assert known.tolist() == [[False, True, True, True], [True, False, False, False]]
    expected = torch.tensor(
        [
            [nan, nan, nan, 1.0, 1.0, 0.0, nan, 1.0],
            [0.0, 1.0, 0.0, nan, nan, nan, nan, nan],
        ]
    )
    torch.testing.assert_close(answers, expected, equal_nan=True)


def test_multitask_curves_are_flat(make_model, make_batches):
    model = make_model({"name": "concepts", "bottleneck": False})
    collected = collect(model, make_batches(30, 30))
    curve = intervention_curve(model, collected, "random", trials=2, bootstrap=0)
    assert curve.gain == 0
    assert len(set(curve.accuracy.tolist())) == 1


def test_another_person_corrects(make_model, make_batches, make_truth):
    model = make_model()
    collected = collect(model, make_batches(30, 30))
    second = make_truth(30, 9, 0.3)
    curve = intervention_curve(model, collected, "uncertainty", corrector=annotator(second, collected), bootstrap=0)
    swapped = collected[:]
    swapped.concepts = second
    assert torch.equal(curve.right, intervention_curve(model, swapped, "uncertainty", bootstrap=0).right)
    assert curve.choices["truth"] == "second annotator"
    assert curve.choices["level"] == "per image"
    with pytest.raises(UserError, match="answers of shape"):
        annotator(second[:4], collected)
    with pytest.raises(UserError, match="outside"):
        annotator(second + 1, collected)


def test_class_level_truth_is_said(make_model, make_batches, concepts):
    from vitrarium.data.concepts import ConceptSet

    model = make_model(with_concepts=ConceptSet(concepts.groups, per_class=True))
    collected = collect(model, make_batches(10, 10))
    assert intervention_curve(model, collected, "random", trials=1, bootstrap=0).choices["level"] == "per class"


def test_refusals(make_model, make_batches, order):
    model = make_model()
    collected = collect(model, make_batches(30, 30))
    with pytest.raises(UserError, match="cannot ask 5 of 4 groups"):
        intervention_curve(model, collected, "random", budgets=[0, 5])
    with pytest.raises(UserError, match="empty list"):
        intervention_curve(model, collected, "random", budgets=[])
    with pytest.raises(UserError, match="trials=0"):
        intervention_curve(model, collected, "random", trials=0)
    with pytest.raises(UserError, match="answers of shape"):
        intervention_curve(model, collected, "random", corrector=Corrector(torch.zeros(30, 3)))
    with pytest.raises(ValueError, match="rank all 4 groups"):
        intervention_curve(model, collected, Twice(order))
    black_box = make_model("features")
    with pytest.raises(UserError, match="channel units have no concept as truth"):
        intervention_curve(black_box, collect(black_box, make_batches(8, 8)), "random")
    bare = collect(model, make_batches(8, 8, with_concepts=False))
    with pytest.raises(UserError, match="this data set has none"):
        intervention_curve(model, bare, "random")


def test_many_groups_get_evenly_spaced_budgets(make_batches):
    from vitrarium.eval.interventions.curve import _budgets

    assert _budgets(None, 11) == list(range(12))
    assert _budgets(None, 40) == list(range(41))
    many = _budgets(None, 312)
    assert len(many) == 41
    assert (many[0], many[-1]) == (0, 312)
    assert max(np.diff(many)) - min(np.diff(many)) <= 1


def test_picture(make_model, make_batches, tmp_path):
    model = make_model()
    collected = collect(model, make_batches(30, 30))
    curves = [intervention_curve(model, collected, p, trials=3, bootstrap=100) for p in ("random", "uncertainty")]
    path = plot_curves({"all": curves, "grey": curves[:1]}, tmp_path / "new" / "curves.png", "cbm on flowers")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]
    plot_curves(curves, tmp_path / "one.png")
    with pytest.raises(UserError, match="no intervention curve"):
        plot_curves({}, tmp_path / "none.png")
