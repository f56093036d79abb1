"""Findings on classes and concepts, each with data that has it and data that does not."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from vitrarium.data.check.classes import class_findings, imbalance
from vitrarium.data.check.concepts import concept_findings, concept_table, label_copies, repeated
from vitrarium.data.check.rules import class_rows, lookup, rule_findings
from vitrarium.data.concepts import ConceptSet

NAN = np.nan


def kinds(found):
    return {finding.kind for finding in found}


def rows(**classes):
    return [{"name": name, "train": c[0], "val": c[1], "test": c[2]} for name, c in classes.items()]


@pytest.mark.parametrize(
    ("table", "kind", "severity", "items"),
    [
        (rows(a=(9, 1, 1), b=(0, 1, 1)), "empty_class", "error", ("b",)),
        (rows(a=(9, 1, 1), b=(4, 1, 1)), "rare_class", "warning", ("b (4)",)),
        (rows(a=(9, 1, 1), b=(9, 0, 1)), "no_val_images", "warning", ("b",)),
        (rows(a=(9, 1, 0), b=(9, 1, 1)), "no_test_images", "warning", ("a",)),
        (rows(a=(90, 1, 1), b=(9, 1, 1)), "imbalance", "note", ()),
        (rows(a=(9, 1, 1), Masks=(9, 1, 1)), "odd_class_name", "warning", ("Masks",)),
    ],
)
def test_classes(table, kind, severity, items):
    [found] = [f for f in class_findings(table) if f.kind == kind]
    assert (found.severity, found.items) == (severity, items)


def test_even_classes_are_clean():
    assert class_findings(rows(a=(5, 1, 1), b=(49, 1, 1))) == []
    assert imbalance(rows(a=(10, 1, 1), b=(25, 1, 1))) == 2.5
    assert imbalance(rows(a=(10, 1, 1), b=(0, 1, 1))) is None


def clean(count=60, classes=3, seed=0):
    """Concepts that vary in every class and repeat nothing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (count, 4)).astype(np.float32)
    colour = rng.integers(0, 3, count)
    truth = np.concatenate([truth, np.eye(3, dtype=np.float32)[colour]], axis=1)
    concepts = ConceptSet.categorical({"a": (), "b": (), "c": (), "d": (), "colour": ("red", "green", "blue")})
    return concepts, truth, np.arange(count) % classes


def of_concepts(concepts, truth, labels, classes=3):
    return {finding.kind: finding for finding in concept_findings(concepts, truth, labels, classes)}


def test_clean_concepts_have_no_findings():
    concepts, truth, labels = clean()
    assert of_concepts(concepts, truth, labels) == {}
    assert kinds(rule_findings(concepts, truth, labels, ("x", "y", "z"), {"accuracy": 1.0})) == set()


