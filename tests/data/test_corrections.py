"""What is written under ``do``: answers, silence, scores, bans, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.corrections import read_corrections

UNITS = ConceptSet(
    (
        ConceptGroup("colour", (0, 1), ("red", "silent"), True),
        ConceptGroup("thorns", (2,), ("yes",), False),
        ConceptGroup("signs", (3, 4), ("dots", "stripes"), False),
        ConceptGroup("prototype_3", (5,), ("yes",), False),
    )
)


def test_answers_are_what_they_were():
    found = read_corrections(UNITS, {"colour": "red", "thorns": 0.3, "signs": "dots"})
    assert found.truth == {0: 1.0, 1: 0.0, 2: 0.3, 3: 1.0, 4: 0.0}
    assert found.units == {0, 1, 2, 3, 4}
    assert not found.confines


def test_a_value_comes_before_a_word():
    assert read_corrections(UNITS, {"colour": "silent"}).truth == {0: 0.0, 1: 1.0}


@pytest.mark.parametrize(("name", "units"), [("thorns", {2}), ("signs", {3, 4}), ("colour=red", {0})])
def test_silence(name, units):
    said = "silent" if name != "colour=red" else "score:0"
    found = read_corrections(UNITS, {name: said})
    if said == "silent":
        assert found.silent == units
        assert found.values == dict.fromkeys(units, 0.0)
    assert found.set_units == units


@pytest.mark.parametrize("said", ["score:-2.5", {"score": -2.5}, {"score": "-2.5"}, {"score": np.float32(-2.5)}])
def test_scores_are_plain_numbers(said):
    found = read_corrections(UNITS, {"prototype_3": said})
    assert found.scores == {5: -2.5}
    assert found.values == {}


@pytest.mark.parametrize(
    "said",
    [
        "ban:0.1,0.2,0.5,0.6",
        {"ban": [0.1, 0.2, 0.5, 0.6]},
        {"ban": (0.1, 0.2, 0.5, 0.6)},
        {"ban": np.array([0.1, 0.2, 0.5, 0.6])},
        {"ban": [[0.1, 0.2, 0.5, 0.6]]},
        {"ban": "0.1,0.2,0.5,0.6"},
    ],
)
def test_bans(said):
    box = (0.1, 0.2, 0.5, 0.6)
    assert read_corrections(UNITS, {"prototype_3": said}).bans == {5: [box]}
    assert read_corrections(UNITS, {"signs": said}).bans == {3: [box], 4: [box]}
    for name in ("everywhere", "*"):
        found = read_corrections(UNITS, {name: said, "thorns": "yes"})
        assert found.everywhere == [box]
        assert found.told(UNITS.names) == ["thorns", "everywhere"]


def test_several_boxes():
    wanted = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)]
    for said in ("ban:0,0,0.5,0.5+0.5,0.5,1,1", {"ban": [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]}):
        assert read_corrections(UNITS, {"prototype_3": said}).bans == {5: wanted}


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ({"prototype_4": "silent"}, "unknown prototype 'prototype_4'; did you mean 'prototype_3'"),
        ({"evrywhere": "ban:0,0,1,1"}, "did you mean 'everywhere'"),
        ({"everywhere": "silent"}, "means all units"),
        ({"*": {"score": 1}}, "means all units"),
        ({"prototype_3": "silence"}, "did you mean 'silent'"),
        ({"prototype_3": "score"}, "nothing with it; write prototype_3=score:0.8"),
        ({"prototype_3": "ban"}, "nothing with it; write prototype_3=ban:"),
        ({"prototype_3": "scores:1"}, "did you mean 'score'"),
        ({"prototype_3": {"bann": [0, 0, 1, 1]}}, "did you mean 'ban'"),
        ({"prototype_3": {"ban": [0, 0, 1, 1], "score": 1}}, "told 2 things"),
        ({"prototype_3": {}}, "told 0 things"),
        ({"prototype_3": "score:high"}, "the score of 'prototype_3' is 'high'"),
        ({"prototype_3": {"score": float("nan")}}, "give a number"),
        ({"prototype_3": {"score": True}}, "give a number"),
        ({"signs": {"score": 1}}, "a group of 2.*such as 'signs=dots'"),
        ({"prototype_3": "ban:0,0,1"}, "left, top, right, bottom"),
        ({"prototype_3": {"ban": []}}, "left, top, right, bottom"),
        ({"prototype_3": {"ban": None}}, "left, top, right, bottom"),
        ({"prototype_3": "ban:0.5,0,0.5,1"}, "is empty or reaches beyond"),
        ({"prototype_3": "ban:0,0,64,64"}, "is empty or reaches beyond"),
        ({"prototype_3": "ban:nan,0,1,1"}, "is empty or reaches beyond"),
        ({"signs": "dots", "signs=dots": {"score": 0.2}}, "set to something else already"),
        ({"signs": "silent", "signs=dots": {"ban": [0, 0, 1, 1]}}, "once it is set it looks nowhere"),
        ({"thorns": "mauve"}, "cannot be 'mauve'"),
    ],
)
def test_refusals(do, said):
    with pytest.raises(UserError, match=said):
        read_corrections(UNITS, do, "prototype")


def test_units_that_say_nothing_and_gates():
    alive = [True, False, True, True, True, False]
    with pytest.raises(UserError, match="'prototype_3' was removed"):
        read_corrections(UNITS, {"prototype_3": "silent"}, alive=alive)
    assert read_corrections(UNITS, {"colour": "red"}, alive=alive).truth == {0: 1.0, 1: 0.0}
    with pytest.raises(UserError, match="from 0 to 1"):
        read_corrections(UNITS, {"thorns": "score:1.5"}, gates=True)
    assert read_corrections(UNITS, {"thorns": "score:1.5"}).scores == {2: 1.5}
