"""Explanations as files: JSON round trip, self-contained pages, pictures."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.eval.explanations import Explanation, explain, heat, sheet, words

MODELS = [
    ("features", "linear"),
    ({"name": "concepts"}, "linear"),
    ({"name": "concepts", "side": 3}, {"name": "mlp", "hidden": (8,)}),
    ({"name": "concepts", "bottleneck": False}, "linear"),
]


@pytest.mark.parametrize(("evidence", "readout"), MODELS)
def test_json_round_trip(model, image, tmp_path, evidence, readout):
    do = {"thorns": "yes"} if evidence != "features" else None
    found = explain(model(evidence, readout), image, do=do)
    path = found.save(tmp_path / "deep" / "why.json")
    again = Explanation.load(path)
    assert again.to_dict() == found.to_dict()
    np.testing.assert_array_equal(again.image, found.image)
    np.testing.assert_allclose(again.reasons[0].map, found.reasons[0].map, rtol=1e-6)
    assert again.sentence() == found.sentence()
    assert [e.running for e in again.ledger()] == [e.running for e in found.ledger()]
    data = json.loads(path.read_text())
    assert data["ledger"][-1]["running"] == pytest.approx(found.logit.label, abs=1e-4)
    assert data["reasons"][0]["difference"] == found.reasons[0].share.difference


@pytest.mark.parametrize(("evidence", "readout"), MODELS)
def test_page_needs_nothing_else(model, image, tmp_path, evidence, readout):
    found = explain(model(evidence, readout), image)
    text = found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(?:src|href)\s*=\s*(?![\"'](?:data:|#))", text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count('src="data:image/png;base64,') == 1 + sum(r.map is not None for r in found.shown)
    assert found.sentence().split(" because")[0] in text
    for reason in found.shown:
        assert reason.title in text
        assert words.signed(reason.share.difference) in text
    assert words.plain(found.logit.label) in text


def test_page_shows_notes_and_escapes_names(model, image, tmp_path):
    names = ("<b>bold</b>", "a & b", "c$d$")
    built = model(classes=names)
    text = explain(built, image).save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert "<b>bold</b>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    box = explain(model("features"), image).save(tmp_path / "box.html").read_text(encoding="utf-8")
    assert "nobody has given them a meaning" in box
    beside = explain(model({"name": "concepts", "bottleneck": False}), image).save(tmp_path / "m.html").read_text()
    assert "the decision never sees them" in beside
    corrected = explain(model(), image, do={"leaf": "long"}).save(tmp_path / "do.html").read_text(encoding="utf-8")
    assert "Corrected by hand: leaf = long" in corrected
    assert ">corrected</span>" in corrected
    rough = explain(model(readout={"name": "mlp", "hidden": (4,)}), image).save(tmp_path / "r.html").read_text()
    assert "Approximate" in rough
    assert "add up exactly" not in rough


def test_picture_takes_names_with_signs_of_mathematics(model, image):
    assert explain(model(classes=("c$d$", "$", "a_b^c")), image).card()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("evidence", "readout"), MODELS)
def test_picture_is_a_png_without_overlapping_columns(model, image, tmp_path, evidence, readout):
    found = explain(model(evidence, readout), image, top=3)
    path = found.save(tmp_path / "why.PNG")
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[1] == 1800
    assert (picture[:20] == 255).all(), "a white margin"
    assert (picture[:, -30:] == 255).all(), "nothing runs over the right edge"
    card = np.asarray(Image.open(io.BytesIO(found.card())).convert("RGB"))
    assert card.shape[1] == 960
    assert (card[:, -8:] == 255).all()


def test_other_suffixes_are_refused(model, image, tmp_path):
    found = explain(model(), image)
    with pytest.raises(UserError, match=r"\.png, \.html, \.json"):
        found.save(tmp_path / "why.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        found.save(tmp_path / "file" / "why.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"], "nothing half-written is left"


def test_strange_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("not json")
    for name in ("a.json", "b.json"):
        with pytest.raises(UserError, match="is no explanation"):
            Explanation.load(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        Explanation.load(tmp_path / "c.json")


def test_map_caption_tells_the_true_resolution(model, image):
    said = words.map_words(explain(model(), image))
    assert "4 × 4 cells" in said
    assert "16 × 16 pixels" in said


def test_heat_is_strongest_where_the_map_is(image):
    unit_map = np.zeros((4, 4), np.float32)
    unit_map[1, 2] = 5.0
    stretched = heat.upsample(unit_map, (64, 64))
    row, column = np.unravel_index(stretched.argmax(), stretched.shape)
    assert 16 <= row < 32
    assert 32 <= column < 48
    assert stretched.min() >= 0
    assert stretched.max() <= 5.0
    grey = np.full((16, 16, 3), 128, np.uint8)
    over = heat.overlay(grey, unit_map, 64).astype(int)
    plain = over[60, 4]
    assert np.ptp(plain) <= 2, "no colour where the unit saw nothing"
    assert np.ptp(over[24, 40]) > 60, "colour where it responded"
    flat = heat.overlay(grey, np.ones((4, 4), np.float32), 64)
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0


def test_image_survives_its_data_address(image):
    np.testing.assert_array_equal(heat.from_data_address(heat.data_address(heat.png(image))), image)


@pytest.mark.parametrize(
    ("value", "text"), [(1.234, "+1.23"), (-0.5, "\N{MINUS SIGN}0.50"), (0.001, "0.00"), (-0.001, "0.00")]
)
def test_signed(value, text):
    assert words.signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "50 %"), (0.9999, "> 99.9 %"), (0.0001, "< 0.1 %"), (0.034, "3.4 %"), (0.995, "99.5 %")]
)
def test_percent(value, text):
    assert words.percent(value) == text


def test_text_is_fitted_by_its_true_width():
    long = "a word that is rather longer than its column"
    fitted = sheet.short(long, 1.5, 9)
    assert fitted.endswith("…")
    assert sheet.width(fitted, 9) <= 1.5 < sheet.width(long, 9)
    assert sheet.short("short", 1.5, 9) == "short"
    lines = sheet.wrap(long, 1.5, 9)
    assert " ".join(lines) == long
    assert all(sheet.width(line, 9) <= 1.5 for line in lines)


def test_a_notebook_shows_the_card(model, image):
    found = explain(model(), image)
    shown = Image.open(io.BytesIO(found._repr_png_()))
    card = Image.open(io.BytesIO(found.card()))
    assert shown.width == 800
    assert shown.height == round(card.height * 800 / card.width)
    assert len(found._repr_png_()) < len(found.card())
