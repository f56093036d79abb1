"""Stopped at any moment and started again, training ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.train.callbacks import Interruption
from vitrarium.train.events.base import EVENTS, Event


class Killed(BaseException):
    """Stands for a process that is gone: nothing catches it, nothing is tidied up."""


# How many more calls of the event until the "process" dies; None = it lives.
COUNTDOWN: dict[str, int | None] = {"left": None}


if "test_die" not in EVENTS:

    @EVENTS.register("test_die")
    class Die(Event):
        default_when = "step"

        def run(self, moment):
            if COUNTDOWN["left"] is not None:
                COUNTDOWN["left"] -= 1
                if COUNTDOWN["left"] == 0:
                    COUNTDOWN["left"] = None
                    raise Killed


# Two stages, dropout by random interventions, augmentation, validation with selection: all that could go astray.
RECIPE = """
model: {preset: two, family: test, title: Two, evidence: {name: concepts}, readout: {name: linear}}
loss: {cross_entropy: 1.0, concepts: 1.0}
recipe:
  first:
    epochs: 2
    terms: [concepts]
    learn: {backbone: 1.0, evidence: 1.0}
    select: [concept_accuracy]
    events: {at_start: {name: test_die, when: start}, each: {name: test_die, when: step}, at_end: {name: test_die,
        when: end}}
  second:
    epochs: 2
    terms: [cross_entropy, concepts]
    do: {kind: random, probability: 0.5}
    select: [accuracy]
    events: {at_start: {name: test_die, when: start}, each: {name: test_die, when: epoch}}
"""
# Events in order: start, 6 steps, 6 steps, end, start, epoch, epoch.
MOMENTS = {
    "inside an epoch": 4,
    "at its last step": 7,
    "in the second epoch": 9,
    "between stages": 15,
    "second stage": 16,
}


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(RECIPE)
    return f"model={path}"


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny):
    """By number of workers: the weights of runs that never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    preset = folder / "two.yaml"
    preset.write_text(RECIPE)
    COUNTDOWN["left"] = None
    vt.fit(f"model={preset}", *tiny, "train.save_seconds=1000", out=folder / "run")
    return weights(folder / "run")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(moment, workers, preset, undisturbed, tiny, tmp_path):
    settings = [preset, *tiny, f"train.workers={workers}", "train.save_seconds=0"]
    COUNTDOWN["left"] = MOMENTS[moment]
    with pytest.raises(Killed):
        vt.fit(*settings, out=tmp_path / "run")
    assert COUNTDOWN["left"] is None
    vt.fit(*settings, out=tmp_path / "run", resume=True)
    same(weights(tmp_path / "run"), undisturbed)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == len({tuple(r.split(",")[:4]) for r in rows}), "a number was logged twice"


def test_killed_twice_with_rare_saves(preset, undisturbed, tiny, tmp_path):
    """Only epoch borders are saved: more is done again, and comes out the same."""
    settings = [preset, *tiny, "train.save_seconds=1000"]
    for left in (9, 5):
        COUNTDOWN["left"] = left
        with pytest.raises(Killed):
            vt.fit(*settings, out=tmp_path / "run", resume=True)
    vt.fit(*settings, out=tmp_path / "run", resume=True)
    same(weights(tmp_path / "run"), undisturbed)


