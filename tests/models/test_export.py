"""Exported files answer like the model, say what they are and appear whole; what cannot be exported is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import Intervention, TransparentClassifier, build, export
from vitrarium.models.abstention import Abstention
from vitrarium.models.evidence.features import PooledFeatures
from vitrarium.models.export import export_model
from vitrarium.models.export_check import corrections, difference
from vitrarium.models.readouts.linear import Linear

CONCEPTS = ConceptSet.categorical({"colour": ("red", "blue", "white"), "thorns": (), "size": ("big", "small")})
THRESHOLD = Abstention(0.6, "margin", "risk", 0.1, None, True, 0.9, 0.05, 0.1, 100)
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}


def make(evidence="concepts", readout="linear", backbone=None, seed=0):
    spec = {"backbone": backbone or {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": readout}
    model = build(spec, ("rose", "lily", "daisy"), CONCEPTS, Preprocessing(16), seed).eval()
    model.abstention = THRESHOLD
    return model


def with_parts(layer=None, readout=None):
    """A model of parts that no registry knows."""
    given = make("features")
    layer = layer or given.evidence
    readout = readout or Linear(layer, 3)
    return TransparentClassifier(given.backbone, layer, readout, given.class_names, None, Preprocessing(16)).eval()


def run(path, image, mask, values):
    """The file without any code of ours."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path))
        return session.run(
            ["logits", "units"], {"image": image.numpy(), "mask": mask.numpy(), "values": values.numpy()}
        )
    return [t.detach().numpy() for t in torch.export.load(path).module()(image, mask, values)]


@pytest.fixture(params=FILES)
def format(request):
    return request.param


@pytest.mark.parametrize("fold", [True, False])
def test_the_file_answers_like_the_model(format, fold, tmp_path):
    model = make().train()
    exported = export_model(model, tmp_path / FILES[format], format, fold)
    assert model.training
    model.eval()
    generator = torch.Generator().manual_seed(3)
    for batch in (1, 2, 7):
        image, values = (torch.rand(batch, *shape, generator=generator) for shape in ((3, 16, 16), (6,)))
        for mask in (values < 0, values < 0.5, values >= 0):
            with torch.no_grad():
                wanted = model(image, Intervention(mask, values))
            logits, units = run(exported.path, image, mask, values)
            np.testing.assert_allclose(logits, wanted.logits.numpy(), rtol=0, atol=1e-5)
            np.testing.assert_allclose(units, wanted.evidence.activations.numpy(), rtol=0, atol=1e-5)
            np.testing.assert_array_equal(units[mask.numpy()], values[mask].numpy())
    assert exported.difference < 1e-5
    assert exported.bytes == exported.path.stat().st_size
    assert len(exported.deployed.norms) == (2 if fold else 0)


def test_it_says_what_it_is(format, tmp_path):
    path = export_model(make(), tmp_path / FILES[format], format).path
    beside = json.loads((tmp_path / "model.json").read_text())
    if format == "onnx":
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.onnx"]
        proto = onnx.load(path)
        inside = json.loads({p.key: p.value for p in proto.metadata_props}["vitrarium"])
        assert [i.name for i in proto.graph.input] == ["image", "mask", "values"]
        assert [o.name for o in proto.graph.output] == ["logits", "units"]
        assert {i.type.tensor_type.shape.dim[0].dim_param for i in proto.graph.input} == {"batch"}
    else:
        files = {"vitrarium.json": ""}
        torch.export.load(path, extra_files=files)
        inside = json.loads(files["vitrarium.json"])
    assert inside == beside
    assert beside["class_names"] == ["rose", "lily", "daisy"]
    assert beside["units"]["names"] == ["colour=red", "colour=blue", "colour=white", "thorns", "size=big", "size=small"]
    assert [g["values"] for g in beside["units"]["groups"]] == [["red", "blue", "white"], ["yes"], ["big", "small"]]
    assert beside["absent"] == [0.0] * 6
    assert beside["present"] == [1.0] * 6
    assert beside["preprocessing"] == {"size": 16}
    assert beside["abstention"]["threshold"] == 0.6
    assert beside["inputs"] == {"image": ["batch", 3, 16, 16], "mask": ["batch", 6], "values": ["batch", 6]}


def test_unknown_values_are_null(tmp_path):
    export_model(make("features"), tmp_path / "model.pt2", "torch")
    assert json.loads((tmp_path / "model.json").read_text())["absent"] == [None] * 8


