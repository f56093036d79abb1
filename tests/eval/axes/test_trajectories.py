"""Paths of images between two concepts: places, choice, depth, picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.eval.axes.trajectories import Trajectories, axis_numbers, choose_images, depth_of, percentiles
from vitrarium.models import build

NAN = float("nan")


@pytest.fixture
def paths():
    places = torch.tensor([[[0.1, 0.2], [0.4, 0.3], [0.9, 0.3]], [[0.5, 0.5], [0.5, 0.5], [0.2, 0.9]]])
    pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in (40, 200)]
    return Trajectories(("a=x", "b"), ("one", "two", "three"), (4, 9), ("$cat", "dog"), places, pictures, "T", "me")


def test_percentiles_are_shares_of_images_that_say_less():
    said = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 7.0], [3.0, 1.0]])
    wanted = [
        [np.mean([(o < s) + 0.5 * (o == s) for o in column]) for s in column] for column in said.T.tolist()
    ]  # fmt: skip
    np.testing.assert_allclose(percentiles(said).T.numpy(), wanted)


def test_images_are_chosen_in_turn_of_the_first_the_second_and_both():
    truth = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [NAN, 1], [NAN, 0]])
    chosen = choose_images(truth, (0, 1), 5, seed=1)
    assert len(set(chosen)) == 5
    assert chosen[0] in (0, 4)
    assert chosen[1] in (1, 5, 6)
    assert chosen[2] == 2
    assert 3 not in choose_images(truth, (0, 1), 100)
    assert chosen == choose_images(truth, (0, 1), 5, seed=1)
    with pytest.raises(UserError, match="no image of the split"):
        choose_images(torch.zeros(4, 2), (0, 1), 3)


def test_rows_and_picture(paths, tmp_path):
    rows = paths.rows()
    assert rows[1] == {"image": 4, "class": "$cat", "layer": "two", "a=x": pytest.approx(0.4), "b": pytest.approx(0.3)}
    assert len(rows) == 6
    with Image.open(io.BytesIO(paths.picture())) as drawn:
        assert min(drawn.size) > 500
    assert paths.save(tmp_path / "t.png").exists()
    with pytest.raises(UserError, match="end the name"):
        paths.save(tmp_path / "t.pdf")


def test_a_deeper_cut_is_deeper():
    def cut(place):
        spec = {"name": "convnet", "widths": (8, 10, 12), "cut": place}
        return build({"backbone": spec, "evidence": "features", "readout": "linear"}, ("x", "y"), seed=0)

    depths = [depth_of(cut(place)) for place in ("stage1", "stage2.norm1", "stage2", "stage3")]
    assert depths == sorted(depths)
    assert len(set(depths)) == 4


def test_both_concepts_need_an_axis(make_axes, make_model):
    model = make_axes()
    assert axis_numbers(model, ("size=big", "dots"), "r") == [5, 3]
    with pytest.raises(UserError, match=r"no axis for 'dotz'.*dots"):
        axis_numbers(model, ("dotz", "dots"), "r")
    with pytest.raises(UserError, match="two different"):
        axis_numbers(model, ("dots", "dots"), "r")
    with pytest.raises(UserError, match="'r' has no axes inside the network: its units are concepts"):
        axis_numbers(make_model("concepts"), ("dots", "size=big"), "r")