def test_interrupted_at_the_end_of_an_epoch_loses_no_number(preset, undisturbed, tiny, tmp_path, monkeypatch):
    """The losses of an epoch reach metrics.csv after the epoch's last hook; stopping must wait for them."""
    # Asked after each step but the last, and at the end of the epoch.
    asked = iter([False] * 5 + [True] + [False] * 1000)
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "agreed", lambda self: next(asked))
        with pytest.raises(vt.Interrupted, match="after epoch 1; the state is saved"):
            vt.fit(preset, *tiny, out=tmp_path / "run")
    vt.fit(preset, *tiny, out=tmp_path / "run", resume=True)
    same(weights(tmp_path / "run"), undisturbed)
    rows = [tuple(r.split(",")[:4]) for r in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    logged = [(stage, epoch) for stage, epoch, _, name in rows if name == "train/loss/concepts"]
    assert logged == [("first", "0"), ("first", "1"), ("second", "0"), ("second", "1")]


def test_killed_while_the_model_is_written(preset, undisturbed, tiny, tmp_path, monkeypatch):
    """Training is over, the model folder is not there yet."""
    from vitrarium import training

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_model", die)
        with pytest.raises(Killed):
            vt.fit(preset, *tiny, out=tmp_path / "run")
    vt.fit(preset, *tiny, out=tmp_path / "run", resume=True)
    same(weights(tmp_path / "run"), undisturbed)


def test_accumulation_resumes_at_a_step(preset, tiny, tmp_path):
    settings = [preset, *tiny, "train.accumulate=2", "train.save_seconds=0"]
    COUNTDOWN["left"] = None
    vt.fit(*settings, out=tmp_path / "whole")
    COUNTDOWN["left"] = 3
    with pytest.raises(Killed):
        vt.fit(*settings, out=tmp_path / "run")
    vt.fit(*settings, out=tmp_path / "run", resume=True)
    same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


SCRIPT = """
import os, signal, sys
from vitrarium.cli import main
from vitrarium.train.events.base import EVENTS, Event

@EVENTS.register("stop_me")
class StopMe(Event):
    default_when = "step"
    calls = 0
    def run(self, moment):
        StopMe.calls += 1
        if StopMe.calls == 3 and os.environ.get("SIGNAL"):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def never_stopped(tiny, tmp_path_factory):
    """The weights of the run that the next test stops; the event that stops it draws nothing and changes nothing."""
    return weights(vt.fit("model=cbm", *tiny, out=tmp_path_factory.mktemp("whole") / "run").folder)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_real_process_killed_or_interrupted(number, status, tiny, tmp_path, never_stopped):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), "train", "model=cbm", *tiny, "train.save_seconds=0"]
    command += ["train.threads=1", "recipe.joint.events={stop_me: {when: step}}"]

    def call(folder, **environment):
        return subprocess.run(
            [*command, "-o", str(folder), "--resume"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    stopped = call(tmp_path / "run", SIGNAL=str(int(number)))
    assert stopped.returncode == status, stopped.stderr
    if number == signal.SIGINT:
        assert "the state is saved" in stopped.stderr
    assert call(tmp_path / "run").returncode == 0
    same(weights(tmp_path / "run"), never_stopped)


def test_a_finished_run_is_left_as_it_is(tiny, tmp_path):
    run = vt.fit("model=blackbox", *tiny, out=tmp_path / "run")
    before = (run.folder / "model" / "model.safetensors").stat().st_mtime_ns
    vt.fit("model=blackbox", *tiny, out=tmp_path / "run", resume=True)
    assert (run.folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(vt.UserError, match="exists; add --resume"):
        vt.fit("model=blackbox", *tiny, out=tmp_path / "run")
    with pytest.raises(vt.UserError, match=r"another configuration \(train.lr\)"):
        vt.fit("model=blackbox", *tiny, "train.lr=1", out=tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    run = vt.fit("model=cbm", *tiny, out=tmp_path / "run")
    other = vt.fit("model=cbm", *tiny, "backbone.widths=[4,4]", out=tmp_path / "other")
    (other.folder / "checkpoints" / "last.ckpt").replace(run.folder / "checkpoints" / "last.ckpt")
    (run.folder / "progress.json").unlink()
    snapshot = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    snapshot["stage"] = 0
    torch.save(snapshot, run.folder / "checkpoints" / "last.ckpt")
    with pytest.raises(vt.UserError, match="checkpoint of another model"):
        vt.fit("model=cbm", *tiny, out=tmp_path / "run", resume=True)


def test_a_checkpoint_that_would_execute_code_is_refused(tiny, tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    run = vt.fit("model=blackbox", *tiny, out=tmp_path / "run")
    (run.folder / "progress.json").unlink()
    (run.folder / "checkpoints" / "last.ckpt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(vt.UserError, match="no checkpoint of Vitrarium"):
        vt.fit("model=blackbox", *tiny, out=tmp_path / "run", resume=True)
    assert not (tmp_path / "executed").exists()


def test_two_processes_do_not_train_in_one_folder(tiny, tmp_path):
    from vitrarium.training import locked

    with locked(tmp_path / "run"), pytest.raises(vt.UserError, match="another process is training"):
        vt.fit("model=blackbox", *tiny, out=tmp_path / "run", resume=True)
    vt.fit("model=blackbox", *tiny, out=tmp_path / "run", resume=True)
