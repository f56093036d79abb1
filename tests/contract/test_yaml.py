"""Every shipped YAML runs: presets, backbones, data sets, training options, experiments."""

from __future__ import annotations

import csv

import pytest

import vitrarium as vt
from vitrarium.configs.compose import compose_experiment, options
from vitrarium.experiments import plan_runs

PRESETS = options("model")
# Two batches of 8.
SHORT = ("data.train=16", "train.epochs=1")


def wide_enough(preset):
    """An axis for each concept needs more channels than a tiny network has."""
    return ["backbone.widths=[8,32]"] if preset.startswith("concept_whitening") else []


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_and_are_measured(preset, tiny, tmp_path):
    run = vt.fit(f"model={preset}", *tiny, *SHORT, *wide_enough(preset), out=tmp_path / "run")
    evaluation = vt.evaluate(run)
    assert 0 <= evaluation.value("accuracy") <= 1
    model = vt.load(run.folder)
    units = model.evidence.units
    if units.truth == "concept":
        curves = vt.intervene(run, trials=2)
        assert {c.policy for c in curves} == {"random"} | ({"uncertainty"} if units.probability != "none" else set())
    else:
        with pytest.raises(vt.UserError, match="no concept as truth"):
            vt.intervene(run)


@pytest.mark.parametrize("backbone", options("backbone"))
def test_backbones(backbone, tiny, tmp_path):
    own = [t for t in tiny if not t.startswith("backbone.")]
    vt.fit("model=cbm", f"backbone={backbone}", *own, *SHORT, out=tmp_path / "run")


@pytest.mark.parametrize("train", options("train"))
def test_training_options(train, tiny, tmp_path):
    vt.fit("model=blackbox", f"train={train}", *tiny, *SHORT, out=tmp_path / "run")


@pytest.mark.parametrize("data", ["wbcatt", "wbcatt_small"])
def test_blood_cells(data, tiny, tmp_path, real_data):
    own = [t for t in tiny if not t.startswith("data.")]
    run = vt.fit("model=cbm", f"data={data}", "data.size=16", *own, "train.epochs=0", "recipe.joint.select=[]",
                 "train.batch_size=512", out=tmp_path / "run")  # fmt: skip
    evaluation = vt.evaluate(run)
    scopes = {r.scope for r in evaluation.records}
    assert {"all", "without duplicates", "second annotator", "grey", "pixels16"} <= scopes
    assert evaluation.value("human_agreement", "second annotator") == pytest.approx(0.956, abs=0.001)


@pytest.mark.parametrize("name", options("experiment"))
def test_experiments_plan(name, tmp_path):
    settings = compose_experiment(name)
    from omegaconf import OmegaConf

    plan = plan_runs(OmegaConf.to_container(settings), tmp_path)
    assert len({p.folder for p in plan}) == len(plan) >= len(settings.presets)


def test_some_presets_have_overrides_of_their_own(tmp_path):
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(compose_experiment("animals"))
    seen = {p.config["model"]["preset"]: p.config for p in plan_runs(settings, tmp_path)}
    assert seen["protopnet_cosine"]["model"]["evidence"]["per_class"] == 5
    assert seen["cbm"]["train"]["epochs"] == seen["protopnet_cosine"]["train"]["epochs"] == 30
    few = OmegaConf.to_container(compose_experiment("animals", ["presets=[cbm]"]))
    assert len(plan_runs(few, tmp_path)) == 1
    few["own_overrides"] = {"cmb": ["seed=1"]}
    with pytest.raises(vt.UserError, match="'cmb', which is no preset"):
        plan_runs(few, tmp_path)


def test_an_experiment_runs_once_and_compares(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [t for t in tiny if t.startswith(("data.", "backbone.", "evaluation.", "train."))]
    overrides = ["presets=[blackbox,cbm]", "sweep.loss.concepts=.1", "examples=1", *small, *SHORT]
    comparison, page = vt.experiment("quick", *overrides)
    assert page == tmp_path / "runs" / "quick" / "report" / "index.html" or page.resolve().exists()
    assert len(comparison.runs) == 3
    with (page.parent / "results.csv").open(newline="") as file:
        assert {r["preset"] for r in csv.DictReader(file)} == {"blackbox", "cbm"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("model.safetensors")}
    vt.experiment("quick", *overrides)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("model.safetensors")}
