"""``image_attribute_labels.txt``: read in blocks, with the quirks of the official file, refused by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitrarium.configs.errors import UserError
from vitrarium.data.sets import cub_labels
from vitrarium.data.sets.cub_labels import CERTAINTIES, NONE, read_certainties, read_image_labels
from vitrarium.data.sets.cub_tables import Names

LEVELS = {number: number for number in CERTAINTIES}
IMAGES, ATTRIBUTES = [3, 12, -7, 400000], [1, 2, 5]


def names(what, ids):
    return Names(
        Path(f"{what}s.txt"), what, {n: k for k, n in enumerate(ids)}, tuple(f"{what} {n}" for n in ids), tuple(ids)
    )


def read(path, text, levels=LEVELS):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_image_labels(path, names("image", IMAGES), names("attribute", ATTRIBUTES), levels)


@pytest.fixture
def table(tmp_path):
    return tmp_path / "image_attribute_labels.txt"


@pytest.mark.parametrize("chunk", [1 << 22, 40, 23])
@pytest.mark.parametrize("seed", range(5))
def test_blocks_of_any_size_and_lines_of_any_look_give_the_same(table, monkeypatch, chunk, seed):
    monkeypatch.setattr(cub_labels, "CHUNK", chunk)
    rng = np.random.default_rng(seed)
    present = rng.integers(0, 2, (4, 3))
    certainty = rng.integers(1, 5, (4, 3))
    missing = rng.random((4, 3)) < 0.2
    looks = ("{} {} {} {} 1.5\n", "{}\t{} {}  {}\t7\r\n", "  {} {} {} {}\n", "\n{} {} 0{} {} 9e3\n", "+{} {} {} {} x\n")
    cells = [(n, a) for n in range(4) for a in range(3) if not missing[n, a]]
    rng.shuffle(cells)
    lines = [
        looks[rng.integers(5) if IMAGES[n] > 0 else 0].format(IMAGES[n], ATTRIBUTES[a], present[n, a], certainty[n, a])
        for n, a in cells
    ]
    text = "".join(lines)
    made = read(table, text if seed % 2 else "\ufeff" + text.rstrip("\n"))
    assert np.array_equal(made.present, np.where(missing, NONE, present))
    assert np.array_equal(made.certainty, np.where(missing, NONE, certainty))
    assert made.longer == 0


def test_lines_with_too_many_fields_are_taken_as_the_official_file_means_them(table):
    made = read(table, "3 1 1 4 2.5\n12 2 0 4 0 0.78\n12 1 1 3 0 0 7.5\n3 2 1 0 2 1.0\n3 5 0 0 0 3 9.1 2\n")
    assert made.present.tolist() == [[1, 1, 0], [1, 0, NONE], [NONE] * 3, [NONE] * 3]
    assert made.certainty.tolist() == [[4, 2, 3], [3, 4, NONE], [NONE] * 3, [NONE] * 3]
    assert (made.longer, made.first_longer) == (4, 2)


def test_certainties_may_have_other_ids(tmp_path, table):
    path = tmp_path / "certainties.txt"
    assert read_certainties(path) == LEVELS
    path.write_text("10 definitely\n7 not visible\n9 Probably\n8 guessing\n")
    levels = read_certainties(path)
    assert levels == {10: 4, 7: 1, 9: 3, 8: 2}
    assert read(table, "3 1 1 10 2.5\n3 2 0 7 1\n", levels).certainty[0].tolist() == [4, 1, NONE]
    with pytest.raises(UserError, match="line 1: there is no certainty 4; known: 10, 7, 9, 8"):
        read(table, "3 1 1 4 2.5\n", levels)
    path.write_text("1 sure\n")
    with pytest.raises(UserError, match=r"certainties\.txt line 1: unknown certainty 'sure'; call it not visible,"):
        read_certainties(path)


@pytest.mark.parametrize("chunk", [1 << 22, 64])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("12 2 0 4 1.0", "line 9: 'image 12' and 'attribute 2' are annotated already, in line 4; keep one"),
        ("012 2 1 3 1.0", "line 9: 'image 12' and 'attribute 2' are annotated already, in line 4"),
        ("1234567890123 2 0 4 1.0", r"line 9: there is no image 1234567890123 in images\.txt"),
        ("13 2 0 4 1.0", r"line 9: there is no image 13 in images\.txt; remove the line"),
        ("12 3 0 4 1.0", r"line 9: there is no attribute 3 in attributes\.txt"),
        ("99999999999999999999 2 0 4 1.0", "line 9: the image id '9{20}' is no whole number of at most 18 digits"),
        ("3 5 2 4 1.0", "line 9: the presence is 2; write 1 for present"),
        ("3 5 yes 4 1.0", "line 9: the presence 'yes' is no whole number"),
        ("3 5 1 5 1.0", "line 9: there is no certainty 5; known: 1, 2, 3, 4"),
        ("3 5 1 4.0 1.0", "line 9: the certainty '4.0' is no whole number"),
        ("3.0 5 1 4 1.0", "line 9: the image id '3.0' is no whole number"),
        ("3 5 1", "line 9 has 3 fields; write it like '12 34 1 4 2.5'"),
        ("3,5,1,4,1.0", "line 9 is separated by ','"),
        ("3;5;1;4;1.0", "line 9 is separated by ';'"),
    ],
)
def test_damaged_lines_are_refused_by_number(table, monkeypatch, chunk, line, words):
    monkeypatch.setattr(cub_labels, "CHUNK", chunk)
    good = [
        "3 1 1 4 2.5",
        "3 2 0 4 2.5",
        "12 1 0 1 2.5",
        "12 2 1 4 2.5",
        "",
        "-7 1 0 4 2.5",
        "-7 2 0 4 2.5",
        "-7 5 0 4 1",
    ]
    with pytest.raises(UserError, match=rf"image_attribute_labels\.txt {words}"):
        read(table, "\n".join([*good, line, "400000 1 1 4 1.0", line]))


def test_what_is_no_text_is_refused(table, monkeypatch):
    with pytest.raises(UserError, match="line 2 is not UTF-8 text"):
        read(table, b"3 1 1 4 2.5\n3 \xff 1 4 2.5\n")
    monkeypatch.setattr(cub_labels, "CHUNK", 64)
    with pytest.raises(UserError, match="line 2 is longer than 64 bytes"):
        read(table, b"3 1 1 4 2.5\n" + b"3" * 500)
