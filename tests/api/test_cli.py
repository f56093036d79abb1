"""The command line: what a user types, and what bad input gets."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat

import numpy as np
import pytest
from PIL import Image

from vitrarium.cli import VERBS, main


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def copy_of_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *arguments):
    """Status 2 and one message on standard error, which is returned."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vitrarium: ")
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)
    assert main([]) == 0


@pytest.mark.parametrize(
    "kind", ["presets", "data", "evidence", "readouts", "terms", "events", "metrics", "policies", "experiments"]
)
def test_list(kind, capsys):
    assert main(["list", kind]) == 0
    assert capsys.readouterr().out.strip()


def test_list_backbones(capsys):
    assert main(["list", "backbones", "*resnet1*"]) == 0
    assert "timm/resnet18" in capsys.readouterr().out
    assert main(["list", "backbones", "--show", "convnet"]) == 0
    assert "stage4" in capsys.readouterr().out


def test_print_config(capsys):
    assert main(["train", "model=cbm_hard", "train.epochs=3", "--print-config"]) == 0
    said = capsys.readouterr().out
    assert "activation: hard" in said
    assert "epochs: 3" in said


def test_predict(tiny_run, picture, capsys):
    assert main(["predict", str(tiny_run.folder), str(picture), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    group = tiny_run.source.concepts.groups[0]
    correction = f"{group.name}={group.values[1]}"
    assert main(["predict", str(tiny_run.folder), str(picture), "--do", correction, "--json"]) == 0
    corrected = json.loads(capsys.readouterr().out)
    assert corrected["units"][correction] == 1.0
    assert correction in corrected["corrected"]
    assert plain["units"][correction] != 1.0
    assert main(["predict", str(tiny_run.folder), str(picture)]) == 0


def test_names_are_printed_as_they_are(tiny_run, picture, capsysbinary):
    """Brackets are no markup, and a name that is no text comes out as the bytes it is."""
    odd = picture.parent / "[red]leaf\udcff[bold].png"
    try:
        picture.rename(odd)
    except OSError:
        pytest.skip("this file system takes no such name")

    def printed(*arguments):
        assert main(["predict", str(tiny_run.folder), str(odd), *arguments]) == 0
        return capsysbinary.readouterr().out

    assert b"[red]leaf\xff[bold].png" in printed().replace(b"\n", b"")
    assert printed("--columns", "label").splitlines()[1].startswith(os.fsencode(odd))
    table = picture.parent / "answers[red].csv"
    assert os.fsencode(table) in printed("-o", str(table))


def test_predict_under_bans_scores_and_silence(tiny_run, picture, capsys):
    def said(*corrections):
        asked = [part for correction in corrections for part in ("--do", correction)]
        assert main(["predict", str(tiny_run.folder), str(picture), "--json", *asked]) == 0
        return json.loads(capsys.readouterr().out)

    found = said("thorns=silent", "petal_colour=red=score:0.3")
    assert found["units"]["thorns"] == 0.0
    assert found["units"]["petal_colour=red"] == pytest.approx(0.3)
    assert found["corrected"] == ["petal_colour=red", "thorns"]
    twice = said("everywhere=ban:0,0,0.5,1", "everywhere=ban:0.5,0,1,0.5")
    assert twice["corrected"] == ["everywhere"]
    assert twice == said("everywhere=ban:0,0,0.5,1+0.5,0,1,0.5")
    assert twice["units"] != said("everywhere=ban:0,0,0.5,1")["units"]


@pytest.mark.parametrize("ending", ["png", "html", "json"])
def test_explain(ending, tiny_run, picture, tmp_path, capsys):
    out = tmp_path / f"why.{ending}"
    assert main(["explain", str(tiny_run.folder), str(picture), "-o", str(out)]) == 0
    assert out.stat().st_size > 500
    assert str(out) in capsys.readouterr().out.replace("\n", "")


def test_intervene_evaluate_compare(tiny_run, tmp_path, capsys):
    assert main(["intervene", str(tiny_run.folder), "--trials", "2", "-o", str(tmp_path / "i")]) == 0
    assert (tmp_path / "i" / "curves.png").exists()
    assert main(["evaluate", str(tiny_run.folder), "--split", "val"]) == 0
    assert (tiny_run.folder / "evaluation-val" / "results.csv").exists()
    assert main(["compare", str(tiny_run.folder), "-o", str(tmp_path / "report"), "--examples", "1"]) == 0
    assert (tmp_path / "report" / "index.html").exists()
    assert "accuracy" in capsys.readouterr().out


class TestRefusals:
    def test_verbs_and_options(self, capsys):
        assert "did you mean 'train'" in refused(capsys, "trian")
        assert "did you mean 'cbm'" in refused(capsys, "train", "model=cmb")
        assert "did you mean 'size'" in refused(capsys, "train", "data.sizee=3")
        assert "did you mean 'concepts'" in refused(capsys, "train", "loss.concept=3")
        assert "did you mean 'presets'" in refused(capsys, "list", "preset")
        assert "unrecognized" in refused(capsys, "list", "presets", "--hepl")
        assert "did you mean 'quick'" in refused(capsys, "experiment", "quik")

    def test_names_and_values(self, tiny_run, picture, capsys):
        run = tiny_run.folder
        assert "did you mean 'petal_colour'" in refused(capsys, "predict", run, picture, "--do", "petal_color=red")
        assert "cannot be 'mauve'" in refused(capsys, "predict", run, picture, "--do", "petal_colour=mauve")
        assert "is no correction" in refused(capsys, "predict", run, picture, "--do", "red")
        box = ("predict", run, picture, "--do", "thorns=ban:0,0,0.5,0.5")
        assert "is set and also kept" not in refused(capsys, *box[:3], "--do", "thorns=ban:0.5,0,0.2,1")
        assert "set twice" in refused(capsys, *box, "--do", "thorns=yes")
        assert "would ban nothing" in refused(capsys, *box[:3], "--do", "thorns=ban:0,0,0.01,0.01")
        assert "did you mean" in refused(capsys, "explain", run, picture, "--against", "firebow")
        assert "did you mean 'random'" in refused(capsys, "intervene", run, "--policy", "randon")
        assert ".pdf" in refused(capsys, "explain", run, picture, "-o", "why.pdf")

    def test_runs(self, picture, tmp_path, capsys):
        assert "no run or model" in refused(capsys, "predict", tmp_path / "none", picture)
        assert "holds no model" in refused(capsys, "predict", tmp_path, picture)
        assert "no run folder" in refused(capsys, "evaluate", tmp_path)
        assert "index" not in refused(capsys, "compare", tmp_path)

    def test_images(self, tiny_run, tmp_path, capsys):
        run = tiny_run.folder
        text = tmp_path / "text.png"
        text.write_text("no image")
        assert "is no image" in refused(capsys, "predict", run, text)
        assert "does not exist" in refused(capsys, "predict", run, tmp_path / "none.png")
        whole = tmp_path / "whole.jpg"
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(whole)
        cut = tmp_path / "cut.jpg"
        cut.write_bytes(whole.read_bytes()[:300])
        assert "cannot be decoded" in refused(capsys, "predict", run, cut)
        bomb = tmp_path / "bomb.png"
        Image.new("1", (20000, 20000)).save(bomb)
        assert "pixels" in refused(capsys, "predict", run, bomb)

    def test_odd_images_are_taken(self, tiny_run, tmp_path):
        for name, image in {
            "one.png": Image.new("RGB", (1, 1)),
            "grey.png": Image.new("L", (30, 20)),
            "alpha.png": Image.new("RGBA", (30, 20)),
            "palette.gif": Image.new("P", (30, 20)),
            "cmyk.jpg": Image.new("CMYK", (30, 20)),
            "sixteen.png": Image.fromarray(np.full((20, 30), 40000, np.uint16)),
        }.items():
            image.save(tmp_path / name)
            assert main(["predict", str(tiny_run.folder), str(tmp_path / name), "--json"]) == 0

    def test_foreign_and_damaged_models(self, copy_of_run, picture, tmp_path, capsys):
        weights = copy_of_run / "model" / "model.safetensors"

        class Payload:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "executed"),))

        good = weights.read_bytes()
        weights.write_bytes(pickle.dumps(Payload()))
        assert "pickle" in refused(capsys, "predict", copy_of_run, picture)
        assert not (tmp_path / "executed").exists()
        weights.write_bytes(good[: len(good) // 2])
        assert "damaged" in refused(capsys, "predict", copy_of_run, picture)
        weights.write_bytes(good)
        config = copy_of_run / "model" / "config.json"
        described = json.loads(config.read_text())
        described["spec"]["backbone"]["widths"] = [4, 4]
        config.write_text(json.dumps(described))
        assert "another model" in refused(capsys, "predict", copy_of_run, picture)
        config.write_text("{")
        assert "cannot be read" in refused(capsys, "predict", copy_of_run, picture)

    def test_an_existing_folder_is_not_touched(self, copy_of_run, tiny, capsys):
        before = {p: p.stat().st_mtime_ns for p in copy_of_run.rglob("*")}
        assert "add --resume" in refused(capsys, "train", "model=cbm", *tiny, "-o", copy_of_run)
        assert before == {p: p.stat().st_mtime_ns for p in copy_of_run.rglob("*")}

    def test_a_loss_that_explodes_names_its_term(self, tiny, tmp_path, capsys):
        said = refused(capsys, "train", "model=cbm", *tiny, "train.lr=1e30", "train.warmup=0", "-o", tmp_path / "run")
        assert "loss term" in said
        assert "last good checkpoint" in said

    def test_more_than_the_data_gives(self, tiny, tmp_path, capsys):
        root = tmp_path / "plain"
        for split in ("train", "val", "test"):
            for label in ("a", "b"):
                (root / split / label).mkdir(parents=True)
                for i in range(3):
                    Image.new("RGB", (16, 16), (i * 40, 0, 90)).save(root / split / label / f"{i}.png")
        own = [t for t in tiny if not t.startswith("data.")]
        said = refused(
            capsys, "train", "model=cbm", "data=folder", f"data.root={root}", "data.size=16", *own, "-o", tmp_path / "r"
        )
        assert "concepts" in said
        assert not (tmp_path / "r").exists()
        assert (
            main(
                [
                    "train",
                    "model=blackbox",
                    "data=folder",
                    f"data.root={root}",
                    "data.size=16",
                    *own,
                    "-o",
                    str(tmp_path / "r"),
                ]
            )
            == 0
        )

    def test_a_folder_that_cannot_be_written(self, tiny, tmp_path, capsys):
        blocked = tmp_path / "file"
        blocked.write_text("in the way")
        said = refused(capsys, "train", "model=blackbox", *tiny, "-o", blocked / "run")
        assert "cannot be written" in said

    def test_a_full_disk_keeps_what_was_there(self, copy_of_run, monkeypatch):
        import vitrarium as vt
        from vitrarium.models import folder

        model = vt.load(copy_of_run)
        before = (copy_of_run / "model" / "model.safetensors").read_bytes()

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(folder, "save_file", full)
        with pytest.raises(vt.UserError, match="No space left"):
            folder.save_model(model, copy_of_run / "model")
        assert (copy_of_run / "model" / "model.safetensors").read_bytes() == before
        assert not list(copy_of_run.glob("*.part"))

    def test_a_read_only_model_folder_can_still_be_read(self, copy_of_run, picture):
        for path in [*copy_of_run.rglob("*"), copy_of_run]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        try:
            assert main(["predict", str(copy_of_run), str(picture), "--json"]) == 0
        finally:
            for path in [copy_of_run, *copy_of_run.rglob("*")]:
                path.chmod(path.stat().st_mode | stat.S_IWUSR)
