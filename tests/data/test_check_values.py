"""Findings on the words of categorical concepts."""

from __future__ import annotations

import numpy as np
import pytest

from vitrarium.data.check.values import value_findings
from vitrarium.data.concepts import ConceptSet


def found(values, chosen):
    """Findings by kind, for one group of which image i has the value ``chosen[i]`` (-1: unknown)."""
    chosen = np.asarray(chosen)
    truth = np.where(chosen[:, None] < 0, np.nan, np.eye(len(values), dtype=np.float32)[chosen])
    return {f.kind: f for f in value_findings(ConceptSet.categorical({"colour": values}), truth)}


@pytest.mark.parametrize("word", ["?", "NA", "n/a", "Unknown", "null", "-"])
def test_a_word_for_unknown_is_told(word):
    finding = found(("red", word, "green"), [0, 1, 2] * 4)["unknown_value"]
    assert (finding.severity, finding.items) == ("warning", (f"colour={word}",))


def test_values_that_differ_in_capitals_or_blanks_are_told():
    finding = found(("RED", "green", "red", "dark  blue", "Dark blue"), [0, 1, 2, 3, 4] * 3)["value_spelling"]
    assert finding.items == ("colour=RED = colour=red", "colour=dark  blue = colour=Dark blue")


def test_a_name_for_each_image_is_no_concept():
    names = tuple(f"p{i}" for i in range(24))
    assert found(names, range(24))["image_name"].items == ("colour (24 values)",)
    assert "image_name" not in found(names, list(range(24)) * 2)
    assert "image_name" not in found(names[:9], range(9))
    assert "image_name" in found(names, [*range(24), *[-1] * 100])


def test_plain_words_are_clean():
    assert found(("none", "nil", "red"), [0, 1, 2, -1] * 5) == {}
    yes_no = ConceptSet.categorical({"NA": (), "na": ()})
    assert value_findings(yes_no, np.zeros((30, 2), np.float32)) == []
