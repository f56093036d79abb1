"""The sheet of examples shows what is true, where it is, and chooses fairly."""

from __future__ import annotations

import numpy as np
import pytest
from builders import array_source, build_folder, write_folder

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.example_card import GLOW, Chip, annotated, card, chips, scale_for
from vitrarium.data.example_sheet import choose, example_sheet
from vitrarium.data.ink import PARTS, broken_lines, letters, shortened

NAN = np.nan


def test_chips_say_what_is_true_and_what_nobody_knows():
    concepts = ConceptSet(
        (
            ConceptGroup("colour", (0, 1, 2), ("red", "green", "blue"), True),
            ConceptGroup("spots", (3,), ("yes",), False),
            ConceptGroup("torn", (4,), ("yes",), False),
            ConceptGroup("wet", (5,), ("yes",), False),
            ConceptGroup("marks", (6, 7), ("left", "right"), False),
            ConceptGroup("shape", (8, 9), ("round", "narrow"), True),
        )
    )
    truth = np.array([0, 1, 0, 1, 0.67, NAN, 0, 1, NAN, NAN], np.float32)
    assert chips(concepts, truth) == [
        Chip("colour", "green", "true"),
        Chip("spots", "", "true"),
        Chip("torn", "0.67", "degree"),
        Chip("marks", "right", "true"),
        Chip("wet", "?", "unknown"),
        Chip("shape", "?", "unknown"),
    ]
    assert chips(concepts, np.array([0.25, 0.75, 0, 0, 0, 0, 0, NAN, 0, 0], np.float32)) == [
        Chip("colour", "red 0.25, green 0.75", "degree"),
        Chip("shape", "none", "true"),
        Chip("marks", "right ?", "unknown"),
    ]


@pytest.mark.parametrize(("size", "scale"), [(32, 5), (48, 3), (64, 3), (96, 2), (128, 1), (224, 1), (512, 1)])
def test_small_pictures_are_enlarged_by_whole_numbers(size, scale):
    assert scale_for(size) == scale


def plain(size=32, **fields):
    return Sample(np.full((size, size, 3), 128, np.uint8), 0, **fields)


def close(pixel, colour, by=6):
    return np.abs(np.asarray(pixel, int) - colour).max() <= by


def test_keypoints_lie_where_they_are():
    points = np.array([[4, 20, 1], [25, 3, 1], [15, 15, 0]], np.float32)
    drawn = np.asarray(annotated(plain(keypoints=points), 5)).astype(int)
    for p, (x, y, visible) in enumerate(points):
        near = drawn[int(y) * 5 - 3 : int(y) * 5 + 8, int(x) * 5 - 3 : int(x) * 5 + 8].reshape(-1, 3)
        found = (np.abs(near - PARTS[p]).max(axis=1) == 0).sum()
        assert (found > 20) == bool(visible)
    # The middle of the dot is the middle of its enlarged pixel.
    ys, xs = np.nonzero(np.abs(drawn - PARTS[0]).max(axis=2) == 0)
    assert abs((xs.min() + xs.max()) / 2 - 22) <= 1
    assert abs((ys.min() + ys.max()) / 2 - 102) <= 1


def test_maps_glow_where_to_look():
    human = np.zeros((32, 32), np.uint8)
    human[8:16, 20:28] = 255
    drawn = np.asarray(annotated(plain(human_map=human), 2))
    without = np.asarray(annotated(plain(), 2))
    inside = np.zeros((64, 64), bool)
    inside[16:32, 40:56] = True
    assert np.array_equal(drawn[~inside], without[~inside])
    expected = 0.3 * without[inside].astype(float) + 0.7 * np.array(GLOW)
    assert np.abs(drawn[inside] - expected).max() <= 2


