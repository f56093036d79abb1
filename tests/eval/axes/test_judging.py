"""The whole judgement of a model, and its files."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.eval.axes.judging import judge
from vitrarium.eval.axes.looking import layer_of, look_at_layer, look_at_units
from vitrarium.eval.axes.report import AxesReport
from vitrarium.eval.axes.sheet import FRAMES, share_there, top_images
from vitrarium.eval.metrics.ranking import concept_aucs
from vitrarium.models import build
from vitrarium.models.layers.reduction import REDUCTIONS, reduce_map

SIZES = {"train": 150, "val": 60, "test": 130}


@pytest.fixture
def batches(make_batches):
    kept = {split: make_batches(images=n, batch=64, seed=s) for s, (split, n) in enumerate(SIZES.items())}
    return kept.__getitem__


def judged_of(model, batches, concepts, rival=None, **options):
    return judge(model, batches, concepts, rival or layer_of(model), **{"resamples": 30, **options})


def report_of(judged, **options):
    picture = np.full((9, 9, 3), 120, np.uint8)
    return AxesReport(judged, "Title", "here", lambda i: picture, **{"images": 3, **options})


def test_a_layer_inside_is_what_its_module_gives(make_batches):
    spec = {"backbone": {"name": "convnet", "widths": (8, 10)}, "evidence": "features", "readout": "linear"}
    model = build(spec, ("x", "y", "z"), seed=0).eval()
    norm = dict(model.backbone.network.named_modules())["stage2.norm1"]
    kept = []
    handle = norm.register_forward_hook(lambda m, i, o: kept.append(o.detach().clone()))
    pixels = make_batches(images=12, batch=12)
    with torch.no_grad():
        model(pixels[0].image)
    handle.remove()
    seen = look_at_layer(layer_of(model, "stage2.norm1"), pixels)
    for how in REDUCTIONS:
        torch.testing.assert_close(seen.reduced[how], reduce_map(kept[0], how))
    assert layer_of(model, "last_norm").name in dict(model.backbone.network.named_modules())
    whole = look_at_layer(layer_of(model), pixels, ("mean",), moments=True)
    assert whole.moments.count == 12 * model.backbone(pixels[0].image).map[0, 0].numel()
    with pytest.raises(UserError, match=r"no module 'stage2.nrm1'.*stage2.norm1"):
        layer_of(model, "stage2.nrm1")


def test_axes_are_their_own_layer(make_axes, make_batches):
    model, pixels = make_axes(), make_batches(images=20)
    seen, said = look_at_layer(layer_of(model), pixels), look_at_units(model, pixels)
    torch.testing.assert_close(seen.reduced["mean"], said.said)
    torch.testing.assert_close(said.reduced["mean"], said.said)
    assert seen.index.tolist() == list(range(20))


def test_units_are_rated_beside_the_baselines(make_axes, batches, concepts):
    model = make_axes()
    judged = judged_of(model, batches, concepts)
    seen = look_at_units(model, batches("test"))
    torch.testing.assert_close(judged.ratings["axis"].auc, concept_aucs(seen.said[:, :8], seen.truth))
    assert set(judged.ratings) == {
        "axis", "masked_axis", "best_filter", "best_filter_strongest", "linear_probe", "linear_probe_strongest",
    }  # fmt: skip
    assert judged.baselines["best_filter"].reduction == "mean"
    means = judged.means()
    assert means["gain_over_best_filter"].value == pytest.approx(
        means["axis_auc"].value - means["best_filter_auc"].value
    )
    assert judged.importance.units == tuple(range(8))
    assert [space.name for space in judged.spaces] == ["axes"]


def test_a_rival_is_another_layer(make_axes, make_model, batches, concepts):
    rival = layer_of(make_model("features", with_concepts=None))
    judged = judged_of(make_axes(), batches, concepts, rival, reduction="max", importance=False)
    assert judged.baselines["linear_probe"].reduction == "max"
    assert [space.name for space in judged.spaces] == ["axes", "last"]
    assert judged.importance is None


def test_units_that_are_no_concepts_have_no_axes(make_model, batches, concepts):
    judged = judged_of(make_model("features"), batches, concepts)
    assert not judged.has_axes
    assert any("no annotated concepts" in note for note in judged.notes)
    report = report_of(judged)
    assert set(report.pictures()) == {"axes.png", "geometry.png"}
    assert "axis_auc" not in report.rows()[0]


def test_concepts_of_a_bottleneck_are_held_against_its_backbone(make_model, batches, concepts):
    judged = judged_of(make_model("concepts"), batches, concepts, importance=False)
    assert judged.has_axes
    assert judged.spaces[0].name == "concepts"
    assert judged.baselines["best_filter"].scores.shape == (SIZES["test"], 8)


def test_files(make_axes, batches, concepts, tmp_path):
    report = report_of(judged_of(make_axes(), batches, concepts), credit="the <painter>", notes=["look out"])
    (tmp_path / "importance.csv").write_text("old")
    folder = report.write(tmp_path)
    assert {p.name for p in folder.iterdir()} == {
        "axes.csv", "axes.png", "top_images.png", "geometry.png", "importance.csv", "importance.png", "summary.csv",
        "axes.html",
    }  # fmt: skip
    rows = list(csv.DictReader((folder / "axes.csv").open()))
    assert [row["concept"] for row in rows] == list(concepts.names)
    assert float(rows[0]["axis_low"]) <= float(rows[0]["axis_auc"]) <= float(rows[0]["axis_high"])
    assert rows[3]["masked_axis_auc"] == ""
    assert rows[0]["best_filter_choice"].startswith("channel ")
    summary = {row["measure"]: row for row in csv.DictReader((folder / "summary.csv").open())}
    assert float(summary["axis_auc"]["value"]) == pytest.approx(report.judged.means()["axis_auc"].value)
    assert {"gain_over_best_filter", "share_of_gap_closed", "axis_correlation_places"} <= set(summary)
    lost = list(csv.DictReader((folder / "importance.csv").open()))
    assert len(lost) == 8 * (1 + 3)
    for name in ("axes", "top_images", "geometry", "importance"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 200
    page = (folder / "axes.html").read_text()
    assert "the &lt;painter&gt;" in page
    assert "look out" in page
    assert page.count("data:image/png") == 4
    assert "nan" not in (folder / "axes.csv").read_text()
    # Without importance and images, what an earlier report left goes away.
    plain = report_of(judged_of(make_axes(), batches, concepts, importance=False), images=0)
    plain.write(tmp_path)
    assert {p.name for p in folder.iterdir()} == {"axes.csv", "axes.png", "geometry.png", "summary.csv", "axes.html"}


def test_a_folder_that_cannot_be_written(make_axes, batches, concepts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report_of(judged_of(make_axes(), batches, concepts, importance=False)).write(tmp_path / "file")


def test_top_images_are_the_most_active_with_their_truth(make_axes, make_batches):
    model, pixels = make_axes(), make_batches(images=40, shuffled=True, missing=0.2)
    seen = look_at_units(model, pixels)
    positions, frames = top_images(seen, 8, 5)
    for k in range(8):
        order = sorted(range(40), key=lambda i: -float(seen.said[i, k]))[:5]
        assert positions[k].tolist() == [int(seen.index[i]) for i in order]
        for row, frame in zip(order, frames[k], strict=True):
            truth = float(seen.truth[row, k])
            assert frame == ("nobody knows" if truth != truth else "there" if truth > 0.5 else "not there")
            assert frame in FRAMES
    assert share_there([["there", "not there", "nobody knows"], ["nobody knows"]]).tolist()[0] == 0.5
    assert top_images(seen, 8, 100)[0].shape == (8, 40)


@pytest.mark.parametrize("positives", [0, 1])
def test_a_concept_with_no_or_one_image_is_a_row_with_a_note(make_axes, make_batches, concepts, positives, tmp_path):
    def rare(seed, images=130):
        pixels = make_batches(images=images, batch=images, seed=seed)
        truth = pixels[0].concepts.clone()
        truth[:, 3] = 0
        truth[:positives, 3] = 1
        return [replace(pixels[0], concepts=truth)]

    kept = {split: rare(n) for n, split in enumerate(SIZES)}
    judged = judged_of(make_axes(), kept.__getitem__, concepts, importance=False)
    report = report_of(judged)
    row = report.rows()[3]
    assert (row["with"], row["in_means"]) == (positives, False)
    assert (row["axis_auc"] is None) == (positives == 0)
    assert any(f"dots ({positives} with it" in note for note in judged.notes)
    assert judged.means()["axis_auc"].value == judged.means()["axis_auc"].value
    report.write(tmp_path)
    assert "nan" not in (tmp_path / "axes.html").read_text().lower().split("<table>")[-1]


def test_constant_units_score_one_half(make_axes, batches, concepts):
    model = make_axes()
    for parameter in model.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    judged = judged_of(model, batches, concepts, importance=False)
    for rating in judged.ratings.values():
        known = ~torch.isnan(rating.auc)
        assert rating.auc[known].tolist() == [0.5] * int(known.sum())
    report = report_of(judged)
    share = next(row for row in report.summary() if row["measure"] == "share_of_gap_closed")
    assert share["value"] is None
    assert report.pictures()["geometry.png"][:4] == b"\x89PNG"


def test_refusals(make_axes, make_batches, batches, concepts):
    model = make_axes()
    with pytest.raises(UserError, match=r"reduction 'meen'.*mean"):
        judged_of(model, batches, concepts, reduction="meen")
    with pytest.raises(UserError, match="fitted to the training split"):
        judged_of(model, batches, concepts, split="train")
    with pytest.raises(UserError, match="no concept annotation"):
        judged_of(model, lambda split: make_batches(with_concepts=False), concepts)
    with pytest.raises(UserError, match="no images"):
        judged_of(model, lambda split: [], concepts)
    same = [replace(b, concepts=torch.ones_like(b.concepts)) for b in make_batches()]
    with pytest.raises(UserError, match="no concept has images with and without"):
        judged_of(model, lambda split: same, concepts)
    broken = [replace(b, image=b.image * torch.nan) for b in make_batches()]
    with pytest.raises(UserError, match="not finite"):
        look_at_units(model, broken)


def test_the_validation_split_is_told_to_favour_the_baselines(make_axes, batches, concepts):
    judged = judged_of(make_axes(), batches, concepts, split="val", importance=False)
    assert any("this very split" in note for note in judged.notes)


def test_the_sheet_is_one_row_for_each_axis(make_axes, batches, concepts):
    report = report_of(judged_of(make_axes(), batches, concepts, importance=False))
    picture = Image.open(io.BytesIO(report.pictures()["top_images.png"])).convert("RGB")
    colours = {tuple(c) for c in np.asarray(picture).reshape(-1, 3)[::7]}
    assert FRAMES["there"] in colours
    assert FRAMES["not there"] in colours


def test_units_without_maps_are_compared_over_images(make_axes, make_batches, monkeypatch):
    model, pixels = make_axes(), make_batches(images=20)
    plain = model.evidence.forward
    monkeypatch.setattr(model.evidence, "forward", lambda features: plain(features).without_maps())
    seen = look_at_units(model, pixels)
    assert seen.moments.count == 20
    torch.testing.assert_close(seen.reduced["mean"], seen.said)
