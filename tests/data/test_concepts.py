"""Concepts by name: groups partition them, and answers in words become vectors or are refused."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptGroup, ConceptSet

FLOWER = ConceptSet.categorical(
    {"petal": ("red", "blue", "white"), "thorns": (), "size": ("big", "small")}, costs={"petal": 3.0}
)


def test_names_and_groups():
    assert FLOWER.names == ("petal=red", "petal=blue", "petal=white", "thorns", "size=big", "size=small")
    assert len(FLOWER) == 6
    assert FLOWER.group_of.tolist() == [0, 0, 0, 1, 2, 2]
    assert FLOWER.costs.tolist() == [3.0, 1.0, 1.0]
    assert [g.categorical for g in FLOWER.groups] == [True, False, True]
    assert FLOWER.group("size").members == (4, 5)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("petal", "blue", {0: 0.0, 1: 1.0, 2: 0.0}),
        ("petal=white", "yes", {0: 0.0, 1: 0.0, 2: 1.0}),
        ("petal=white", True, {0: 0.0, 1: 0.0, 2: 1.0}),
        ("thorns", "yes", {3: 1.0}),
        ("thorns", "No", {3: 0.0}),
        ("thorns", False, {3: 0.0}),
        ("thorns", 0.25, {3: 0.25}),
        ("thorns", "0.25", {3: 0.25}),
    ],
)
def test_answers_in_words(name, value, expected):
    assert FLOWER.answer(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("petals", "red", "unknown concept 'petals'; did you mean 'petal'"),
        ("petal", "blu", "'petal' cannot be 'blu'; did you mean 'blue'"),
        ("petal=red", "no", "leaves open which value of 'petal'"),
        ("petal=red", 0.5, "leaves open"),
        ("thorns", 1.5, "'thorns' cannot be '1.5'; give yes, no or a number from 0 to 1"),
        ("thorns", "perhaps", "'thorns' cannot be 'perhaps'"),
        ("thorns", "nan", "'thorns' cannot be 'nan'"),
    ],
)
def test_answers_that_make_no_sense(name, value, words):
    with pytest.raises(UserError, match=words):
        FLOWER.answer(name, value)


def test_a_group_of_independent_concepts_is_set_one_by_one_or_by_what_is_present():
    group = ConceptGroup("signs", (0, 1, 2), ("spots", "stripes", "a+b"), categorical=False)
    concepts = ConceptSet((group,))
    assert concepts.names == ("signs=spots", "signs=stripes", "signs=a+b")
    assert concepts.answer("signs=spots", "yes") == {0: 1.0}
    assert concepts.answer("signs=stripes", 0.0) == {1: 0.0}
    assert concepts.answer("signs", "spots") == {0: 1.0, 1: 0.0, 2: 0.0}
    assert concepts.answer("signs", "stripes+spots") == concepts.answer("signs", ["spots", "stripes"])
    assert concepts.answer("signs", "stripes+spots") == {0: 1.0, 1: 1.0, 2: 0.0}
    assert concepts.answer("signs", "a+b") == {0: 0.0, 1: 0.0, 2: 1.0}
    assert concepts.answer("signs", "none") == concepts.answer("signs", []) == {0: 0.0, 1: 0.0, 2: 0.0}
    with pytest.raises(UserError, match="a group of 3 concepts and cannot be 'yes'; name those"):
        concepts.answer("signs", "yes")
    with pytest.raises(UserError, match=r"cannot be 'stripe'; .* did you mean 'stripes'"):
        concepts.answer("signs", "spots+stripe")


def test_names_must_differ_and_members_must_be_in_order():
    with pytest.raises(UserError, match="given twice: a=b"):
        ConceptSet.categorical({"a": ("b", "c"), "a=b": ()})
    with pytest.raises(ValueError, match="in order"):
        ConceptSet((ConceptGroup("a", (1,), ("yes",), False), ConceptGroup("b", (0,), ("yes",), False)))


def test_random_sets_are_partitions_and_survive_json():
    rng = random.Random(0)
    for _ in range(100):
        sizes = [rng.choice([0, 2, 3, 7]) for _ in range(rng.randint(1, 12))]
        attributes = {f"a{g}": [f"v{v}" for v in range(size)] for g, size in enumerate(sizes)}
        concepts = ConceptSet.categorical(attributes, {"a0": rng.random()}, per_class=rng.random() < 0.5)
        assert len(concepts) == len(concepts.names) == sum(max(size, 1) for size in sizes)
        assert [m for g in concepts.groups for m in g.members] == list(range(len(concepts)))
        for k, g in enumerate(concepts.group_of):
            assert k in concepts.groups[g].members
        again = ConceptSet.from_dict(json.loads(json.dumps(concepts.to_dict())))
        assert again == concepts
        assert again.names == concepts.names
        for name, values in attributes.items():
            for value in values:
                answer = concepts.answer(name, value)
                assert sum(answer.values()) == 1
                assert concepts.names[max(answer, key=answer.get)] == f"{name}={value}"


def test_binary_concepts():
    concepts = ConceptSet.binary(["wings", "tail"], per_class=True)
    assert concepts.names == ("wings", "tail")
    assert concepts.per_class
    assert np.array_equal(concepts.group_of, [0, 1])
    assert concepts.answer("tail", "yes") == {1: 1.0}
