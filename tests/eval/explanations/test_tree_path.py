"""The path of an image through a tree: told, drawn, kept."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.eval.explanations.tree import Walk, explain_path
from vitrarium.eval.explanations.tree_drawing import boxed, path_html, path_picture
from vitrarium.models import build


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    settings = ["model=prototree", "model.evidence.shared=7", *tiny]
    return vt.load(vt.fit(*settings, out=tmp_path_factory.mktemp("tree") / "run").folder)


@pytest.fixture(scope="module")
def image():
    return (np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8)


def test_it_tells_what_the_model_does(model, image):
    walk, said = explain_path(model, image), model.predict(image)
    assert walk.label == said.label
    assert next(iter(walk.answer.values())) == pytest.approx(said.probability, abs=1e-5)
    for stop in walk.stops:
        assert stop.similarity == pytest.approx(said.units[stop.name], abs=1e-6)
        assert stop.present == (stop.similarity > 0.5)
        assert stop.source is not None
        assert stop.match is not None
        assert stop.title in walk.sentence().lower()
    assert walk.after(0) == walk.stops[0].before
    assert walk.after(len(walk.stops)) == walk.answer


def test_a_correction_takes_another_path(model, image):
    first = explain_path(model, image).stops[0]
    other = explain_path(model, image, do={first.name: "no" if first.present else "yes"})
    assert other.stops[0].corrected
    assert other.stops[0].present is not first.present
    assert "as set" in path_html(other)


def test_a_soft_answer_says_that_this_is_only_its_likeliest_path(model, image):
    model.readout.decide = "soft"
    try:
        walk = explain_path(model, image)
    finally:
        model.readout.decide = "greedy"
    assert walk.decide == "soft"
    assert "likeliest path" in walk.sentence()


def test_picture_and_page(model, image):
    walk = explain_path(model, image)
    with Image.open(io.BytesIO(path_picture(walk, dpi=50))) as picture:
        assert picture.width == 600
        assert np.asarray(picture.convert("L")).std() > 5
    page = path_html(walk)
    assert page.count("<img") == 1 + 2 * len(walk.stops)
    assert all(stop.title in page for stop in walk.stops)


def test_long_paths_take_several_rows(model, image):
    walk = explain_path(model, image)
    walk.stops = walk.stops * 4
    with Image.open(io.BytesIO(path_picture(walk, dpi=30))) as long:
        walk.stops = walk.stops[:1]
        with Image.open(io.BytesIO(path_picture(walk, dpi=30))) as brief:
            assert long.width == brief.width
            assert long.height > 1.5 * brief.height


def test_names_do_not_become_markup(model, image):
    walk = explain_path(model, image)
    walk.stops[0].name, walk.answer = "<script>", {"a & b": 1.0}
    assert "<script>" not in path_html(walk)
    assert "a &amp; b" in path_html(walk)


def test_it_survives_json(model, image):
    walk = explain_path(model, image)
    again = Walk.from_dict(json.loads(json.dumps(walk.to_dict())))
    assert again.sentence() == walk.sentence()
    assert np.array_equal(again.image, walk.image)
    assert path_html(again) == path_html(walk)


def test_a_box_is_clear_and_the_rest_is_pale():
    drawn = boxed(np.zeros((10, 10, 3), dtype=np.uint8), (0.5, 0.0, 1.0, 0.5), size=100)
    assert drawn[25, 75].tolist() == [0, 0, 0]
    assert drawn[75, 25].min() > 100
    assert drawn[0, 60].tolist() == [0xF0, 0xB4, 0x00]


def test_a_readout_without_paths_is_refused(image):
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "features", "readout": "linear"}
    model = build(spec, ("a", "b"), preprocessing=Preprocessing(16)).eval()
    with pytest.raises(UserError, match="is no tree"):
        explain_path(model, torch.rand(16, 16, 3).numpy())