def test_a_model_in_double_precision_gives_a_file_in_single(tmp_path):
    exported = export_model(make().double(), tmp_path / "model.onnx")
    logits, _ = run(exported.path, torch.rand(1, 3, 16, 16), torch.zeros(1, 6, dtype=torch.bool), torch.zeros(1, 6))
    assert logits.dtype == np.float32


VIT = {"name": "timm/test_vit", "image_size": 32}


@pytest.mark.parametrize(("backbone", "format"), [("timm/resnet10t", "onnx"), (VIT, "onnx"), (VIT, "torch")])
def test_other_backbones(backbone, format, tmp_path):
    model = make("features", "mlp", backbone)
    model.preprocessing = Preprocessing(32)
    assert export_model(model, tmp_path / FILES[format], format).difference < 1e-4


class TestTheCheck:
    def questions(self, model, wrong):
        """The difference that is found when a file is wrong in some way."""

        def answer(image, mask, values):
            output = model(image, Intervention(mask, values))
            return wrong(image, mask, values, output.logits.detach(), output.evidence.activations.detach())

        return difference(model, answer, (3, 16, 16))

    def test_finds_nothing_where_nothing_is(self):
        assert self.questions(make(), lambda i, m, v, logits, units: (logits, units)) == 0

    @pytest.mark.parametrize("evidence", ["concepts", "features"])
    def test_sees_each_input_and_output(self, evidence):
        model = make(evidence)
        plain = lambda i, m, v: model(i, Intervention(m, v))  # noqa: E731
        wrong = {
            "logits": lambda i, m, v, logits, units: (logits + 1e-3, units),
            "units": lambda i, m, v, logits, units: (logits, units + 1e-3),
            "image": lambda i, m, v, logits, units: (plain(i * 0.9, m, v).logits, units),
            "mask": lambda i, m, v, logits, units: (plain(i, m & False, v).logits, units),
            "values": lambda i, m, v, logits, units: (plain(i, m, v * 0.9).logits, units),
            "second image": lambda i, m, v, logits, units: (logits[:1].expand_as(logits), units),
        }
        for what, function in wrong.items():
            assert self.questions(model, function) > 1e-4, what

    def test_takes_nan_for_a_difference(self):
        assert self.questions(make(), lambda i, m, v, logits, units: (logits * float("nan"), units)) == float("inf")

    def test_counts_large_numbers_relative_to_their_size(self):
        model = make()
        with torch.no_grad():
            model.readout.linear.weight.mul_(1e5)
        found = self.questions(model, lambda i, m, v, logits, units: (logits * (1 + 1e-6), units))
        assert 1e-7 < found < 1e-5

    def test_asks_for_whole_groups_and_all_units(self):
        units = make().evidence.units
        asked = list(corrections(units, torch.rand(40, 6), torch.Generator().manual_seed(0)))
        assert [int(mask.sum()) for mask, _ in asked][::3] == [0, 240]
        mask, values = asked[2]
        assert 0 < mask.sum() < 240
        for members in ([0, 1, 2], [4, 5]):
            assert (mask[:, members].all(1) | ~mask[:, members].any(1)).all()
            assert torch.equal(values[:, members].sum(1), torch.ones(40))
        assert set(values[:, 3].tolist()) == {0.0, 1.0}

    def test_removes_a_file_that_answers_otherwise(self, format, tmp_path, monkeypatch):
        right = export.RUNNERS[format]

        def off(path):
            inner = right(path)
            return lambda *given: (inner(*given)[0] + 2e-4, inner(*given)[1])

        monkeypatch.setitem(export.RUNNERS, format, off)
        with pytest.raises(UserError, match=r"differs from the model by 0\.0002.*removed"):
            export_model(make(), tmp_path / "sub" / FILES[format], format)
        assert not list((tmp_path / "sub").iterdir())