def test_masks_are_outlined():
    masks = np.zeros((2, 32, 32), np.uint8)
    masks[1, 5:15, 5:15] = 255
    drawn = np.asarray(annotated(plain(part_masks=masks), 1))
    ring = np.zeros((32, 32), bool)
    ring[5:15, 5:15] = True
    ring[6:14, 6:14] = False
    assert (drawn[ring] == PARTS[1]).all()
    assert not (drawn[~ring] == PARTS[1]).all(axis=1).any()


def test_the_picture_itself_is_shown_untouched():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    sample = Sample(image, 0, np.array([1, 0], np.float32), human_map=np.full((16, 16), 200, np.uint8))
    for gives in (frozenset({"human_map"}), frozenset()):
        made = np.asarray(card(sample, ConceptSet.binary(["a", "b"]), gives))
        assert np.array_equal(made[1:161, 1:161], np.kron(image, np.ones((10, 10, 1), np.uint8)))


def test_long_lists_are_cut():
    concepts = ConceptSet.binary([f"a concept of number {k}" for k in range(60)])
    sample = plain(concepts=np.ones(60, np.float32))
    few = plain(concepts=np.eye(60, dtype=np.float32)[0])
    tall, low = card(sample, concepts, frozenset()), card(few, concepts, frozenset())
    assert low.height == 162
    assert tall.height < 260


def test_texts_fit():
    font = letters(11)
    assert shortened("short", font, 200) == "short"
    cut = shortened("a very long name that does not fit", font, 60)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 60
    lines = broken_lines("Black_footed_Albatross of the southern seas", font, 80)
    assert len(lines) > 1
    assert "".join(lines).replace(" ", "") == "Black_footed_Albatrossofthesouthernseas"
    assert all(font.getlength(line) <= 80 for line in lines)
    assert "".join(broken_lines("x" * 100, font, 50)) == "x" * 100


def test_examples_are_shared_out_and_the_seed_decides():
    split = array_source(train=300).splits["train"]
    split.labels = np.arange(300) % 5
    chosen = choose(split, [0, 1, 2, 3, 4], 12, seed=0)
    assert [len(indices) for indices in chosen.values()] == [3, 3, 2, 2, 2]
    assert all((split.labels[indices] == c).all() for c, indices in chosen.items())
    assert all(len(set(indices)) == len(indices) and indices == sorted(indices) for indices in chosen.values())
    assert chosen == choose(split, [0, 1, 2, 3, 4], 12, seed=0)
    assert chosen != choose(split, [0, 1, 2, 3, 4], 12, seed=1)
    some = choose(split, [0, 1, 2, 3, 4], 2, seed=0)
    assert [len(indices) for indices in some.values()] == [1, 1]
    assert {c for seed in range(20) for c in choose(split, [0, 1, 2, 3, 4], 2, seed)} == {0, 1, 2, 3, 4}


def test_sheets_of_everything(tmp_path):
    source = array_source()
    whole = example_sheet(source, count=6)
    assert whole.mode == "RGB"
    alone = example_sheet(source, "val", count=2, only="yes", title="mine")
    assert alone.height < whole.height
    assert np.array_equal(np.asarray(whole), np.asarray(example_sheet(source, count=6)))
    assert not np.array_equal(np.asarray(whole), np.asarray(example_sheet(source, count=6, seed=1)))
    write_folder(tmp_path)
    assert example_sheet(build_folder(tmp_path), count=4).width > 300


def test_broken_examples_have_a_place(tmp_path):
    write_folder(tmp_path)
    source = build_folder(tmp_path)
    before = example_sheet(source, count=12)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-700])
    after = example_sheet(source, count=12)
    assert not np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"which": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"only": "ye"}, "unknown class 'ye'; did you mean 'yes'"),
        ({"count": 0}, "from 1 to 1000"),
        ({"count": 5000}, "from 1 to 1000"),
        ({"seed": -1}, "whole number"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UserError, match=words):
        example_sheet(array_source(), **options)


def test_a_class_without_images_is_refused():
    source = array_source()
    source.splits["val"].labels[:] = 0
    with pytest.raises(UserError, match="the class 'yes' has no image in val"):
        example_sheet(source, "val", only="yes")
