"""``class_concepts.csv``: concepts of classes, instead of concepts of images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from builders import build_folder, sample_of, write_csv, write_folder

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.sets.class_concepts import grouped_by_prefix
from vitrarium.data.source import LAYOUTS

HEADER = ("class", "wings", "legs", "coat")


@pytest.fixture
def root(tmp_path):
    """Three classes of six images."""
    write_folder(tmp_path / "own", ("bat", "cat", "dog"), count=6)
    return tmp_path / "own"


def table(root, rows, header=HEADER):
    return write_csv(root / "class_concepts.csv", header, rows)


def test_all_images_of_a_class_have_its_concepts(root):
    table(root, [("dog", "no", 0.5, "smooth"), ("bat", "yes", "", "dark"), ("cat", 0, 1, "smooth")])
    source = build_folder(root)
    assert source.concepts.names == ("wings", "legs", "coat=dark", "coat=smooth")
    assert source.concepts.per_class
    assert [group.categorical for group in source.concepts.groups] == [False, False, True]
    assert source.gives == {"concepts"}
    true = {"bat": [1, np.nan, 1, 0], "cat": [0, 1, 0, 1], "dog": [0, 0.5, 0, 1]}
    for split in source.splits.values():
        for index in range(len(split)):
            name = source.class_names[split.labels[index]]
            assert np.array_equal(split.sample(index).concepts, np.array(true[name], np.float32), equal_nan=True)
    assert "concepts come from class_concepts.csv: all images of a class have the same" in source.notes
    assert "tables that nobody reads" not in " ".join(source.notes)
    assert "class_concepts.csv" in LAYOUTS.get("folder")(root).because


def test_options_are_about_both_tables(root):
    table(root, [("bat", 1, 2, "see page 3"), ("cat", 0, 4, "?"), ("dog", 0, 4, "?")])
    files = [f"{name}/{name}{i}.png" for name in ("bat", "cat", "dog") for i in range(6)]
    rows = [(file, ("train", "val", "test")[i % 3], i) for i, file in enumerate(files)]
    write_csv(root / "concepts.csv", ("image", "split", "number"), rows)
    source = build_folder(root, categorical=["legs"], ignore=["coat", "number"])
    assert source.concepts.names == ("wings", "legs=2", "legs=4")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert source.splits["test"].where(0).endswith("concepts.csv line 4")
    words = r"concepts\.csv gives concepts \(number\), and so does class_concepts\.csv.*data\.ignore=\[number\]"
    with pytest.raises(UserError, match=words):
        build_folder(root, categorical=["legs"], ignore=["coat"])


def test_a_table_of_more_classes_is_told(root):
    table(root, [("bat", 1, 0, "a"), ("cow", 0, 1, "b"), ("cat", 0, 1, "b"), ("dog", 0, 1, "b"), ("elk", 0, 1, "b")])
    source = build_folder(root)
    assert "2 rows of class_concepts.csv are about classes without images: 'cow', 'elk'" in source.notes
    assert source.concepts.names == ("wings", "legs", "coat=a", "coat=b")


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([("bat", 1), ("cat", 0)], ("class", "wings"), r"has no row for the class 'dog'; add it"),
        (
            [("bat", 1), ("cat", 0), ("dogs", 0)],
            ("class", "wings"),
            r"no row for the class 'dog'; line 4 is about 'dogs', which is no class: did you mean 'dog'",
        ),
        (
            [("bat", 1), ("cat", 0), ("cat", 0), ("dog", 1)],
            ("class", "wings"),
            "line 4: the class 'cat' has a row already, in line 3",
        ),
        (
            [("bat", 1), ("cat", 7), ("dog", 1)],
            ("class", "wings"),
            r"line 3: the concept 'wings' is 7, outside \[0, 1\]",
        ),
        ([("bat", 1), ("cat", 0), ("dog", "x")], ("class", "wings"), "line 4: 'x' in the column 'wings', where line 2"),
        ([("bat", 1), ("cat", 0), ("dog", 1)], ("name", "wings"), "has no column 'class'"),
        ([("bat",), ("cat",), ("dog",)], ("class",), "has no column for a concept"),
    ],
)
def test_damaged_tables_are_refused_by_line(root, rows, header, words):
    table(root, rows, header)
    with pytest.raises(UserError, match=rf"class_concepts\.csv.*{words}"):
        build_folder(root)


def test_the_fingerprint_follows_the_table(root):
    prints = [build_folder(root).fingerprint]
    for wings in (0, 1):
        table(root, [("bat", wings), ("cat", 0), ("dog", 1)], ("class", "wings"))
        prints.append(build_folder(root).fingerprint)
    assert len(set(prints)) == 3


def test_concepts_that_exclude_each_other_are_grouped():
    names = ["shape_round", "red_rim", "shape_flat", "red_fill", "lone", "a_b"]
    truth = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 1, 1]], np.float32)
    grouped, moved = grouped_by_prefix(ConceptSet.binary(names, per_class=True), truth)
    assert grouped.names == ("shape=round", "shape=flat", "red_rim", "red_fill", "lone", "a_b")
    assert grouped.per_class
    assert np.array_equal(moved, truth[:, [0, 2, 1, 3, 4, 5]])
    assert [group.categorical for group in grouped.groups] == [True, False, False, False, False]
    assert ConceptSet.from_dict(json.loads(json.dumps(grouped.to_dict()))) == grouped


def test_images_keep_their_own_concepts_without_it(root):
    write_csv(root / "concepts.csv", ("image", "wings"), [("bat0.png", 1), ("cat0.png", 0)])
    source = build_folder(root)
    assert not source.concepts.per_class
    assert sample_of(source, "bat/bat0.png").concepts.tolist() == [1]
