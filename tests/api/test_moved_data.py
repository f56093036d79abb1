"""Runs whose data were moved, or have changed, since they were trained."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

import vitrarium as vt
from vitrarium.cli import main

CHANGED = "not those that the model was trained on"


def draw(root):
    rng, rows = np.random.default_rng(0), ["image,warm,split"]
    for kind, colour in (("apple", (220, 40, 40)), ("lime", (40, 200, 60))):
        (root / kind).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(rng.normal(colour, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{number:02d}.png")
            part = "train" if number < 6 else "val" if number < 9 else "test"
            rows.append(f"{kind}/{number:02d}.png,{'yes' if kind == 'apple' else 'no'},{part}")
    (root / "concepts.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("moved")
    draw(folder / "fruit")
    small = [word for word in tiny if not word.startswith("data.") or word.startswith("data.size")]
    vt.fit("model=cbm", "data=folder", f"data.root={folder / 'fruit'}", *small, "train.epochs=1", out=folder / "run")
    return folder


@pytest.fixture
def moved(trained, tmp_path):
    """The run, and its data in another place; they are not where they were."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "fruit", tmp_path / "harvest")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "fruit"), str(tmp_path / "gone")))
    return tmp_path / "run", tmp_path / "harvest"


def test_the_place_of_moved_data_is_asked_for_and_taken(moved, capsys, caplog):
    run, harvest = moved
    assert main(["evaluate", str(run)]) == 2
    said = capsys.readouterr().err
    assert "gone" in said
    assert "--root" in said
    with caplog.at_level(logging.WARNING):
        assert main(["evaluate", str(run), "--root", str(harvest), "--abstain-coverage", "0.9"]) == 0
        assert main(["intervene", str(run), "--root", str(harvest), "--trials", "2"]) == 0
        assert vt.intervene(run, ["random"], trials=2, root=harvest)
        assert vt.evaluate(vt.Run(run), root=harvest).notes == []
    assert not [record for record in caplog.records if CHANGED in record.getMessage()]
    assert (run / "evaluation" / "results.csv").is_file()
    # The folder says where the data were when it was trained.
    assert vt.Run(run).config["data"]["root"].endswith("gone")


@pytest.mark.parametrize("what", ["table", "image"])
def test_data_that_have_changed_are_measured_with_a_warning(what, moved, caplog):
    run, harvest = moved
    if what == "table":
        table = harvest / "concepts.csv"
        table.write_text(table.read_text().replace("apple/00.png,yes", "apple/00.png,no"))
    else:
        Image.new("RGB", (20, 20), "blue").save(harvest / "lime" / "11.png")
    with caplog.at_level(logging.WARNING):
        evaluation = vt.evaluate(run, root=harvest)
    assert [CHANGED in record.getMessage() for record in caplog.records].count(True) == 1
    assert CHANGED in evaluation.notes[0]
    assert CHANGED in (run / "model" / "README.md").read_text()


def test_data_of_other_classes_are_still_refused(moved):
    run, harvest = moved
    (harvest / "lime").rename(harvest / "pear")
    table = harvest / "concepts.csv"
    table.write_text(table.read_text().replace("lime/", "pear/"))
    with pytest.raises(vt.UserError, match="the model knows the classes apple, lime"):
        vt.evaluate(run, root=harvest)
