"""``concepts.csv``: columns become concepts, and what is wrong is told with line and cure."""

from __future__ import annotations

import numpy as np
import pytest
from builders import FOLDER_FILES, build_folder, places, sample_of, write_csv, write_folder, write_image

from vitrarium.configs.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, nothing else."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


def concepts(root, rows, header=("image", "wings", "colour")):
    return write_csv(root / "concepts.csv", header, rows)


def test_columns_become_yes_no_concepts_and_groups(root):
    rows = [
        (file, ("1", "0", "0.25", "", "yes", "FALSE", "nan")[i % 7], ("red", "blue", "")[i % 3])
        for i, file in enumerate(FOLDER_FILES)
    ]
    concepts(root, rows)
    source = build_folder(root)
    assert source.concepts.names == ("wings", "colour=blue", "colour=red")
    assert [group.categorical for group in source.concepts.groups] == [False, True]
    assert source.gives == {"concepts"}
    wings = [1, 0, 0.25, np.nan, 1, 0, np.nan]
    colour = {"red": [0, 1], "blue": [1, 0], "": [np.nan, np.nan]}
    for i, (file, _, word) in enumerate(rows):
        expected = np.array([wings[i % 7], *colour[word]], np.float32)
        name, index = places(source)[file]
        assert np.array_equal(source.splits[name].truth[index], expected, equal_nan=True)
        assert np.array_equal(sample_of(source, file).concepts, expected, equal_nan=True)


def test_images_may_be_named_by_path_or_by_a_unique_name(root):
    write_image(root / "cat" / "same.png", 7)
    write_image(root / "dog" / "same.png", 8)
    concepts(root, [("cat0.png", 1, "a"), (r"dog\dog1.png", 0, "b"), ("./cat/same.png", 1, "a")])
    source = build_folder(root)
    assert sample_of(source, "cat/cat0.png").concepts.tolist() == [1, 1, 0]
    assert sample_of(source, "dog/dog1.png").concepts.tolist() == [0, 0, 1]
    assert sample_of(source, "cat/same.png").concepts.tolist() == [1, 1, 0]
    assert np.isnan(sample_of(source, "dog/same.png").concepts).all()
    assert "19 of 22 images have no row in concepts.csv: their concepts are unknown" in source.notes
    concepts(root, [("same.png", 1, "a")])
    with pytest.raises(
        UserError, match=r"line 2: 2 images are called 'same\.png'; write the path, as in cat/same\.png"
    ):
        build_folder(root)


def test_numbers_can_be_names_of_values(root):
    concepts(root, [(file, 3 + i % 3) for i, file in enumerate(FOLDER_FILES)], ("image", "petals"))
    with pytest.raises(UserError, match=r"'petals' is 3, outside \[0, 1\]; .*set data\.categorical=\[petals\]"):
        build_folder(root)
    for columns in (["petals"], "petals"):
        assert build_folder(root, categorical=columns).concepts.names == ("petals=3", "petals=4", "petals=5")
    with pytest.raises(UserError, match=r"no column 'petal'.*did you mean 'petals'"):
        build_folder(root, categorical=["petal"])


def test_a_column_with_one_word_is_a_concept_of_its_own_name_and_told(root):
    concepts(root, [(file, i % 2, "red" if i else "") for i, file in enumerate(FOLDER_FILES)])
    source = build_folder(root)
    assert source.concepts.names == ("wings", "colour=red")
    assert np.isnan(sample_of(source, FOLDER_FILES[0]).concepts[1])
    assert sample_of(source, FOLDER_FILES[1]).concepts[1] == 1
    assert "the concept 'colour=red' is the same wherever it is known" in source.notes


