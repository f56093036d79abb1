"""Units held against concepts: in Python and at the terminal, and what is refused."""

from __future__ import annotations

import csv

import pytest
import torch

import vitrarium as vt
from vitrarium.cli import main

PAIR = ("petal_colour=red", "petal_colour=violet")


@pytest.fixture(scope="module")
def blackbox(tiny, tmp_path_factory):
    return vt.fit("model=blackbox", *tiny, out=tmp_path_factory.mktemp("axes") / "blackbox")


@pytest.fixture(scope="module")
def whitened(tiny, tmp_path_factory):
    """Two runs of concept whitening, cut at two depths."""
    tiny = [override for override in tiny if "widths" not in override]
    folder = tmp_path_factory.mktemp("axes")
    tiny += ["model=concept_whitening", "backbone.widths=[40,44]", "train.epochs=1"]
    return [vt.fit(*tiny, f"backbone.cut=stage{n}.norm1", out=folder / f"deep{n}") for n in (2, 1)]


def refused(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_a_bottleneck_against_a_black_box(tiny_run, blackbox):
    report = vt.axes(tiny_run, blackbox, cut="last_norm", resamples=20, images=2, importance=False)
    assert report.against == "blackbox at stage2.norm1"
    judged = report.judged
    assert judged.has_axes
    assert {b.reduction for n, b in judged.baselines.items() if "strongest" not in n} == {"mean"}
    probabilities = []
    with torch.no_grad():
        for batch in tiny_run.data().loader("test"):
            probabilities.append(tiny_run.model(batch.image).evidence.activations)
    torch.testing.assert_close(judged.seen.said, torch.cat(probabilities))


def test_whitened_axes_are_held_against_the_layer_they_are(whitened):
    deep = whitened[0]
    report = vt.axes(deep, resamples=10, images=2)
    assert report.against == "deep2 at stage2.norm1 (its axes)"
    assert report.judged.baselines["best_filter"].reduction == deep.model.evidence.reduction
    correlation = report.judged.spaces[0].places
    assert correlation.matrix.shape == (44, 44)
    assert report.judged.importance.units == tuple(range(len(deep.source.concepts)))


def test_the_terminal(tiny_run, capsys, tmp_path):
    arguments = ["axes", tiny_run.folder, "-o", tmp_path, "--resamples", 10, "--images", 2]
    assert main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().out
    assert "axis auc" in said
    assert "held against: cbm at " in said
    assert "written: " in said
    assert (tmp_path / "axes.html").exists()


def test_trajectories(whitened, tmp_path, capsys):
    found = vt.trajectories(whitened, concepts=PAIR, images=[3, 0])
    assert found.layers == ("stage1.norm1", "stage2.norm1")
    assert found.images == (3, 0)
    assert found.paths.shape == (2, 2, 2)
    model, at = whitened[0].model, list(whitened[0].source.concepts.names).index(PAIR[1])
    said = torch.cat([model(b.image).evidence.activations.detach() for b in whitened[0].data().loader("test")])[:, at]
    wanted = float((said < said[3]).float().mean() + (said == said[3]).float().mean() / 2)
    assert float(found.paths[0, 1, 1]) == pytest.approx(wanted)
    arguments = ["axes", *(r.folder for r in whitened), "--trajectory", ",".join(PAIR), "-o", tmp_path, "--images", 3]
    assert main([str(a) for a in arguments]) == 0
    assert "layers: stage1.norm1, stage2.norm1" in capsys.readouterr().out
    assert (tmp_path / "trajectories.png").exists()
    assert len(list(csv.DictReader((tmp_path / "trajectories.csv").open()))) <= 6


def test_refused_trajectories(whitened, tiny_run, tmp_path, capsys):
    deep = whitened[0]
    with pytest.raises(vt.UserError, match="1 run is given"):
        vt.trajectories([deep], concepts=PAIR)
    with pytest.raises(vt.UserError, match="cut at the same place"):
        vt.trajectories([deep, deep], concepts=PAIR)
    with pytest.raises(vt.UserError, match="different backbones"):
        vt.trajectories([deep, tiny_run], concepts=PAIR)
    for wrong in ([99], [-1], []):
        with pytest.raises(vt.UserError, match="of a split of 24"):
            vt.trajectories(whitened, wrong, concepts=PAIR)
    with pytest.raises(vt.UserError, match="count 0"):
        vt.trajectories(whitened, concepts=PAIR, count=0)
    with pytest.raises(vt.UserError, match="no axis for 'petal_colour=rid'"):
        vt.trajectories(whitened, concepts=("petal_colour=rid", PAIR[1]))
    folders = [r.folder for r in whitened]
    assert "two concepts with a comma" in refused(capsys, "axes", *folders, "--trajectory", "petal_colour=red")
    assert "no meaning" in refused(capsys, "axes", *folders, "--trajectory", ",".join(PAIR), "--cut", "x")
    assert "several go with --trajectory" in refused(capsys, "axes", *folders)


def test_refusals(tiny_run, blackbox, tiny, tmp_path, capsys):
    assert "no module 'stage9'" in refused(capsys, "axes", blackbox.folder, "--cut", "stage9")
    assert "reduction 'meen'" in refused(capsys, "axes", blackbox.folder, "--reduction", "meen")
    for option in ("resamples", "images"):
        with pytest.raises(vt.UserError, match=f"{option}=-1"):
            vt.axes(blackbox, **{option: -1})
    with pytest.raises(vt.UserError, match="no run folder"):
        vt.axes(tmp_path)
    other = vt.fit("model=blackbox", *tiny, "data.test=16", "train.epochs=1", out=tmp_path / "other")
    with pytest.raises(vt.UserError, match="'other' was trained on 'flowers' with other files or options"):
        vt.axes(tiny_run, other)


def test_data_without_concepts_are_refused(blackbox, monkeypatch):
    run = vt.Run(blackbox.folder)
    run.source.concepts = None
    with pytest.raises(vt.UserError, match="'flowers' has no concepts"):
        vt.axes(run)
