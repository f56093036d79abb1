"""The gallery of prototypes as picture and page."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.eval.prototypes.gallery import SHARED, build_gallery
from vitrarium.eval.prototypes.tiles import BOX, FIELD, tile
from vitrarium.models import build
from vitrarium.models.prototypes.health import Finding

CLASSES = ("rose", "lily", "daisy")


@pytest.fixture
def model():
    spec = {
        "backbone": {"name": "convnet", "widths": (8, 8)},
        "evidence": {"name": "prototypes", "per_class": 2, "picture": 16},
        "readout": "class_connected",
    }
    model = build(spec, CLASSES, seed=0).eval()
    sources = model.evidence.sources
    sources.index[:5], sources.label[:5], sources.drift[:5] = 3, 0, 0.0
    sources.box[:5], sources.field[:5] = torch.tensor([0.25, 0.25, 0.5, 0.5]), torch.tensor([0.0, 0.0, 0.75, 0.75])
    sources.picture[:5] = 120
    return model


def test_every_living_prototype_has_its_place(model):
    model.evidence.alive[1] = False
    gallery = build_gallery(model, findings=[Finding("prototype_0", "noise", "warning", "shakes", "")])
    assert [(name, [e.unit for e in exhibits]) for name, exhibits in gallery.rooms] == [
        ("rose", ["prototype_0"]), ("lily", ["prototype_2", "prototype_3"]), ("daisy", ["prototype_4", "prototype_5"])
    ]  # fmt: skip
    first = gallery.rooms[0][1][0]
    assert first.findings == ["noise: shakes"]
    assert first.weights[0] == ("rose", 1.0)
    assert first.source == "rose, image 3"
    assert "stale" in first.drift
    assert "no source" in gallery.rooms[2][1][1].drift
    assert gallery.notes == ["1 of 6 pruned"]


def test_both_boxes_are_drawn_and_a_prototype_without_a_source_says_so(model):
    drawn = tile(model.evidence.sources, 0, 80)
    colours = {tuple(int(v) for v in pixel) for pixel in drawn.reshape(-1, 3)}
    assert {BOX, FIELD} <= colours
    # The top left corner of the yellow box lies a quarter into the picture.
    assert tuple(drawn[21, 21]) == BOX
    assert not {BOX, FIELD} & {tuple(int(v) for v in pixel) for pixel in tile(model.evidence.sources, 5).reshape(-1, 3)}


def test_it_is_saved_as_picture_and_page(model, tmp_path):
    gallery = build_gallery(model, "My prototypes", "by me")
    picture = np.asarray(Image.open(gallery.save(tmp_path / "g.png")))
    assert picture.shape[1] == 4 * 160 + 3 * 10 + 48
    page = gallery.save(tmp_path / "g.html").read_text()
    assert page.count("<figure>") == 6
    assert "Pictures: by me" in page
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(UserError, match=r"\.png or \.html"):
        gallery.save(tmp_path / "g.pdf")


def test_shared_prototypes_hang_together(model):
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": {"name": "prototypes", "shared": 3}}
    shared = build({**spec, "readout": "linear"}, CLASSES, seed=0).eval()
    assert [name for name, _ in build_gallery(shared).rooms] == [SHARED]


def test_other_models_have_no_gallery():
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": "features", "readout": "linear"}
    with pytest.raises(UserError, match="has no prototypes"):
        build_gallery(build(spec, CLASSES))
