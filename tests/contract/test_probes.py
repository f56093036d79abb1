"""The hard cases train through the ordinary recipe, resume, take ``do``, are saved and loaded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.data.concepts import ConceptSet
from vitrarium.models import Intervention, build

from . import probes  # noqa: F401  (registers them)
from .test_matrix import SMALL, check_export, make

RECIPES = {
    "gaussian": """
model: {preset: p, family: probe, evidence: {name: probe_gaussian}, readout: {name: linear}}
loss: {cross_entropy: 1.0, concepts: 1.0}
recipe: {joint: {epochs: 2, terms: [cross_entropy, concepts], do: {kind: random}, select: [accuracy]}}
""",
    "certified": """
model: {preset: p, family: probe, evidence: {name: probe_certified}, readout: {name: linear}}
loss: {cross_entropy: 1.0}
recipe: {joint: {epochs: 2, terms: [cross_entropy]}}
""",
    "flat": """
model: {preset: p, family: probe, evidence: {name: features}, readout: {name: linear}}
loss: {cross_entropy: 1.0, probe_flat: 0.1}
recipe: {joint: {epochs: 2, terms: [cross_entropy, probe_flat]}}
""",
}


@pytest.mark.parametrize("name", RECIPES)
def test_trains_resumes_and_is_set(name, tiny, tmp_path, dying):
    preset = tmp_path / "p.yaml"
    preset.write_text(RECIPES[name])
    settings = [f"model={preset}", *tiny, "train.save_seconds=0"]
    whole = vt.fit(*settings, out=tmp_path / "whole")

    with dying(4):
        vt.fit(*settings, out=tmp_path / "run")
    run = vt.fit(*settings, out=tmp_path / "run", resume=True)
    first, second = (load_file(r.folder / "model" / "model.safetensors") for r in (whole, run))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True, msg=key)

    model = vt.load(run.folder)
    x, units = torch.rand(2, 3, 32, 32), len(model.evidence.units)
    mask = torch.zeros(2, units, dtype=torch.bool)
    mask[0, 0] = True
    value = 0.5 if model.evidence.units.truth == "concept" else float(model(x).evidence.activations[0, 0].detach()) + 5
    before, after = model(x), model(x, Intervention(mask, torch.full((2, units), value)))
    assert float(after.evidence.activations[0, 0]) == pytest.approx(value)
    assert not torch.allclose(before.logits[0], after.logits[0])
    torch.testing.assert_close(before.logits[1], after.logits[1])


PROBES = {
    "gaussian": (SMALL, "probe_gaussian", "linear"),
    "certified": (SMALL, "probe_certified", "linear"),
}


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("name", PROBES)
def test_is_exported_or_says_why_not(name, format, tmp_path):
    backbone, evidence, readout = PROBES[name]
    check_export(make(evidence, readout, backbone), tmp_path / {"onnx": "m.onnx", "torch": "m.pt2"}[format], format)


def test_setting_one_gaussian_unit_moves_the_others():
    concepts = ConceptSet.binary(["a", "b", "c"])
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "probe_gaussian", "readout": "linear"}
    model = build(spec, ("x", "y"), concepts, seed=0).eval()
    with torch.no_grad():
        model.evidence.factor.copy_(torch.tensor([[1.0, 0, 0], [0.9, 0.4, 0], [0, 0, 1]]))
    x = torch.rand(1, 3, 16, 16)
    mask = torch.tensor([[True, False, False]])
    before, after = model(x).evidence, model(x, Intervention(mask, torch.ones(1, 3))).evidence
    assert after.activations[0, 1] > before.activations[0, 1] + 0.01
    torch.testing.assert_close(after.activations[0, 2], before.activations[0, 2])
    assert after.vector.shape == (8, 1, 3)


def test_a_certified_radius_holds():
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "probe_certified", "readout": "linear"}
    layer = build(spec, ("x", "y"), seed=0).evidence.double()
    pooled = torch.randn(50, 4, dtype=torch.float64)
    from vitrarium.models import Features

    evidence = layer(Features(pooled[:, :, None, None]))
    radius = layer.certify(evidence, bound=1.0)
    assert radius.shape == evidence.activations.shape
    push = torch.nn.functional.normalize(torch.randn(200, 50, 4, dtype=torch.float64), dim=-1) * radius[:, :1] * 0.999
    for moved in pooled + push:
        assert torch.equal(
            layer(Features(moved[:, :, None, None])).activations.argmax(1), evidence.activations.argmax(1)
        )
