"""Marked places: read, resolved, refused with file and line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.marks import read_marks
from vitrarium.data.source import DataSource, Split


class Files(Split):
    def __init__(self):
        self.labels = np.array([0, 1, 1])
        self.names = ["a/one.png", "b/two.png", "c/two.png"]

    def sample(self, index):
        raise AssertionError("marks need no pixels")

    def origin(self, index):
        return self.names[index]


@pytest.fixture
def source():
    return DataSource(
        "files", dict.fromkeys(("train", "val", "test"), Files()), ("cat", "dog"), None, frozenset(), 20, "x"
    )


def write(tmp_path, text):
    path = tmp_path / "marks.csv"
    path.write_text(text)
    return path


def test_points_and_boxes(source, tmp_path):
    path = write(tmp_path, "image,x,y,class,kind\none.png,5,10,dog,forbid\nb/two.png,0,20,,forbid\n2,1,1,,remember\n")
    marks = read_marks(path, source, "forbid")
    assert marks.image.tolist() == [0, 1]
    assert marks.label.tolist() == [1, 1]
    torch.testing.assert_close(marks.box, torch.tensor([[0.25, 0.5, 0.25, 0.5], [0, 1, 0, 1]]))
    assert read_marks(path, source, "remember").image.tolist() == [2]
    path = write(tmp_path, "kind,image,left,top,right,bottom\nforbid,0,0,5,10,20\n")
    torch.testing.assert_close(read_marks(path, source, "forbid").box, torch.tensor([[0, 0.25, 0.5, 1]]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,x,y\n0,1,1\n", "no column 'kind'"),
        ("image,left,top,kind\n0,1,1,forbid\n", "no column 'right'"),
        ("image,x,y,kind\n0,1,1,forbidden\n", "line 2.*did you mean 'forbid'"),
        ("image,x,y,kind\n3,1,1,forbid\n", "line 2: image 3 of a training split of 3; 0 to 2"),
        ("image,x,y,kind\ntwo.png,1,1,forbid\n", "2 training images are called 'two.png'"),
        ("image,x,y,kind\none.jpg,1,1,forbid\n", "no training images.*did you mean 'one.png'"),
        ("image,x,y,kind\n0,21,1,forbid\n", "x=21, y=1 in an image of 20 x 20"),
        ("image,x,y,kind\n0,nan,1,forbid\n", "in an image of 20"),
        ("image,x,y,kind\n0,left,1,forbid\n", "must be numbers"),
        ("image,left,top,right,bottom,kind\n0,5,5,2,8,forbid\n", "left before right"),
        ("image,x,y,class,kind\n0,1,1,dgo,forbid\n", "did you mean 'dog'"),
        ("image,x,y,kind\n0,1,1,remember\n", "no mark of kind 'forbid'"),
    ],
)
def test_refusals(text, said, source, tmp_path):
    with pytest.raises(UserError, match=said):
        read_marks(write(tmp_path, text), source, "forbid")
