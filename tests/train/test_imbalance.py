"""Rare classes, rare concepts and errors that differ in cost: the losses are the formulas, in float64."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.source import DataSource, Split
from vitrarium.models import Evidence, Output
from vitrarium.train.terms.base import TERMS, Step, Term, build_terms

SEEN: list[tuple[int, ...]] = []

if "test_labels_seen" not in TERMS:

    @TERMS.register("test_labels_seen")
    class LabelsSeen(Term):
        def forward(self, step):
            SEEN.append(tuple(step.batch.label.tolist()))
            return step.output.logits.sum() * 0.0


NAMES = ("common", "usual", "rare")
LABELS = [0] * 8 + [1] * 4 + [2] * 2


class Rows(Split):
    def __init__(self, labels, truth):
        self.labels, self.truth = np.asarray(labels), truth

    def sample(self, index):
        raise AssertionError("terms count without decoding images")


def source(concepts=None, truth=None, labels=LABELS):
    if concepts is None:
        concepts, truth = ConceptSet.binary(["x"]), np.zeros((len(labels), 1))
    split = Rows(labels, np.asarray(truth, np.float32))
    return DataSource(
        "rows", dict.fromkeys(("train", "val", "test"), split), NAMES, concepts, frozenset({"concepts"}), 8, "x"
    )


def term(name, options, data):
    return build_terms({name: 1.0}, {name: options}, data)[name].double()


def of_class(options, logits, label):
    batch = Batch(torch.zeros(len(label), 3, 1, 1), label)
    return term("cross_entropy", options, source())(Step(None, batch, Output(logits, Evidence(logits, logits))))


def of_concepts(options, data, scores, truth, weight=None):
    batch = Batch(torch.zeros(len(scores), 3, 1, 1), torch.zeros(len(scores), dtype=torch.int64), truth, weight)
    step = Step(None, batch, Output(torch.zeros(len(scores), 2), Evidence(scores, scores, scores=scores)))
    return term("concepts", options, data)(step)


# Classes.


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [1, 1, 1]),
        ({"class_weight": "balanced"}, [14 / 24, 14 / 12, 14 / 6]),
        ({"class_weight": "effective", "beta": 0.9}, [0.1 / (1 - 0.9**n) for n in (8, 4, 2)]),
        ({"class_weight": "effective"}, [0.001 / (1 - 0.999**n) for n in (8, 4, 2)]),
        ({"class_weight": "effective", "beta": 0.0}, [1, 1, 1]),
        ({"class_weight": {"rare": 5, "common": 0}}, [0, 1, 5]),
    ],
    ids=str,
)
def test_class_weights(options, weights):
    logits, label = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 2, 1])
    expected = functional.cross_entropy(logits, label, torch.tensor(weights, dtype=torch.float64))
    assert float(of_class(options, logits, label)) == pytest.approx(float(expected), rel=1e-6)


def test_effective_weights_have_mean_one_and_lie_between_none_and_balanced():
    weight = {beta: term("cross_entropy", {"class_weight": "effective", "beta": beta}, source()).weight
              for beta in (0.0, 0.5, 0.9, 0.9999999)}  # fmt: skip
    assert all(float(w.mean()) == pytest.approx(1, abs=1e-6) for w in weight.values())
    ratios = [float(w[2] / w[0]) for w in weight.values()]
    assert ratios == sorted(ratios)
    assert (ratios[0], ratios[-1]) == (1, pytest.approx(8 / 2, rel=1e-5))


def test_a_class_without_images_counts_as_one_with_a_single_image():
    data = source(labels=[0] * 8 + [1] * 4)
    assert term("cross_entropy", {"class_weight": "balanced"}, data).weight.tolist() == pytest.approx([0.5, 1, 4])
    assert torch.isfinite(term("cross_entropy", {"class_weight": "effective"}, data).weight).all()


@pytest.mark.parametrize("gamma", [0.5, 1, 2])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_focal_loss_against_loops(gamma, class_weight):
    logits, label = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 2])
    weights = [14 / 24, 14 / 12, 14 / 6] if class_weight == "balanced" else [1.0, 1.0, 1.0]
    total = 0.0
    for row, y in zip(logits.tolist(), label.tolist(), strict=True):
        p = math.exp(row[y]) / sum(map(math.exp, row))
        total += weights[y] * (1 - p) ** gamma * -math.log(p)
    value = of_class({"focal": gamma, "class_weight": class_weight}, logits, label)
    assert float(value) == pytest.approx(total / sum(weights[y] for y in label.tolist()), rel=1e-6)


def test_the_focal_loss_has_a_gradient_where_the_answer_is_certain():
    logits = torch.tensor([[900.0, 0, 0], [0, 900, 0]], dtype=torch.float64, requires_grad=True)
    of_class({"focal": 0.5}, logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1, :2] != 0).all()


# Concepts.

# "x" is present on 2 of 16 known images, "y" on 12 of 16: ratios 7 and 1/3.
BINARY = ConceptSet.binary(["x", "y"])
BINARY_TRUTH = np.full((18, 2), np.nan)
BINARY_TRUTH[:16] = [[i < 2, i < 12] for i in range(16)]
# "red" 8, "blue" 4, "white" 4 of 16 known images, "black" never.
COLOUR = ConceptSet.categorical({"colour": ("red", "blue", "white", "black")})
COLOUR_TRUTH = np.zeros((17, 4))
COLOUR_TRUTH[np.arange(16), [0] * 8 + [1] * 4 + [2] * 4] = 1
COLOUR_TRUTH[16] = np.nan


def test_both_released_meanings_are_the_formulas_of_torch():
    scores, truth = torch.randn(6, 2, dtype=torch.float64), torch.randint(0, 2, (6, 2)).double()
    ratio = torch.tensor([7.0, 1 / 3], dtype=torch.float64)
    data = source(BINARY, BINARY_TRUTH)
    found = {how: float(of_concepts({"imbalance": how}, data, scores, truth)) for how in ("weight", "pos_weight")}
    both = functional.binary_cross_entropy_with_logits(scores, truth, weight=ratio)
    positive = functional.binary_cross_entropy_with_logits(scores, truth, pos_weight=ratio)
    assert found == pytest.approx({"weight": float(both), "pos_weight": float(positive)}, rel=1e-7)


def test_the_two_meanings_are_different_losses():
    """Where nothing but absent rare concepts are seen, one counts them seven times and the other once."""
    data, scores = source(BINARY, BINARY_TRUTH), torch.full((4, 2), 0.3, dtype=torch.float64)
    truth = torch.tensor([[0.0, float("nan")]] * 4, dtype=torch.float64)
    plain, positive, both = (
        float(of_concepts({"imbalance": how}, data, scores, truth)) for how in ("none", "pos_weight", "weight")
    )
    assert positive == plain
    assert both == pytest.approx(7 * plain, rel=1e-7)


@pytest.mark.parametrize(
    ("imbalance", "factors"),
    [
        # N / (V n_v) over the three values that occur.
        ("pos_weight", [16 / (3 * 8), 16 / (3 * 4), 16 / (3 * 4), 1]),
        # mean of (1, 3, 3) / 2, for the whole question.
        ("weight", [(1 + 3 + 3) / 3 / 2] * 4),
        ("none", [1, 1, 1, 1]),
    ],
)
def test_categorical_groups_have_both_meanings(imbalance, factors):
    scores, value = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 0])
    truth = functional.one_hot(value, 4).double()
    weight = torch.tensor(factors, dtype=torch.float64)
    expected = functional.cross_entropy(scores, value, weight, reduction="none").mean()
    found = of_concepts({"imbalance": imbalance}, source(COLOUR, COLOUR_TRUTH), scores, truth)
    assert float(found) == pytest.approx(float(expected), rel=1e-7)


def test_pos_weight_of_two_values_agrees_with_that_of_yes_and_no():
    """The same question asked as yes/no or as two values: the two answers count in the same proportion."""
    asked = ConceptSet((ConceptGroup("two", (0, 1), ("yes", "no"), True), ConceptGroup("one", (2,), ("yes",), False)))
    yes = BINARY_TRUTH[:16, :1]
    loss = term("concepts", {"imbalance": "pos_weight"}, source(asked, np.hstack([yes, 1 - yes, yes])))
    two = loss.present[0] / loss.present[1]
    assert float(two) == pytest.approx(float(loss.present[2] / loss.absent[2]), rel=1e-6) == 7


def test_a_group_that_shows_one_value_only_is_left_as_it_is():
    truth = np.zeros((5, 4))
    truth[:, 1] = 1
    for imbalance in ("weight", "pos_weight"):
        assert term("concepts", {"imbalance": imbalance}, source(COLOUR, truth)).present.tolist() == [1, 1, 1, 1]


MIXED = ConceptSet(
    (
        ConceptGroup("colour", (0, 1, 2), ("red", "blue", "4"), True),
        ConceptGroup("marks", (3, 4), ("dots", "stripes"), False),
        ConceptGroup("thorns", (5,), ("yes",), False),
    )
)


def mixed_source():
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 6))
    truth[np.arange(20), rng.integers(0, 3, 20)] = 1
    truth[:, 3:] = rng.integers(0, 2, (20, 3))
    return source(MIXED, truth)


def entries_of(scores, truth, present, absent):
    """(B, 4) losses: colour, dots, stripes, thorns."""
    rows = []
    for s, t in zip(scores.tolist(), truth.tolist(), strict=True):
        log_sum = math.log(sum(map(math.exp, s[:3])))
        row = [sum(-present[m] * t[m] * (s[m] - log_sum) for m in range(3))]
        for m in (3, 4, 5):
            p = 1 / (1 + math.exp(-s[m]))
            row.append(-present[m] * t[m] * math.log(p) - absent[m] * (1 - t[m]) * math.log(1 - p))
        rows.append(row)
    return np.array(rows)


def mixed_batch():
    scores = torch.randn(7, 6, dtype=torch.float64)
    truth = torch.zeros(7, 6, dtype=torch.float64)
    truth[torch.arange(7), torch.tensor([0, 1, 2, 2, 1, 0, 2])] = 1
    truth[:, 3:] = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0.25], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
    return scores, truth


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_importance_is_the_weight_of_a_weighted_mean(reduction):
    """A group's name stands for all its concepts, and a concept's own name goes before it."""
    scores, truth = mixed_batch()
    weights = {"marks=stripes": 5, "marks": 3, "colour": 2}
    found = of_concepts({"weights": weights, "reduction": reduction}, mixed_source(), scores, truth)
    counts = np.array([2.0, 3, 5, 1])
    entries = entries_of(scores, truth, [1] * 6, [1] * 6)
    total = (entries * counts).sum()
    assert float(found) == pytest.approx(total / (7 * counts.sum() if reduction == "mean" else 7), rel=1e-6)


def test_importance_multiplies_the_weights_of_the_annotation():
    scores, truth = mixed_batch()
    sure = torch.rand(7, 6, dtype=torch.float64)
    found = of_concepts({"weights": {"colour": 0, "thorns": 4}}, mixed_source(), scores, truth, sure)
    counts = np.stack([np.zeros(7), sure[:, 3], sure[:, 4], 4 * sure[:, 5]], 1)
    total = (entries_of(scores, truth, [1] * 6, [1] * 6) * counts).sum()
    assert float(found) == pytest.approx(total / counts.sum(), rel=1e-6)


COSTS = {
    "thorns": {"missed": 5, "false_alarm": 0.5},
    "marks": {"missed": 2},
    "marks=dots": {"missed": 1, "false_alarm": 3},
    "colour": {"red": 4, 4: 7},
}


def test_costs_multiply_the_side_of_the_error():
    scores, truth = mixed_batch()
    found = of_concepts({"costs": COSTS}, mixed_source(), scores, truth)
    entries = entries_of(scores, truth, [4, 1, 7, 1, 2, 5], [1, 1, 1, 3, 1, 0.5])
    assert float(found) == pytest.approx(entries.mean(), rel=1e-6)


def test_costs_and_imbalance_multiply():
    data = source(BINARY, BINARY_TRUTH)
    loss = term("concepts", {"imbalance": "pos_weight", "costs": {"x": {"missed": 3, "false_alarm": 2}}}, data)
    assert loss.present.tolist() == pytest.approx([21, 1 / 3])
    assert loss.absent.tolist() == [2, 1]


def test_a_model_trained_with_costs_says_yes_above_one_half():
    """With share q of yes among images that look alike, the loss is least at p = m q / (m q + f (1 - q)).

    That is above 1/2 exactly where q is above f / (m + f): the threshold of least expected cost.
    """
    missed, false_alarm = 4.0, 1.0
    for q in (0.1, 0.19, 0.21, 0.6):
        best = missed * q / (missed * q + false_alarm * (1 - q))
        score = torch.tensor([[math.log(best / (1 - best))]], dtype=torch.float64, requires_grad=True)
        options = {"costs": {"x": {"missed": missed, "false_alarm": false_alarm}}}
        of_concepts(options, source(), score, torch.tensor([[q]], dtype=torch.float64)).backward()
        assert abs(float(score.grad)) < 1e-12
        assert (best > 0.5) == (q > false_alarm / (missed + false_alarm))


# Refusals.


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("cross_entropy", {"class_weight": "balansed"}, "did you mean 'balanced'"),
        ("cross_entropy", {"class_weight": {"rate": 2}}, "there is no 'rate'; did you mean 'rare'"),
        ("cross_entropy", {"class_weight": {"rare": -1}}, "'rare' is -1; give a number, 0 or more"),
        ("cross_entropy", {"class_weight": {"rare": "much"}}, "'rare' is 'much'"),
        ("cross_entropy", {"class_weight": dict.fromkeys(NAMES, 0)}, "0 for every class"),
        ("cross_entropy", {"class_weight": True}, "class_weight is True"),
        ("cross_entropy", {"class_weight": "effective", "beta": 1.0}, r"beta=1\.0"),
        ("cross_entropy", {"focal": -1}, "focal=-1"),
        ("cross_entropy", {"focal": 2, "smoothing": 0.1}, r"focal=2 with smoothing=0\.1"),
        ("cross_entropy", {"balanced": True}, "no option 'balanced'"),
        ("concepts", {"imbalance": "posweight"}, "did you mean 'pos_weight'"),
        ("concepts", {"weights": {"thorn": 2}}, "there is no 'thorn'; did you mean 'thorns'"),
        ("concepts", {"weights": {"colour=red": 2}}, "there is no 'colour=red'; did you mean 'colour'"),
        ("concepts", {"weights": dict.fromkeys(("colour", "marks", "thorns"), 0)}, "0 for every concept"),
        ("concepts", {"weights": 3}, "weights is 3"),
        ("concepts", {"costs": {"thorns": {"mised": 2}}}, "did you mean 'missed'"),
        ("concepts", {"costs": {"thorns": {"missed": 0}}}, "'missed' is 0; give a number, more than 0"),
        ("concepts", {"costs": {"thorns": 5}}, "costs of 'thorns' is 5"),
        ("concepts", {"costs": {"colour": {"rad": 5}}}, "did you mean 'red'"),
        ("concepts", {"costs": {"colour=red": {"missed": 5}}}, "did you mean 'colour'"),
        ("concepts", {"costs": 5}, "costs is 5"),
    ],
)
def test_refusals(name, options, said):
    with pytest.raises(UserError, match=said):
        term(name, options, mixed_source())


def test_class_names_that_yaml_reads_as_truth_values():
    data = source(labels=LABELS)
    data.class_names = ("no", "yes", "perhaps")
    loss = term("cross_entropy", {"class_weight": {True: 3, False: 2}}, data)
    assert loss.weight.tolist() == [2, 3, 1]


# End to end.

RARE = ("data.classes=4", "data.imbalance=8", "data.train=60")


def test_all_of_it_in_one_run(tiny, tmp_path):
    SEEN.clear()
    settings = [
        "model=cbm", *tiny, *RARE, "train.balance=1",
        "terms.cross_entropy.class_weight=balanced", "terms.concepts.imbalance=weight",
        "terms.concepts.weights={petal_colour: 2}",
        "terms.concepts.costs={thorns: {missed: 5}, petal_count: {4: 3}}",
        "concept_costs={thorns: 2.5}",
        "loss.test_labels_seen=1", "recipe.joint.terms=[cross_entropy, concepts, test_labels_seen]",
    ]  # fmt: skip
    run = vt.fit(*settings, out=tmp_path / "run")
    counts = Counter(label for batch in SEEN for label in batch)
    assert set(counts.values()) == {2 * 60 / 4}
    train = Counter(run.source.splits["train"].labels.tolist())
    assert train[0] > 5 * train[3]
    # Prices are saved with the model, and asked for in curves and card.
    assert run.model.concepts.group("thorns").cost == run.source.concepts.group("thorns").cost == 2.5
    (curve,) = vt.intervene(run, ["random"], trials=2)
    assert float(curve.cost[-1]) == pytest.approx(7 + 2.5)
    assert "price of asking: thorns 2.5, " in (run.folder / "model" / "README.md").read_text()
    for other in ("train.balance=0.5", "concept_costs={thorns: 3}"):
        with pytest.raises(UserError, match=r"another configuration \(" + other.split("=")[0]):
            vt.fit(*settings, other, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.balance=1.5", r"balance=1\.5; give a number from 0"),
        ("train.balance=-1", "give a number from 0"),
        ("concept_costs={thorn: 2}", "concept_costs: there is no 'thorn'; did you mean 'thorns'"),
        ("concept_costs={thorns: 0}", r"'thorns' is 0\.0; give a number, more than 0"),
        ("concept_costs={petal_colour=red: 2}", "did you mean 'petal_colour'"),
    ],
)
def test_refusals_come_before_training(override, said, tiny, tmp_path):
    with pytest.raises(UserError, match=said):
        vt.fit("model=cbm", *tiny, override, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_of_older_versions_are_read(tiny, tmp_path):
    """A configuration that was saved before these keys existed: they are at their defaults."""
    import yaml

    run = vt.fit("model=blackbox", *tiny, out=tmp_path / "run")
    old = yaml.safe_load((run.folder / "config.yaml").read_text())
    del old["train"]["balance"], old["concept_costs"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(old))
    again = vt.fit("model=blackbox", *tiny, out=tmp_path / "run", resume=True)
    assert (again.config["train"]["balance"], again.config["concept_costs"]) == (0.0, {})
    assert len(list(again.data().loader("val"))) > 0