def test_excel_saves_a_mark_before_the_header(root):
    text = "image,wings\n" + "\n".join(f"{file},{i % 2}" for i, file in enumerate(FOLDER_FILES)) + "\n\n"
    (root / "concepts.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert build_folder(root).concepts.names == ("wings",)


def test_a_column_class_is_checked_and_no_concept(root):
    rows = [(file, file.split("/")[0], i % 2) for i, file in enumerate(FOLDER_FILES)]
    concepts(root, rows, ("image", "class", "wings"))
    assert build_folder(root).concepts.names == ("wings",)
    rows[3] = (FOLDER_FILES[3], "dog", 1)
    concepts(root, rows, ("image", "class", "wings"))
    with pytest.raises(UserError, match="line 5: the class is 'dog', but the image lies in the folder 'cat'"):
        build_folder(root)
    rows[3] = (FOLDER_FILES[3], "cart", 1)
    concepts(root, rows, ("image", "label", "wings"))
    with pytest.raises(UserError, match="line 5: the label 'cart' is none of the classes; did you mean 'cat'"):
        build_folder(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,wings\ncat/cat99.png,1\n", r"concepts\.csv line 2: there is no image 'cat/cat99\.png'; did you mean"),
        (
            "image,wings\ncat0.png,1\ncat/a.png,1\ncat1.png,1\ncat/b.png,1\ndog/c.png,0\n",
            r"line 3: there is no image 'cat/a\.png', and none for 2 later lines; did you mean",
        ),
        ("image,wings\n,1\n", "line 2: no image is named"),
        ("image,wings\ncat/cat0.png,1\ncat0.png,0\n", r"line 3: the image 'cat0\.png' has a row already, in line 2"),
        ("image,wings\ncat/cat0.png,1.5\n", r"line 2: the concept 'wings' is 1\.5, outside \[0, 1\]"),
        ("image,wings\ncat/cat0.png,-0.1\n", r"outside \[0, 1\]"),
        ("image,wings\ncat/cat0.png,inf\n", r"outside \[0, 1\]"),
        (
            "image,wings\ncat0.png,1\ncat1.png,red\n",
            "line 3: 'red' in the column 'wings', where line 2 has the number 1",
        ),
        ("image,wings\ncat0.png,red\ncat1.png,yes\ncat2.png,0\n", "line 2: 'red' in the column 'wings', where line 4"),
        ("image,wings\ncat0.png,\n", "the column 'wings' is empty"),
        ("image,wings,wings\ncat0.png,1,1\n", "two columns 'wings'"),
        ("image,wings,\ncat0.png,1,1\n", "column 3 has no name"),
        ("image,wings\ncat0.png,1,1\n", "line 2 has 3 cells, the header 2"),
        ("image,wings\ncat0.png\n", "line 2 has 1 cells, the header 2"),
        ("image;wings\ncat0.png;1\n", "is not separated by commas"),
        ("file,wings\ncat0.png,1\n", r"has no column 'image' \(it has: file, wings\)"),
        ('image,wings\n"cat0.png,1\n', r"line \d: .*mend the quotes"),
        ("", "is empty"),
        ("image,a=b,a\ncat0.png,1,b\ncat1.png,0,c\n", "given twice: a=b"),
        ("image,a=b,a\ncat0.png,1,b\ncat1.png,0,b\n", "two columns for the concept 'a=b'"),
    ],
)
def test_damaged_tables_are_refused_by_line(root, text, words):
    (root / "concepts.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        build_folder(root)


def test_other_encodings_are_refused(root):
    (root / "concepts.csv").write_bytes("image,Flügel\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"concepts\.csv is not UTF-8 text"):
        build_folder(root)


def test_tables_of_spreadsheets_are_refused_or_told(root):
    (root / "plan.ods").write_bytes(b"PK")
    assert "tables that nobody reads: plan.ods" in build_folder(root).notes
    (root / "Concepts.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"would not be read; save it as CSV in UTF-8 with commas as concepts\.csv"):
        build_folder(root)
    concepts(root, [(file, i % 2) for i, file in enumerate(FOLDER_FILES)], ("image", "wings"))
    assert "tables that nobody reads: Concepts.xlsx, plan.ods" in build_folder(root).notes


def test_tables_that_nobody_reads_are_told_or_refused(root):
    (root / "measurements.csv").write_text("a,b\n")
    assert "tables that nobody reads: measurements.csv" in build_folder(root).notes
    (root / "Concept.csv").write_text("image,wings\n")
    with pytest.raises(UserError, match=r"Concept\.csv' would not be read; call it concepts\.csv"):
        build_folder(root)
