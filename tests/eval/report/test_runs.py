"""Reading run folders: what is there, and what is refused."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from vitrarium.configs.errors import UserError
from vitrarium.eval.records import read_records, write_records
from vitrarium.eval.report import compare, read_run


def test_a_run_is_read(run):
    folder = run("cbm", 2, sweep={"loss.concepts": 0.1})
    found = read_run(folder)
    assert (found.preset, found.title, found.family) == ("cbm", "CBM (joint)", "concept bottleneck")
    assert (found.backbone, found.data, found.seed, found.split) == ("convnet", "wbcatt", 2, "test")
    assert found.sweep == {"loss.concepts": 0.1}
    assert found.setting("loss.concepts") == 0.1
    assert found.setting("loss.nothing.deeper") is None
    assert found.minutes == pytest.approx(json.loads((folder / "progress.json").read_text())["seconds"] / 60)
    assert len(found.curves) == 3 * 2 * 12
    assert found.model["class_names"][0] == "Basophil"
    assert read_run(run("blackbox")).curves == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: shutil.rmtree(f), "does not exist"),
        (lambda f: (f / "config.yaml").unlink(), "is no run folder"),
        (lambda f: (f / "progress.json").unlink(), "no progress.json"),
        (lambda f: (f / "progress.json").write_text('{"finished": false}'), "has not finished training"),
        (lambda f: (f / "progress.json").write_text('{"finished": true}'), "how long training took"),
        (lambda f: (f / "progress.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "evaluation" / "results.csv").unlink(), "has not been evaluated"),
        (lambda f: (f / "evaluation" / "results.csv").write_text("a,b\n1,2\n"), "is no table of results"),
        (lambda f: write_records(f / "evaluation" / "results.csv", []), "holds no results"),
        (lambda f: (f / "evaluation" / "curves.csv").write_text("a,b\n1,2\n"), "is no table of intervention curves"),
        (lambda f: (f / "config.yaml").write_text("seed: 1\n"), r"model\.preset"),
        (lambda f: (f / "config.yaml").write_text("a: [1\n"), "cannot be read"),
        (lambda f: (f / "environment.json").write_text("["), "cannot be read"),
    ],
)
def test_what_is_no_finished_evaluated_run_is_refused(run, spoil, problem):
    folder = run()
    spoil(folder)
    with pytest.raises(UserError, match=problem) as caught:
        read_run(folder)
    assert caught.value.cure, "says what to do"


def test_a_folder_of_runs_is_refused_by_naming_them(run):
    folder = run()
    with pytest.raises(UserError, match=r"holds 1 runs but is none itself.*cbm-wbcatt-0"):
        read_run(folder.parent)
    with pytest.raises(UserError, match="is a file"):
        read_run(folder / "config.yaml")


def test_the_message_names_the_command_that_helps(run):
    folder = run()
    (folder / "evaluation" / "results.csv").unlink()
    with pytest.raises(UserError, match=f"vitrarium evaluate {folder}"):
        read_run(folder)


def test_nothing_or_mixed_things_cannot_be_compared(run):
    with pytest.raises(UserError, match="no runs to compare"):
        compare([])
    one, two = run("cbm"), run("blackbox")
    path = two / "evaluation" / "results.csv"
    records = read_records(path)
    for record in records:
        record.split = "val"
    write_records(path, records)
    with pytest.raises(UserError, match=r"different splits \(test, val\)"):
        compare([one, two])
    with pytest.raises(UserError, match="did you mean 'cbm'"):
        compare([one], baseline="cbn")
    with pytest.raises(UserError, match="has no pictures"):
        compare([one], examples=[{"title": "x"}])
    with pytest.raises(UserError, match="does not exist"):
        compare([one], examples=[{"title": "x", "png": {"cbm": one / "no.png"}}])


def test_the_same_folder_twice_is_one_run(run):
    folder = run()
    found = compare([folder, str(folder), folder / ".." / folder.name])
    assert len(found.runs) == 1
    assert math.isnan(found.rows[0].cell("accuracy").sd)
