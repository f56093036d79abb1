"""Editing a run by hand, in Python and at the terminal; its health report."""

import csv
import json
import shutil

import pytest
import torch

import vitrarium as vt
from vitrarium.cli import main
from vitrarium.models.prototypes.journal import JOURNAL, digest

PRESET = """
model:
  preset: projected
  family: prototypes
  title: Projected
  evidence: {name: prototypes, per_class: 3, picture: 16}
  readout: {name: class_connected}
loss: {cross_entropy: 1.0}
recipe:
  joint:
    epochs: 1
    learn: {backbone: 1.0, evidence: 1.0}
    terms: [cross_entropy]
    events:
      project: {when: end}
"""


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    (folder / "projected.yaml").write_text(PRESET)
    vt.fit(f"model={folder / 'projected.yaml'}", *tiny, out=folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_an_edit_is_measured_recorded_and_taken_back(run):
    before = digest(vt.load(run))
    threshold = vt.load(run).abstention
    editor = vt.edit(run)
    first = editor.remove("prototype_0")[0]
    assert first.before.accuracy == vt_accuracy(editor, before=True, run=run)
    assert first.refit
    assert set(first.before.classes) == set(editor.model.class_names)
    again = vt.edit(run)
    assert digest(again.model) == digest(editor.model) != before
    assert [e.edit for e in again.journal.entries] == [{"name": "remove", "unit": "prototype_0"}]
    assert again.score() == first.after
    again.undo()
    assert digest(vt.load(run)) == before
    assert vt.load(run).abstention == threshold
    with pytest.raises(vt.UserError, match="the journal holds 0"):
        vt.edit(run).undo()


def vt_accuracy(editor, before, run):
    """Validation accuracy of the unedited model, by a plain pass."""
    model, right, seen = vt.load(run), 0, 0
    editor.journal.rewind(model)
    for batch in vt.Run(run).data().loader("val"):
        right += int((model(batch.image).logits.argmax(1) == batch.label).sum())
        seen += len(batch)
    return pytest.approx(right / seen)


def test_undo_keeps_the_edits_before(run):
    editor = vt.edit(run)
    editor.remove("prototype_0")
    one = digest(editor.model)
    editor.forbid("prototype_3", label=editor.model.class_names[2])
    editor.re_home("prototype_4", rank=2)
    assert [e.edit["name"] for e in editor.undo(2)] == ["forbid", "re_home"]
    assert digest(editor.model) == one == digest(vt.load(run))


def test_bounds_hold_when_the_readout_is_fitted_again(run):
    editor = vt.edit(run)
    name = editor.model.class_names[0]
    editor.forbid("prototype_0", label=name)
    editor.require("prototype_1", label=name, least=4.0)
    editor.remove("prototype_2")
    weight = editor.model.readout.linear.weight
    assert weight[0, 0] == 0
    assert weight[0, 1] >= 4
    assert not weight[:, 2].any()


def test_a_re_homed_prototype_is_the_patch_it_says(run):
    editor = vt.edit(run)
    old = int(editor.model.evidence.sources.index[3])
    editor.re_home("prototype_3", rank=2)
    sources = editor.model.evidence.sources
    assert int(sources.index[3]) != old
    sample = editor.run.source.splits["train"].sample(int(sources.index[3]))
    pixels = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        seen = editor.model(pixels).evidence
    assert float(seen.activations[0, 3]) == pytest.approx(1.0, abs=1e-5)
    row, column = sources.place[3].tolist()
    assert float(seen.maps[0, 3, row, column]) == pytest.approx(1.0, abs=1e-5)


def test_all_or_nothing(run):
    before = digest(vt.load(run))
    editor = vt.edit(run)
    with pytest.raises(vt.UserError, match="unknown prototype"):
        editor.apply([{"name": "remove", "unit": "prototype_0"}, {"name": "remove", "unit": "prototype_99"}])
    assert digest(editor.model) == before == digest(vt.load(run))
    assert not editor.journal.entries


def test_a_journal_is_replayed_on_another_run(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "other")
    vt.edit(run).remove("prototype_0", "prototype_5")
    made = vt.edit(tmp_path / "other").replay(run)
    assert [e.edit["unit"] for e in made] == ["prototype_0", "prototype_5"]
    assert digest(vt.load(tmp_path / "other")) == digest(vt.load(run))
    with pytest.raises(vt.UserError, match="removed before"):
        vt.edit(tmp_path / "other").replay(run)
    with pytest.raises(vt.UserError, match="no edit journal"):
        vt.edit(run).replay(trained)


def test_a_journal_beside_other_weights_is_refused(run, trained):
    vt.edit(run).remove("prototype_0")
    shutil.copy(trained / "model" / "model.safetensors", run / "model" / "model.safetensors")
    with pytest.raises(vt.UserError, match=f"belongs to another model.*{JOURNAL}"):
        vt.edit(run)


def test_at_the_terminal(run, capsys):
    assert main(["edit", str(run), "remove", "prototype_0", "prototype_4", "--no-refit"]) == 0
    assert main(["edit", str(run), "require", "prototype_1", "least=2"]) == 0
    assert main(["edit", str(run), "log"]) == 0
    said = capsys.readouterr().out
    assert "remove prototype_4" in said
    assert "as it was" in said
    assert main(["edit", str(run), "undo", "count=2"]) == 0
    assert "undone: remove prototype_4; require prototype_1 least=2" in capsys.readouterr().out
    assert main(["edit", str(run), "remove", "prototype_0"]) == 2
    assert "removed before" in capsys.readouterr().err
    assert main(["edit", str(run), "erase", "prototype_0"]) == 2
    assert "unknown edit 'erase'" in capsys.readouterr().err
    assert main(["edit", str(run), "remove"]) == 2
    assert "names no unit" in capsys.readouterr().err
    assert main(["edit", str(run), "undo", "prototype_0"]) == 2
    assert "count=2" in capsys.readouterr().err


def test_units_with_an_equals_sign_are_named_at_the_terminal(run, capsys, monkeypatch):
    made = []

    class Stand:
        class model:
            class evidence:
                class units:
                    names = ("colour=red", "colour=blue", "thorns")

        def apply(self, specs, refit):
            made.extend(specs)
            return []

    monkeypatch.setattr(vt, "edit", lambda *_: Stand())
    monkeypatch.setattr("vitrarium.edit_verbs.print_entries", lambda *_: None)
    assert main(["edit", str(run), "remove", "colour=red", "thorns"]) == 0
    assert main(["edit", str(run), "merge", "colour=red", "into=colour=blue"]) == 0
    assert main(["edit", str(run), "re-home", "thorns", "rank=2"]) == 0
    assert made == [
        {"name": "remove", "unit": "colour=red"},
        {"name": "remove", "unit": "thorns"},
        {"name": "merge", "unit": "colour=red", "into": "colour=blue"},
        {"name": "re_home", "unit": "thorns", "rank": 2},
    ]
    capsys.readouterr()
    assert main(["edit", str(run), "forbid", "thorns", "lable=rose"]) == 2
    assert "did you mean 'label'" in capsys.readouterr().err


def test_the_health_report(run, capsys):
    status = main(["prototypes", str(run)])
    said = capsys.readouterr().out
    assert status == (0 if ", 0 findings" in said else 3)
    with (run / "prototypes" / "health.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f", {len(rows)} findings" in said
    assert {p.name for p in (run / "prototypes").iterdir()} == {"gallery.html", "gallery.png", "health.csv"}
    assert main(["prototypes", str(run), "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert [f["unit"] for f in told["findings"]] == [r["unit"] for r in rows]


def test_suggested_commands_can_be_typed(run, capsys):
    report = vt.prototypes(run, limits={"own": 1.1, "inside": 1.0, "steadiness": 1.1})
    row = next(r for r in report.rows() if r["command"].startswith("vitrarium edit") and " remove " in r["command"])
    assert main(row["command"].split()[1:]) == 0
    with pytest.raises(vt.UserError, match="no option 'inwards'"):
        vt.prototypes(run, limits={"inwards": 1.0})


def test_a_model_without_prototypes_has_no_report(tiny_run, capsys):
    assert main(["prototypes", str(tiny_run.folder)]) == 2
    assert "has no prototypes" in capsys.readouterr().err


def test_an_edit_that_cannot_be_saved_is_not_made(run, monkeypatch):
    import vitrarium.editing

    editor = vt.edit(run)
    before, threshold = digest(editor.model), editor.model.abstention

    def full(*given):
        raise vt.UserError("the disk is full", "free some space")

    with monkeypatch.context() as patch:
        patch.setattr(vitrarium.editing, "rewrite_weights", full)
        with pytest.raises(vt.UserError, match="disk is full"):
            editor.remove("prototype_0")
    assert digest(editor.model) == digest(vt.load(run)) == before
    assert editor.model.abstention == threshold
    assert not editor.journal.entries
    editor.remove("prototype_0")
    assert digest(vt.load(run)) == digest(editor.model) != before
