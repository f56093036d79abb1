"""``vitrarium export``, ``vt.export`` and the exported model that answers by name without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import vitrarium as vt
from vitrarium.cli import main
from vitrarium.models.abstention import Abstention
from vitrarium.models.export import export_model

THRESHOLD = Abstention(0.5, "probability", "risk", 0.1, None, True, 0.9, 0.05, 0.1, 100)


@pytest.fixture(scope="module")
def model(tiny_run):
    return vt.load(tiny_run.folder)


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    return vt.export(model, out=tmp_path_factory.mktemp("onnx"))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "ein Bild é.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def copy_of_run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run.folder, tmp_path / "copy")


def refused(capsys, *arguments):
    """Status 2 and one message on standard error, which is returned."""
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    return said


class TestExport:
    def test_of_a_run_lies_in_its_folder(self, copy_of_run):
        path = vt.export(copy_of_run, "torch")
        assert path == copy_of_run / "export" / "model.pt2"
        assert path.with_suffix(".json").exists()
        assert vt.load(copy_of_run) is not None

    def test_of_anything_else_lies_where_one_is(self, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert vt.export(model, "torch").resolve() == tmp_path / "export" / "model.pt2"

    def test_goes_to_a_file_or_a_folder(self, model, tmp_path):
        assert vt.export(model, "torch", tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "model.pt2"
        assert vt.export(model, "torch", tmp_path / "leaf.pt2") == tmp_path / "leaf.pt2"
        assert (tmp_path / "leaf.json").exists()


class TestCommand:
    def test_says_what_it_did(self, copy_of_run, capsys):
        assert main(["export", str(copy_of_run)]) == 0
        said = capsys.readouterr().out
        assert "2 batch norms folded" in said
        assert "largest difference from the model:" in said
        assert "ms as a model" in said
        assert "model.onnx" in said.replace("\n", "")
        assert "exists; add --force" in refused(capsys, "export", copy_of_run)
        assert main(["export", str(copy_of_run), "--force", "--no-fold"]) == 0
        assert "0 batch norms folded" in capsys.readouterr().out

    def test_refusals(self, copy_of_run, tmp_path, capsys, monkeypatch):
        assert "did you mean 'torch'" in refused(capsys, "export", copy_of_run, "--format", "troch")
        assert "no run or model" in refused(capsys, "export", tmp_path / "none")
        (tmp_path / "file").write_text("in the way")
        assert "cannot be written" in refused(
            capsys, "export", copy_of_run, "--format", "torch", "-o", tmp_path / "file" / "x"
        )
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "onnx", None)
            assert "pip install 'vitrarium[export]'" in refused(capsys, "export", copy_of_run)
        progress = copy_of_run / "progress.json"
        progress.write_text(json.dumps({**json.loads(progress.read_text()), "finished": False}))
        assert "is not finished; vitrarium train --resume" in refused(capsys, "export", copy_of_run)
        assert not (copy_of_run / "export").exists()


class TestOnnxModel:
    @pytest.mark.parametrize(
        "do",
        [None, {"petal_colour": "red"}, {"petal_colour=red": True}, "all"],
        ids=["plain", "group", "member", "all"],
    )
    def test_answers_like_the_model(self, do, model, onnx_file, picture):
        if do == "all":
            do = {g.name: g.values[-1] if g.categorical else 0.25 for g in model.concepts.groups}
        ours, theirs = model.predict(picture, do), vt.OnnxModel(onnx_file).predict(picture, do)
        assert theirs.label == ours.label
        assert theirs.corrected == ours.corrected
        assert list(theirs.probabilities) == list(ours.probabilities)
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-5)
        assert theirs.units == pytest.approx(ours.units, abs=1e-5)
        assert theirs.confidence == pytest.approx(ours.confidence, abs=1e-5)
        assert json.loads(json.dumps(theirs.to_dict()))["label"] == ours.label

    @pytest.mark.parametrize("score", ["probability", "margin"])
    def test_knows_when_not_to_answer(self, score, model, onnx_file, picture):
        plain, exported = model.predict(picture), vt.OnnxModel(onnx_file)
        assert exported.description["abstention"] == model.abstention.to_dict()
        first, second = list(plain.probabilities.values())[:2]
        sure = first - second if score == "margin" else first
        for offset, silent in ((-1e-3, False), (1e-3, True)):
            exported.description["abstention"] = replace(THRESHOLD, score=score, threshold=sure + offset).to_dict()
            said = exported.predict(picture)
            assert (said.abstained, said.label) == (silent, plain.label)
            assert said.confidence == pytest.approx(sure, abs=1e-5)
        exported.description["abstention"] = None
        assert not exported.predict(picture).abstained

    def test_takes_batches(self, model, onnx_file):
        x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = model(x)
        logits, units = vt.OnnxModel(onnx_file, threads=1)(x.numpy())
        np.testing.assert_allclose(logits, wanted.logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(units, wanted.evidence.activations.numpy(), atol=1e-5)
        mask = np.arange(units.shape[1]) == 2
        _, changed = vt.OnnxModel(onnx_file)(x.numpy(), mask, np.float64(0.125))
        assert (changed[:, 2] == 0.125).all()
        np.testing.assert_allclose(changed[:, ~mask], units[:, ~mask], atol=1e-6)

    def test_refuses_what_the_model_refuses(self, onnx_file, picture):
        model = vt.OnnxModel(onnx_file)
        for do, said in (
            ({"petal_color": "red"}, "did you mean 'petal_colour'"),
            ({"petal_colour": "mauve"}, "cannot be 'mauve'"),
            ({"petal_colour=red": "no"}, "leaves open"),
            ({"everywhere": {"ban": [0, 0, 0.5, 0.5]}}, "no places where units may not look"),
            ({"petal_colour=red": {"scor": 0.3}}, "did you mean 'score'"),
        ):
            with pytest.raises(vt.UserError, match=said):
                model.predict(picture, do)
        with pytest.raises(vt.UserError, match="does not exist"):
            model.predict("none.png")
        with pytest.raises(vt.UserError, match=r"shape \(B, 3, 8, 8\), the model takes \(B, 3, 32, 32\)"):
            model(np.zeros((1, 3, 8, 8), np.float32))

    def test_silence_and_scores_are_those_of_the_model(self, onnx_file, model, picture):
        do = {"petal_colour=red": {"score": 0.3}, "thorns": "silent"}
        said, wanted = vt.OnnxModel(onnx_file).predict(picture, do), model.predict(picture, do)
        assert said.corrected == wanted.corrected == ["petal_colour=red", "thorns"]
        assert said.units["petal_colour=red"] == pytest.approx(0.3)
        assert said.units["thorns"] == 0.0
        assert said.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)

    def test_units_that_nobody_has_named(self, picture, tmp_path):
        from vitrarium.data.preprocessing import Preprocessing
        from vitrarium.models import build

        spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "features", "readout": "linear"}
        box = build(spec, ("a", "b"), None, Preprocessing(16), seed=0).eval()
        model = vt.OnnxModel(export_model(box, tmp_path / "box.onnx").path)
        assert model.predict(picture).label == box.predict(picture).label
        with pytest.raises(vt.UserError, match="channel 'channel_1' has no activation that stands for present"):
            model.predict(picture, do={"channel_1": "yes"})
        do = {"channel_1": {"score": 2.5}}
        assert model.predict(picture, do).probabilities == pytest.approx(
            box.predict(picture, do).probabilities, abs=1e-5
        )

    def test_refuses_other_files(self, onnx_file, tmp_path, monkeypatch):
        with pytest.raises(vt.UserError, match="there is no file"):
            vt.OnnxModel(tmp_path / "none.onnx")
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(onnx_file.read_bytes()[:5000])
        with pytest.raises(vt.UserError, match="no ONNX file or damaged"):
            vt.OnnxModel(cut)
        foreign = onnx.load(onnx_file)
        del foreign.metadata_props[:]
        onnx.save(foreign, tmp_path / "foreign.onnx")
        with pytest.raises(vt.UserError, match="not written by vitrarium"):
            vt.OnnxModel(tmp_path / "foreign.onnx")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(vt.UserError, match="needs onnxruntime"):
            vt.OnnxModel(onnx_file)

    def test_needs_no_torch(self, onnx_file, picture, model):
        """In a process where torch and timm cannot be imported at all."""
        code = f"""
import json, sys
for name in ("torch", "timm", "pytorch_lightning", "torchvision"):
    sys.modules[name] = None
import vitrarium as vt
said = vt.OnnxModel({str(onnx_file)!r}).predict({str(picture)!r}, do={{"petal_colour": "red"}})
print(json.dumps(said.to_dict()))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        wanted = model.predict(picture, {"petal_colour": "red"})
        assert json.loads(done.stdout)["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
