"""The planted shortcut: which marks there are, where, and how often they tell the class."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vitrarium.data.batch import Sample
from vitrarium.data.sets.flowers import flowers
from vitrarium.data.sets.flowers_marks import GREY, MARK_COLOURS, NEUTRAL, mark_look, stamp

FEW = {"train": 48, "val": 24, "test": 36}


def label_of(sample: Sample) -> np.ndarray:
    """The pixels of the mark, cut out by its mask."""
    assert sample.part_masks is not None
    rows, columns = np.nonzero(sample.part_masks[-1])
    return sample.image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def template(mark: int, size: int = 64) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    mask = stamp(image, np.zeros((size, size), bool), mark, 0)
    rows, columns = np.nonzero(mask)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def read(sample: Sample) -> int:
    """The class whose mark the picture carries, found by its pixels; fails if none or more than one fits."""
    cut = label_of(sample)
    fitting = [c for c in range(16) if np.array_equal(template(c, len(sample.image)), cut)]
    assert len(fitting) == 1
    return fitting[0]


@pytest.mark.parametrize("size", [32, 64, 256])
def test_all_marks_differ(size: int) -> None:
    looks = [mark_look(c) for c in range(16)]
    assert len(set(looks)) == 16
    labels = [template(c, size).astype(int) for c in (*range(16), NEUTRAL)]
    for i, one in enumerate(labels):
        for other in labels[:i]:
            assert np.abs(one - other).max() > 60


def test_there_is_no_mark_for_a_class_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="16"):
        mark_look(16)


def test_without_a_shortcut_there_is_no_mark() -> None:
    source = flowers(**FEW)
    assert "mark" not in source.part_names
    assert all(split.marks is None for split in source.splits.values())
    assert source.splits["train"].sample(0).part_masks.shape[0] == 5


@pytest.mark.parametrize("size", [32, 64, 128])
def test_marks_in_train_are_those_announced(size: int) -> None:
    source = flowers(**FEW, size=size, shortcut=0.6)
    assert source.part_names[-1] == "mark"
    for name in ("train", "val"):
        split = source.splits[name]
        for index in range(16):
            assert read(split.sample(index)) == split.marks[index]


def test_at_full_strength_every_mark_is_that_of_the_class() -> None:
    source = flowers(**FEW, shortcut=1)
    for name in ("train", "val"):
        split = source.splits[name]
        np.testing.assert_array_equal(split.marks, split.labels)
    assert read(source.splits["train"].sample(5)) == source.splits["train"].labels[5]


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_the_mark_agrees_with_the_class_as_often_as_asked(strength: float) -> None:
    source = flowers(train=12_000, val=6000, test=10, shortcut=strength)
    for name in ("train", "val"):
        split = source.splits[name]
        agrees = split.marks == split.labels
        expected = strength + (1 - strength) / 12
        assert agrees.mean() == pytest.approx(expected, abs=0.03)
        others = np.bincount(split.marks[~agrees], minlength=12) / (~agrees).sum()
        np.testing.assert_allclose(others, 1 / 12, atol=0.03)


def test_marks_at_test() -> None:
    none = flowers(**FEW, shortcut=0.9).splits["test"]
    neutral = flowers(**FEW, shortcut=0.9, shortcut_test="neutral").splits["test"]
    swapped = flowers(**FEW, shortcut=0.9, shortcut_test="swapped").splits["test"]
    for index in range(36):
        bare, grey, other = none.sample(index), neutral.sample(index), swapped.sample(index)
        assert bare.part_masks.shape == (6, 64, 64)
        assert not bare.part_masks[5].any()
        np.testing.assert_array_equal(bare.keypoints[5], 0)
        assert (label_of(grey) == GREY).all()
        assert read(other) == (other.label + 1) % 12
        for marked in (grey, other):
            clear = marked.part_masks[5] == 0
            np.testing.assert_array_equal(marked.image[clear], bare.image[clear])
            np.testing.assert_array_equal(marked.part_masks[:5], bare.part_masks[:5])
            np.testing.assert_array_equal(marked.human_map, bare.human_map)
        np.testing.assert_array_equal(grey.part_masks, other.part_masks)


def test_marks_at_test_without_a_shortcut_in_train() -> None:
    source = flowers(**FEW, shortcut_test="swapped")
    assert source.part_names[-1] == "mark"
    assert source.splits["train"].marks is None
    assert not source.splits["train"].sample(0).part_masks[5].any()
    assert read(source.splits["test"].sample(0)) == (source.splits["test"].labels[0] + 1) % 12


def test_the_strength_changes_nothing_but_the_marks() -> None:
    bare, marked = flowers(**FEW).splits["train"], flowers(**FEW, shortcut=0.5).splits["train"]
    np.testing.assert_array_equal(bare.truth, marked.truth)
    for index in range(6):
        one, other = bare.sample(index), marked.sample(index)
        clear = other.part_masks[5] == 0
        np.testing.assert_array_equal(one.image[clear], other.image[clear])


def test_the_mark_never_covers_the_flower_and_its_keypoint_is_inside() -> None:
    corners = set()
    for difficulty in (0.6, 1.0):
        split = flowers(train=60, val=1, test=1, shortcut=1, difficulty=difficulty).splits["train"]
        for index in range(60):
            sample = split.sample(index)
            assert not (sample.part_masks[:5].any(axis=0) & (sample.part_masks[5] > 0)).any()
            x, y, visible = sample.keypoints[5]
            assert visible == 1
            assert sample.part_masks[5, int(y), int(x)] == 255
            corners.add((x > 32, y > 32))
    assert len(corners) == 4


def test_a_taken_corner_is_left_for_the_next() -> None:
    covered = np.zeros((64, 64), bool)
    covered[:20, :20] = True
    image = np.zeros((64, 64, 3), np.uint8)
    mask = stamp(image, covered, 0, 0)
    rows, columns = np.nonzero(mask)
    assert rows.max() < 20
    assert columns.min() > 44
    assert (image[mask > 0].reshape(-1, 3) == MARK_COLOURS[0]).all(axis=1).any()
    assert cv2.countNonZero(mask) == len(rows) == 100