def test_table_of_concepts():
    concepts = ConceptSet.categorical({"torn": (), "colour": ("red", "green")})
    truth = np.array([[0.25, 1, 0], [NAN, 0, 1], [1, NAN, NAN], [0, 0, 1]], np.float32)
    torn, red, green = concept_table(concepts, truth)
    assert torn == {
        "name": "torn", "group": "torn", "value": "yes", "categorical": False,
        "prevalence": pytest.approx(1.25 / 3), "unknown": 0.25, "soft": pytest.approx(1 / 3),
    }  # fmt: skip
    assert (red["group"], red["value"], red["categorical"]) == ("colour", "red", True)
    assert (red["prevalence"], green["prevalence"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    nobody = concept_table(ConceptSet.binary(["a"]), np.full((3, 1), NAN, np.float32))
    assert (nobody[0]["prevalence"], nobody[0]["unknown"]) == (None, 1.0)


@pytest.mark.parametrize("column", [[1.0] * 60, [NAN] * 30 + [0.0] * 30, [NAN] * 60])
def test_constant_concepts(column):
    concepts, truth, labels = clean()
    truth[:, 1] = column
    assert of_concepts(concepts, truth, labels)["constant_concept"].items == ("b",)


def test_mostly_unknown():
    concepts, truth, labels = clean()
    truth[:31, 2] = NAN
    assert of_concepts(concepts, truth, labels)["mostly_unknown"].items == ("c (52%)",)
    truth[:, 2] = clean()[1][:, 2]
    truth[:30, 2] = NAN
    assert "mostly_unknown" not in of_concepts(concepts, truth, labels)


def test_copies_of_the_label():
    concepts, truth, labels = clean()
    truth[:, 3] = labels == 1
    assert of_concepts(concepts, truth, labels)["label_copy"].items == ("d",)
    assert of_concepts(concepts, truth, labels)["label_copy"].severity == "warning"
    assert of_concepts(replace(concepts, per_class=True), truth, labels)["label_copy"].severity == "note"
    truth[1, 3] = NAN
    assert of_concepts(concepts, truth, labels)["label_copy"].items == ("d",)
    one_missed, one_more = truth.copy(), truth.copy()
    one_missed[4, 3], one_more[0, 3] = 0, 1
    for varied in (one_missed, one_more):
        assert "label_copy" not in of_concepts(concepts, varied, labels)
    two_classes = (labels != 1).astype(np.float32)[:, None]
    assert not label_copies(two_classes, labels, 3).any()


def test_equal_and_opposite_columns():
    concepts, truth, labels = clean()
    truth[5, 0] = NAN
    truth[6, 0] = 0.33
    truth[:, 1] = truth[:, 0]
    truth[:, 2] = 1 - truth[:, 0]
    found = of_concepts(concepts, truth, labels)
    assert found["duplicate_concept"].items == ("a = b",)
    assert found["complement_concept"].items == ("a = not c",)
    truth[5, 1] = 1
    assert repeated(concepts, truth)[0] == []


def test_two_values_of_one_group_are_no_complement():
    values = np.arange(20) % 2
    truth = np.eye(2, dtype=np.float32)[values]
    assert repeated(ConceptSet.categorical({"size": ("big", "small")}), truth) == ([], [])
    assert repeated(ConceptSet.binary(["big", "small"]), truth) == ([], [(0, 1)])


@pytest.mark.parametrize("seed", range(4))
def test_lookup_agrees_with_counting(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (200, 5)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.02] = NAN
    truth[rng.random(truth.shape) < 0.1] *= 0.75
    labels = rng.integers(0, 4, 200)
    seen = defaultdict(Counter)
    for row, label in zip(truth, labels, strict=True):
        if not any(value != value for value in row):
            seen[tuple(value > 0.5 for value in row)][int(label)] += 1
    count = sum(sum(c.values()) for c in seen.values())
    best = sum(max(c.values()) for c in seen.values())
    assert lookup(truth, labels) == {"accuracy": pytest.approx(best / count), "rows": count, "distinct": len(seen)}


def test_lookup_without_a_complete_row():
    assert lookup(np.full((4, 2), NAN, np.float32), np.zeros(4, np.int64)) == {
        "accuracy": None, "rows": 0, "distinct": 0,
    }  # fmt: skip


def of_rules(concepts, truth, labels, names=("x", "y", "z")):
    return {f.kind: f for f in rule_findings(concepts, truth, labels, names, lookup(truth, labels))}


def test_a_group_that_decides_the_class():
    concepts, truth, labels = clean(300)
    truth[:, 4:] = np.eye(3, dtype=np.float32)[labels]
    assert of_rules(concepts, truth, labels)["deciding_group"].items == ("colour (100.0%)",)
    truth[:6, 4:] = np.roll(truth[:6, 4:], 1, axis=1)
    assert "deciding_group" not in of_rules(concepts, truth, labels)


def test_a_group_that_is_different_for_every_image_decides_nothing():
    bits = ((np.arange(64)[:, None] >> np.arange(6)) & 1).astype(np.float32)
    group = ConceptSet.categorical({"code": tuple("abcdef")}).groups[0]
    concepts = ConceptSet((type(group)("code", group.members, group.values, False),))
    assert "deciding_group" not in of_rules(concepts, bits, np.arange(64) % 3)


def test_ceiling():
    concepts, truth, labels = clean(300)
    assert "concepts alone tell the class of" in of_rules(concepts, truth, labels)["ceiling"].message
    truth[:, 4:] = np.eye(3, dtype=np.float32)[labels]
    assert "ceiling" not in of_rules(concepts, truth, labels)


def test_class_level_truth():
    concepts, _, labels = clean()
    table = np.array([[0, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 0]], np.float32)
    truth = table[labels]
    truth[::7, 2] = NAN
    assert np.array_equal(class_rows(truth, labels, 3), table)
    found = of_rules(concepts, truth, labels)
    assert found["identical_classes"].items == ("y = z",)
    assert "class_level" in found
    told = ConceptSet(concepts.groups, per_class=True)
    assert "class_level" not in of_rules(told, truth, labels)
    assert "varying_truth" not in of_rules(told, truth, labels)
    truth[labels == 2, 0] = 0
    assert "identical_classes" not in of_rules(concepts, truth, labels)
    truth[0, 0] = 1
    assert class_rows(truth, labels, 3) is None
    assert "varying_truth" in of_rules(told, truth, labels)
    assert "class_level" not in of_rules(concepts, truth, labels)
