"""Fidelity, completeness and stability of relevances, re-derived, and where they are filed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import collect
from vitrarium.eval.evaluate import evaluate
from vitrarium.eval.metrics import METRICS
from vitrarium.eval.metrics.self_explaining import probe
from vitrarium.models import build

IDENTITY = {"run": "r", "preset": "senn", "family": "self-explaining", "data": "toy", "seed": 0}
LEARNT = {"name": "self_learnt_concepts", "count": 5, "width": 4}
OURS = {"fidelity", "completeness", "relevance_stability"}
IMAGES = 40


@pytest.fixture
def measure(make_batches):
    def run(model, split="test", bootstrap=20):
        asked = []

        def loader_for(name, degradation):
            asked.append(name)
            batches = make_batches(IMAGES, 16, seed={"train": 1, "val": 2, "test": 3}[name])
            return [labelled(model, batch) for batch in batches]

        evaluation = evaluate(model, loader_for, identity=IDENTITY, split=split, trials=1, bootstrap=bootstrap)
        return evaluation, asked, loader_for

    return run


@torch.no_grad()
def labelled(model, batch):
    """Labels that can be known of most images: how bright they are, or what the head says; one in five is changed."""
    known = torch.bucketize(batch.image.mean((1, 2, 3)), torch.tensor([0.17, 0.33]))
    known = model(batch.image).evidence.context.get("head", torch.eye(3)[known]).argmax(1)
    return replace(batch, label=torch.where(batch.index % 5 == 0, (known + 1) % 3, known))


def learnt(readout="linear", **options):
    """A model of learnt concepts that is sharp enough to name more than one class."""
    spec = {"backbone": {"name": "convnet", "widths": (4, 6)}, "evidence": {**LEARNT, **options}, "readout": readout}
    model = build(spec, ("a", "b", "c"), seed=0)
    with torch.no_grad():
        for parameter in (*model.evidence.parameters(), *model.readout.parameters()):
            parameter.mul_(8.0)
    return model.eval()


def senn(hidden=6, **options):
    """The same with relevances that depend on the image."""
    return learnt({"name": "input_dependent", "hidden": hidden}, **options)


def names_of(evaluation):
    return {r.metric for r in evaluation.records} & OURS


# Where they are filed.


def test_each_is_filed_where_the_model_has_what_it_takes(measure):
    linear = learnt(head=True)
    assert names_of(measure(linear)[0]) == {"fidelity", "completeness"}
    assert names_of(measure(senn())[0]) == {"completeness", "relevance_stability"}
    assert names_of(measure(senn(head=True))[0]) == OURS


@pytest.mark.parametrize("evidence", ["concepts", "features"])
def test_other_models_cost_nothing(evidence, measure, make_model):
    evaluation, asked, _ = measure(make_model(evidence))
    assert names_of(evaluation) == set()
    assert asked == ["test"]


def test_the_test_split_is_not_fitted_on_and_train_is_not_judged(measure):
    model = learnt(head=True)
    assert measure(model)[1] == ["test", "train"]
    evaluation, _, _ = measure(model, split="train")
    assert names_of(evaluation) == {"fidelity"}
    assert any("completeness" in note for note in evaluation.notes)


# Fidelity.


def test_fidelity_is_the_share_of_agreement(measure):
    model = learnt(head=True)
    evaluation, _, loader_for = measure(model)
    kept = collect(model, loader_for("test", None))
    head = kept.evidence.context["head"]
    agreed = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(kept.logits, head, strict=True))
    record = next(r for r in evaluation.records if r.metric == "fidelity")
    assert record.value == pytest.approx(agreed / IMAGES)
    assert record.low <= record.value <= record.high
    assert record.category == "faithfulness"
    assert record.higher_is_better


def test_fidelity_streams_and_needs_a_head(make_batches):
    with_head, without = (learnt(head=head) for head in (True, False))
    metric, batch = METRICS.build("fidelity", classes=3), next(iter(make_batches(8, 8)))
    assert metric.update_output(with_head(batch.image), batch)
    assert not metric.update_output(without(batch.image), batch)
    assert 0 <= float(metric.compute()) <= 1


# Completeness.


def completeness_by_hand(units, reference, chance, label):
    right = [sum(int(a) == int(b) for a, b in zip(said, label, strict=True)) for said in (units, reference, chance)]
    return (right[0] - right[2]) / (right[1] - right[2])


def test_completeness_is_gain_over_gain():
    metric = METRICS.build("completeness", classes=3)
    label = torch.tensor([0, 1, 2, 2, 1, 0, 2, 0])
    units, reference = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 1, 0, 2, 1])
    chance = torch.full_like(label, 2)
    metric.update(torch.stack([units, reference, chance], 1), label)
    assert float(metric.compute()) == pytest.approx(completeness_by_hand(units, reference, chance, label))
    useless = METRICS.build("completeness", classes=3)
    useless.update(torch.stack([units, chance, chance], 1), label)
    assert math.isnan(useless.compute())


@pytest.mark.parametrize("head", [True, False])
def test_completeness_compares_a_probe_on_the_units_with_the_reference(head, measure):
    model = learnt(head=head)
    evaluation, _, loader_for = measure(model)
    train, test = (collect(model, loader_for(split, None)) for split in ("train", "test"))

    def probed(of):
        return probe(of(train), train.labels, of(test))

    reference = test.evidence.context["head"].argmax(1) if head else probed(lambda c: c.evidence.context["features"])
    units = probed(lambda c: c.evidence.activations)
    chance = train.labels.mode().values.expand(IMAGES)
    found = [r for r in evaluation.records if r.metric == "completeness"]
    assert found[0].value == pytest.approx(completeness_by_hand(units, reference, chance, test.labels), rel=1e-5)
    assert found[0].choices["fitted_on"] == "train"
    assert ("head" if head else "probe") in found[0].choices["reference"]


def test_a_reference_no_better_than_chance_leaves_a_note(measure):
    model = learnt(head=True)
    with torch.no_grad():
        model.evidence.head.weight.zero_()
    evaluation, _, _ = measure(model)
    assert names_of(evaluation) == {"fidelity"}
    assert any("no better than naming the most frequent class" in note for note in evaluation.notes)


def test_the_probe_separates_what_a_line_separates():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 90))
    values = torch.nn.functional.one_hot(labels, 3).float() * 5 + torch.from_numpy(rng.normal(size=(90, 3))).float()
    values = torch.cat([values * torch.tensor([1e-3, 1.0, 1e3]), torch.ones(90, 1)], 1)
    assert float((probe(values[:60], labels[:60], values[60:]) == labels[60:]).float().mean()) > 0.9
    constant = torch.ones(60, 2)
    assert probe(constant, labels[:60], constant[:5]).tolist() == [int(labels[:60].mode().values)] * 5
    assert probe(values[:60], torch.ones(60, dtype=torch.int64), values[60:]).unique().tolist() == [1]


# Stability of relevances.


def ratio_by_hand(model, image, other, label):
    a, b = (model(x[None]).evidence for x in (image, other))
    theta = [model.readout.relevances(e)[0, label] for e in (a, b)]
    return float((theta[0] - theta[1]).norm() / (a.activations - b.activations).norm())


def test_stability_by_samples_is_the_largest_ratio_of_the_draws():
    model = senn()
    image, index = torch.rand(3, 3, 8, 8), torch.tensor([5, 0, 9])
    metric = METRICS.build({"name": "relevance_stability", "search": "samples", "steps": 4, "eps": 0.1})
    found = metric.each(model, image, index)
    with torch.no_grad():
        label = model(image).logits.argmax(1)
        for row in range(3):
            rng = np.random.default_rng([0, int(index[row])])
            ratios = []
            for _ in range(4):
                noise = torch.from_numpy(rng.uniform(-0.1, 0.1, (3, 8, 8))).float()
                ratios.append(ratio_by_hand(model, image[row], (image[row] + noise).clamp(0, 1), int(label[row])))
            assert float(found[row]) == pytest.approx(max(ratios), rel=1e-3)
    one = metric.each(model, image[1:2], index[1:2])
    assert float(one[0]) == pytest.approx(float(found[1]), rel=1e-3), "the same however images are put together"


def test_ascent_finds_more_and_repeats_itself():
    model = senn()
    image, index = torch.rand(6, 3, 8, 8), torch.arange(6)
    ascent = METRICS.build({"name": "relevance_stability", "steps": 10})
    samples = METRICS.build({"name": "relevance_stability", "steps": 10, "search": "samples"})
    found = ascent.each(model, image, index)
    assert float(found.mean()) > float(samples.each(model, image, index).mean())
    assert torch.equal(found, ascent.each(model, image, index))
    assert not any(p.grad is not None for p in model.parameters())


def test_constant_relevances_are_perfectly_stable():
    model = senn(hidden=0)
    with torch.no_grad():
        model.readout.relevance.weight.zero_()
    found = METRICS.build("relevance_stability").each(model, torch.rand(2, 3, 8, 8), torch.arange(2))
    assert found.tolist() == pytest.approx([0, 0], abs=1e-9)


def test_the_images_are_a_seeded_part_of_the_split(measure):
    metric = METRICS.build({"name": "relevance_stability", "images": 4})
    index = torch.arange(20)
    chosen = metric.chosen(index)
    assert len(chosen.unique()) == 4
    assert torch.equal(chosen, metric.chosen(index[torch.randperm(20)]))
    assert not torch.equal(chosen, METRICS.build({"name": "relevance_stability", "images": 4, "seed": 1}).chosen(index))
    record = next(r for r in measure(senn())[0].records if r.metric == "relevance_stability")
    assert record.choices["images"] == IMAGES
    assert {"eps", "search", "steps", "seed"} <= set(record.choices)
    assert record.higher_is_better is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"search": "ascend"}, "ascent"),
        ({"eps": 0.0}, "eps in"),
        ({"eps": 1.5}, "eps in"),
        ({"steps": 0}, "at least one step"),
        ({"images": 0}, "image"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        METRICS.build({"name": "relevance_stability", **options})


def test_a_readout_without_relevances_is_refused():
    model = learnt()
    with pytest.raises(UserError, match="input_dependent"):
        METRICS.build("relevance_stability").each(model, torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
