"""Projection, pruning and the drift meter in a recipe: stopped and resumed, with kept features, in two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.models.prototypes.drift import pictures_are_current
from vitrarium.train.events.base import EVENTS, Event


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)


RECIPE = """
model:
  preset: projected
  family: test
  title: Projected
  evidence: {name: prototypes, per_class: 2, picture: 8}
  readout: {name: class_connected}
loss: {cross_entropy: 1.0}
recipe:
  joint:
    epochs: 4
    terms: [cross_entropy]
    events:
      project: {when: epoch, every: 2}
      drift: {}
  head:
    epochs: 1
    terms: [cross_entropy]
    learn: {readout: 1.0}
    events:
      again: {name: project, when: start}
      prune: {name: prune_prototypes, when: start, measure: projection}
      drift: {when: end}
"""
LEFT: dict[str, int | None] = {"steps": None}


class Killed(BaseException):
    """Stands for a process that is gone."""


if "test_die_projecting" not in EVENTS:

    @EVENTS.register("test_die_projecting")
    class Die(Event):
        def run(self, moment):
            if LEFT["steps"] is not None:
                LEFT["steps"] -= 1
                if LEFT["steps"] == 0:
                    LEFT["steps"] = None
                    raise Killed


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "projected.yaml"
    path.write_text(RECIPE)
    return f"model={path}"


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def rows(folder):
    return (folder / "metrics.csv").read_text().splitlines()


def test_stopped_amid_projections_and_resumed(preset, tiny, tmp_path):
    settings = [
        preset,
        *tiny,
        "train.save_seconds=0",
        "recipe.joint.events.die={name: test_die_projecting, when: step}",
    ]
    LEFT["steps"] = None
    vt.fit(*settings, out=tmp_path / "whole")
    LEFT["steps"] = 15  # in the epoch after a projection, once drift was measured
    with pytest.raises(Killed):
        vt.fit(*settings, out=tmp_path / "run")
    vt.fit(*settings, out=tmp_path / "run", resume=True)
    same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert sorted(rows(tmp_path / "run")) == sorted(rows(tmp_path / "whole"))
    logged = [r.split(",") for r in rows(tmp_path / "whole")]
    drift = {(r[0], r[1]): float(r[4]) for r in logged if r[3] == "drift/mean"}
    assert drift["joint", "1"] == 0.0, "just projected"
    assert drift["joint", "2"] > 0.001, "and then trained on"
    assert drift["head", "0"] < 1e-6, "the readout moves no prototype"
    assert ("joint", "0") not in drift


def test_kept_features_stand_in_for_images(preset, tiny, tmp_path):
    """The search reads features; pictures and drift are made from the images all the same."""
    run = vt.fit(
        preset, *tiny, "train.features=1", "train.freeze=[backbone]", "recipe.joint.epochs=2", out=tmp_path / "run"
    )
    sources = run.model.evidence.sources
    assert pictures_are_current(run.model)
    assert sources.picture[sources.known].any()
    assert float(sources.drift[sources.known].max()) < 1e-5


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_one_and_two_processes_agree(preset, tiny, tmp_path):
    settings = [
        *(t for t in tiny if not t.startswith("data.train")), "data.train=44", "backbone.norm=none",
        "train.precision=64-true", "train.accelerator=cpu", "train.threads=1", "recipe.joint.epochs=2",
    ]  # fmt: skip
    vt.fit(preset, *settings, out=tmp_path / "one")
    command = [sys.executable, "-m", "vitrarium", "train", preset, *settings, "-o", str(tmp_path / "two")]
    done = subprocess.run(
        [*command, "train.devices=2", "train.strategy=ddp"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    folders = ("one", "two")
    one, two = (weights(tmp_path / name) for name in folders)
    for name in one:
        # Rounding of the last bit changes the checksum.
        if name != "evidence.sources.state":
            torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-8, equal_nan=True, msg=name)
    logged = [{tuple(r.split(",")[:4]): r.split(",")[4] for r in rows(tmp_path / name)[1:]} for name in folders]
    assert logged[0].keys() == logged[1].keys()
    for key, value in logged[0].items():
        if key[3].startswith(("project/", "prune/", "drift/")):
            assert float(logged[1][key]) == pytest.approx(float(value), abs=1e-6), key
