"""The class rule: exact, linear, and not to be had from one attribute alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitrarium.configs.errors import UserError
from vitrarium.data.sets.flowers import flowers
from vitrarium.data.sets.flowers_rules import ATTRIBUTES, PARTS, concept_set, encode, rule, species

ALL_LOOKS = np.array(list(itertools.product(*(range(len(v)) for v in ATTRIBUTES.values()))))


def described(row: np.ndarray) -> dict[str, str]:
    return {name: values[v] for (name, values), v in zip(ATTRIBUTES.items(), row, strict=True)}


@pytest.mark.parametrize("classes", [2, 3, 5, 8, 12, 13, 16])
def test_the_rule_decides_every_flower_as_its_label_says(classes: int) -> None:
    source = flowers(train=200, val=40, test=60, classes=classes)
    kinds = species(classes)
    for split in source.splits.values():
        np.testing.assert_array_equal(rule(split.truth, classes), split.labels)
        for label, row in zip(split.labels, split.looks, strict=True):
            look = described(row)
            fitting = [c for c, k in enumerate(kinds) if all(look[a] == v for a, v in k.conditions.items())]
            assert fitting == [label]
    assert int(rule(source.splits["test"].truth[0], classes)) == source.splits["test"].labels[0]


def test_no_conceivable_flower_belongs_to_two_species() -> None:
    kinds = species(16)
    met = np.array([[all(described(row)[a] == v for a, v in k.conditions.items()) for k in kinds] for row in ALL_LOOKS])
    assert met.sum(axis=1).max() == 1
    assert met.any(axis=0).all()
    decided = rule(encode(ALL_LOOKS), 16)
    clear = met.any(axis=1)
    np.testing.assert_array_equal(decided[clear], met[clear].argmax(axis=1))


def test_each_class_asks_for_three_values_and_shares_them() -> None:
    for classes in (10, 12, 16):
        kinds = species(classes)
        assert len({k.name for k in kinds}) == classes
        for kind in kinds:
            assert len(kind.conditions) == 3
            others = [k for k in kinds if len(kind.conditions.items() & k.conditions.items()) == 2]
            assert others, f"{kind.name} shares two values with nobody"


@pytest.mark.parametrize("classes", [4, 6, 10, 12, 16])
def test_no_single_attribute_value_tells_the_class(classes: int) -> None:
    split = flowers(train=4000, val=1, test=1, classes=classes).splits["train"]
    for a, values in enumerate(ATTRIBUTES.values()):
        for v in range(len(values)):
            assert len(set(split.labels[split.looks[:, a] == v])) != 1


def test_attributes_that_a_species_leaves_open_vary_evenly() -> None:
    split = flowers(train=6000, val=1, test=1).splits["train"]
    for c, kind in enumerate(species(12)):
        shown = split.looks[split.labels == c]
        for a, (name, values) in enumerate(ATTRIBUTES.items()):
            share = np.bincount(shown[:, a], minlength=len(values)) / len(shown)
            if name in kind.conditions:
                assert share[values.index(kind.conditions[name])] == 1
            else:
                np.testing.assert_allclose(share, 1 / len(values), atol=0.11)


def test_a_linear_readout_of_true_concepts_is_nearly_perfect() -> None:
    from sklearn.linear_model import LogisticRegression

    source = flowers(train=2000, val=1, test=1000)
    train, test = source.splits["train"], source.splits["test"]
    readout = LogisticRegression(max_iter=300).fit(train.truth, train.labels)
    assert readout.score(test.truth, test.labels) >= 0.99


def test_concepts_are_one_hot_by_group_and_named() -> None:
    concepts = concept_set()
    truth = encode(ALL_LOOKS)
    for group, (name, values) in zip(concepts.groups, ATTRIBUTES.items(), strict=True):
        assert group.name == name
        columns = truth[:, list(group.members)]
        if name == "thorns":
            assert not group.categorical
            np.testing.assert_array_equal(columns[:, 0], ALL_LOOKS[:, 5])
        else:
            assert group.values == values
            assert group.categorical
            np.testing.assert_array_equal(columns.sum(axis=1), 1)
    red = concepts.names.index("petal_colour=red")
    np.testing.assert_array_equal(truth[:, red] == 1, ALL_LOOKS[:, 0] == 2)


def test_an_unknown_group_is_nan_and_counts_as_not_met() -> None:
    firethorn = next(c for c, k in enumerate(species(12)) if k.name == "firethorn")
    row = np.array([[2, 0, 0, 0, 0, 1, 0, 0]])
    assert rule(encode(row))[0] == firethorn
    row[0, 5] = -1
    assert np.isnan(encode(row)).sum() == 1
    assert np.isnan(encode(np.full((1, 8), -1))).all()
    assert rule(encode(row))[0] != -1


def test_the_rule_reads_probabilities() -> None:
    row = encode(np.array([[2, 0, 0, 0, 0, 1, 0, 0]]))
    thorns = concept_set().names.index("thorns")
    names = [k.name for k in species(12)]
    for sure, name in ((0.9, "firethorn"), (0.1, "firedot")):
        row[0, thorns] = sure
        assert names[rule(row)[0]] == name


def test_the_parts_to_look_at_follow_from_the_conditions() -> None:
    parts = {k.name: k.parts for k in species(16)}
    assert parts["moonstar"] == ("petals", "disc")
    assert parts["suncup"] == ("petals", "leaves")
    assert parts["firedot"] == ("petals", "disc", "stem", "thorns")
    assert parts["duskheart"] == ("petals", "leaves")
    assert all(set(p) < set(PARTS) for p in parts.values())


def test_too_few_and_too_many_species_are_refused() -> None:
    for classes in (1, 17):
        with pytest.raises(UserError, match=str(classes)):
            species(classes)