class TestFiles:
    def test_what_is_there_stays(self, tmp_path):
        path = tmp_path / "model.pt2"
        path.write_text("mine")
        with pytest.raises(UserError, match="exists; add --force"):
            export_model(make(), path, "torch")
        assert path.read_text() == "mine"
        assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
        export_model(make(), path, "torch", force=True)
        assert path.stat().st_size > 1000

    def test_formats_of_one_model_share_a_description_and_others_do_not(self, tmp_path):
        export_model(make(), tmp_path / "model.pt2", "torch")
        export_model(make(), tmp_path / "model.onnx", "onnx")
        other = make("features")
        (tmp_path / "model.onnx").unlink()
        with pytest.raises(UserError, match=r"model\.json' exists"):
            export_model(other, tmp_path / "model.onnx", "onnx")

    def test_a_full_disk_leaves_what_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "model.pt2"
        path.write_text("mine")

        def full(program, path, description):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setitem(export._WRITERS, "torch", full)
        with pytest.raises(UserError, match="No space left"):
            export_model(make(), path, "torch", force=True)
        assert path.read_text() == "mine"
        assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UserError, match="cannot be written"):
            export_model(make(), tmp_path / "file" / "model.pt2", "torch")


class TestRefusals:
    def refused(self, tmp_path, model, name="model.onnx", format="onnx"):
        with pytest.raises(UserError) as caught:
            export_model(model, tmp_path / name, format)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    def test_names(self, tmp_path):
        assert "did you mean 'onnx'" in self.refused(tmp_path, make(), format="onxx")
        assert "end it in .pt2" in self.refused(tmp_path, make(), format="torch")

    def test_packages(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        said = self.refused(tmp_path, make())
        assert said == "exporting to onnx needs onnxscript; pip install 'vitrarium[export]'"

    def test_parts_that_say_so(self, tmp_path):
        class Wordy(PooledFeatures):
            def export_problem(self, format):
                return "it speaks" if format == "onnx" else None

        class Tree(Linear):
            def export_problem(self, format):
                return "it branches"

        said = self.refused(tmp_path, with_parts(layer=Wordy(8)))
        assert said.startswith("the evidence Wordy cannot be exported to onnx: it speaks; try --format torch")
        said = self.refused(tmp_path, with_parts(readout=Tree(PooledFeatures(8), 3)), "model.pt2", "torch")
        assert said.startswith("the readout Tree cannot be exported to torch: it branches; predict")

    def test_chance(self, tmp_path):
        class Drawn(PooledFeatures):
            def forward(self, features):
                evidence = super().forward(features)
                noisy = evidence.activations + torch.randn_like(evidence.activations)
                return type(evidence)(noisy, noisy)

        assert "draws random numbers" in self.refused(tmp_path, with_parts(layer=Drawn(8)))

    def test_ways_that_depend_on_the_image(self, tmp_path):
        class Split(Linear):
            def score(self, vector, evidence):
                return self.linear(vector) if vector.sum() > 0 else -self.linear(vector)

        said = self.refused(tmp_path, with_parts(readout=Split(PooledFeatures(8), 3)))
        assert "torch.export cannot follow ConvNet with PooledFeatures and Split" in said

    def test_operations_that_onnx_does_not_have(self, tmp_path):
        class Solved(Linear):
            def score(self, vector, evidence):
                return torch.linalg.solve(torch.eye(3) * 2, self.linear(vector).T).T

        model = with_parts(readout=Solved(PooledFeatures(8), 3))
        said = self.refused(tmp_path, model)
        assert "linalg_solve" in said
        assert "--format torch" in said
        assert export_model(model, tmp_path / "model.pt2", "torch").difference < 1e-5

    def test_a_model_that_does_not_know_its_images(self, tmp_path):
        model = make()
        model.preprocessing = None
        assert "size of its images" in self.refused(tmp_path, model)

    def test_more_than_one_file_holds(self, tmp_path, monkeypatch):
        monkeypatch.setattr(export, "LARGEST_ONNX", 1000)
        assert "holds 2 GB" in self.refused(tmp_path, make())


def test_weights_are_inside(tmp_path):
    """A folder with the file alone is enough."""
    model = make()
    path = export_model(model, tmp_path / "model.onnx").path
    moved = tmp_path / "elsewhere.onnx"
    path.rename(moved)
    (tmp_path / "model.json").unlink()
    x = torch.rand(1, 3, 16, 16)
    logits, _ = run(moved, x, torch.zeros(1, 6, dtype=torch.bool), torch.zeros(1, 6))
    np.testing.assert_allclose(logits, model(x).logits.detach().numpy(), atol=1e-5)
    assert sum(nn.Parameter(p).numel() for p in model.parameters()) * 4 < moved.stat().st_size
