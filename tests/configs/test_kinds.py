from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest

from vitrarium.configs.errors import UserError
from vitrarium.configs.kinds import mismatch
from vitrarium.configs.registry import Registry


def taking(annotation, default=inspect.Parameter.empty):
    return inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("int", 3), ("int", 3.0), (int, 3), ("float", 3), ("float", 0.5), ("bool", False), ("bool", 1),
        ("str", "a"), ("str", 7), ("int | None", None), ("Sequence[float]", [1, 0.5]), ("Sequence[float]", ()),
        (Sequence[float], (1.0,)), ("list[int]", [1]), ("str | Sequence[str]", "a"), ("Mapping[str, int]", 3),
        ("Anything", "a"), ("int | Anything", "a"), ("int", object()),
    ],
)  # fmt: skip
def test_what_fits_or_cannot_be_judged(annotation, value):
    assert mismatch(taking(annotation), value) == ""


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        ("int", "two", "a whole number"), ("int", 2.5, "a whole number"), ("int", [1], "a whole number"),
        ("int", True, "a whole number"), ("int", float("inf"), "a whole number"), ("int", None, "a whole number"),
        ("float", "x", "a number"), ("bool", "perhaps", "true or false"), ("bool", 2, "true or false"),
        ("str", ["a"], "a word"), ("int | None", "wide", "a whole number or null"),
        ("Sequence[float]", 0.1, "a list of numbers, such as [0.1, 1]"),
        ("Sequence[float]", "0.1", "a list of numbers, such as [0.1, 1]"),
        ("Sequence[float]", [0.1, "x"], "a list of numbers, such as [0.1, 1]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_words(annotation, value, said):
    assert mismatch(taking(annotation), value) == said


def test_a_default_is_always_taken():
    assert mismatch(taking("int", None), None) == ""


def test_registries_refuse_it_by_name():
    animals = Registry("animal")

    @animals.register("owl")
    class Owl:
        def __init__(self, size: int = 1, sounds: Sequence[float] = ()):
            self.size = size

    assert animals.build({"name": "owl", "size": 3, "sounds": [1, 2]}).size == 3
    with pytest.raises(UserError, match="the option 'size' of animal 'owl' is 'big'; give a whole number"):
        animals.build({"name": "owl", "size": "big"})
    with pytest.raises(UserError, match=r"the option 'sounds' of animal 'owl' is 0\.5; give a list of numbers"):
        animals.check({"name": "owl", "sounds": 0.5})
