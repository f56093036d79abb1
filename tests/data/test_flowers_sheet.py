"""The contact sheet shows the right pictures in the right rows, for any split."""

from __future__ import annotations

import numpy as np
import pytest

from vitrarium.data.batch import Sample
from vitrarium.data.sheet import contact_sheet
from vitrarium.data.source import Split


class Plain(Split):
    """Pictures of one colour: red says the index, green the class."""

    def __init__(self, labels: list[int], size: int = 16) -> None:
        self.labels, self.size = np.array(labels, np.int64), size
        self.asked: list[int] = []

    def sample(self, index: int) -> Sample:
        self.asked.append(index)
        colour = (10 * (index + 1), 100 * self.labels[index], 5)
        return Sample(np.full((self.size, self.size, 3), colour, np.uint8), int(self.labels[index]), index=index)


def test_rows_hold_the_first_images_of_each_class() -> None:
    split = Plain([0, 1, 1, 0, 1, 0, 2])
    sheet = np.asarray(contact_sheet(split, ["ash", "birch", "cedar"], per_class=2, scale=3))
    for row, indices in enumerate(([0, 3], [1, 2], [6])):
        top = 4 + row * 52
        for column in range(2):
            left = sheet.shape[1] - (2 - column) * 52
            cell = sheet[top : top + 48, left : left + 48]
            if column < len(indices):
                index = indices[column]
                assert (cell == (10 * (index + 1), 100 * split.labels[index], 5)).all()
            else:
                assert (cell == 255).all()
    assert set(split.asked) == {0, 3, 1, 2, 6}


def test_every_row_has_its_name_in_front() -> None:
    sheet = np.asarray(contact_sheet(Plain([0, 1]), ["oak", "yew"], per_class=1, scale=2))
    margin = sheet.shape[1] - 36
    for row in range(2):
        assert (sheet[4 + row * 36 : 36 + row * 36, :margin] < 128).any()


def test_a_split_without_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet(Plain([]), ["oak"])
