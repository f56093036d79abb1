"""Edits of a model's units, and the journal that records them."""

import json

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build, load_model, save_model
from vitrarium.models.prototypes.edits import EDITS, Bench, build_edit
from vitrarium.models.prototypes.journal import JOURNAL, START, Entry, Journal, Score, digest

CLASSES = ("rose", "lily", "daisy")


def make(readout="class_connected", seed=0, **options):
    evidence = {"name": "prototypes", "per_class": 2, "picture": 8, **options}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": readout}
    return build(spec, CLASSES, None, Preprocessing(16), seed).eval()


def apply(model, **spec):
    with torch.no_grad():
        build_edit(spec).apply(Bench(model))


def test_a_removed_unit_says_nothing_and_its_weights_are_gone():
    model, x = make(), torch.rand(4, 3, 16, 16)
    before = model(x)
    apply(model, name="remove", unit="prototype_2")
    after = model(x)
    weight = torch.full((3,), -0.5)
    weight[1] = 1.0
    # prototype_2 belongs to class 1: what is missing is exactly what it had said.
    torch.testing.assert_close(before.logits - after.logits, before.evidence.activations[:, 2:3] * weight)
    assert not model.readout.linear.weight[:, 2].any()


def test_a_merged_unit_leaves_its_weights_to_the_other():
    model = make()
    before = model.readout.linear.weight.detach().clone()
    apply(model, name="merge", unit="prototype_0", into="prototype_1")
    after = model.readout.linear.weight
    torch.testing.assert_close(after[:, 1], before[:, 0] + before[:, 1])
    assert model.evidence.alive.tolist() == [False, True, True, True, True, True]


def test_a_merge_keeps_to_the_bounds_of_what_stays():
    model = make()
    apply(model, name="forbid", unit="prototype_1", label="lily")
    apply(model, name="require", unit="prototype_1", least=5.0)
    apply(model, name="merge", unit="prototype_0", into="prototype_1")
    # 1 + 5 to its own class, nothing to the one it may not speak of, -0.5 - 0.5 to the third.
    assert model.readout.linear.weight[:, 1].tolist() == [6.0, 0.0, -1.0]


def test_a_forbidden_unit_has_weight_zero_within_bounds():
    model = make()
    apply(model, name="forbid", unit="prototype_3", label="rose")
    assert model.readout.linear.weight[0, 3] == model.readout.lower[0, 3] == model.readout.upper[0, 3] == 0
    assert model.readout.linear.weight[1, 3] == 1
    apply(model, name="forbid", unit="prototype_3")
    assert not model.readout.linear.weight[:, 3].any()
    assert model.evidence.alive[3]


def test_a_required_unit_keeps_its_least_weight():
    model = make()
    apply(model, name="require", unit="prototype_4", least=3.0)
    assert model.readout.linear.weight[:, 4].tolist() == [-0.5, -0.5, 3.0]
    assert model.readout.lower[2, 4] == 3
    apply(model, name="forbid", unit="prototype_5")
    with pytest.raises(UserError, match="forbidden there"):
        apply(model, name="require", unit="prototype_5")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "remove", "unit": "prototype_33"}, "unknown prototype 'prototype_33'"),
        ({"name": "forbid", "unit": "prototype_1", "label": "rosy"}, "unknown class 'rosy'.*rose"),
        ({"name": "merge", "unit": "prototype_1", "into": "prototype_1"}, "into itself"),
        ({"name": "require", "unit": "prototype_1", "least": 0}, "least=0"),
        ({"name": "re_home", "unit": "prototype_1"}, "image or rank"),
        ({"name": "re_home", "unit": "prototype_1", "rank": 1}, "rank=1"),
        ({"name": "re_home", "unit": "prototype_1", "rank": 2}, "there are none"),
        ({"name": "remov", "unit": "prototype_1"}, "unknown edit 'remov'"),
    ],
)
def test_refused_edits_change_nothing(spec, message):
    model = make()
    before = digest(model)
    with pytest.raises(UserError, match=message):
        apply(model, **spec)
    assert digest(model) == before


def test_a_prototype_cannot_be_removed_twice():
    model = make()
    apply(model, name="remove", unit="prototype_0")
    with pytest.raises(UserError, match="removed before"):
        apply(model, name="remove", unit="prototype_0")


def test_the_last_prototype_of_a_class_stays():
    model = make()
    apply(model, name="remove", unit="prototype_0")
    with pytest.raises(UserError, match="last prototype of class 'rose'"):
        apply(model, name="remove", unit="prototype_1")
    with pytest.raises(UserError, match="last prototype of class 'rose'"):
        apply(model, name="merge", unit="prototype_1", into="prototype_2")


def test_bounds_need_a_readout_that_keeps_them():
    with pytest.raises(UserError, match="keeps bounds"):
        apply(make("linear"), name="forbid", unit="prototype_0")
    with pytest.raises(UserError, match="needs a linear readout"):
        apply(make("mlp"), name="merge", unit="prototype_0", into="prototype_1")


def test_only_prototypes_are_edited():
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": "features", "readout": "mlp"}
    with pytest.raises(UserError, match="units that are prototypes, not channels"):
        apply(build(spec, CLASSES), name="remove", unit="channel_0")


def test_shared_units_are_required_for_a_named_class():
    model = make("linear", shared=3)
    with pytest.raises(UserError, match="belongs to no class"):
        apply(model, name="require", unit="prototype_0")


def test_every_edit_says_what_it_does():
    said = {
        "remove": {"unit": "prototype_1"},
        "merge": {"unit": "prototype_1", "into": "prototype_2"},
        "forbid": {"unit": "prototype_1", "label": "rose"},
        "require": {"unit": "prototype_1", "least": 2.0},
        "re_home": {"unit": "prototype_1", "rank": 2},
        "name": {"unit": "prototype_1", "to": "dark rim"},
    }
    assert set(said) == set(EDITS.list())
    words = [build_edit({"name": name, **options}).words() for name, options in said.items()]
    assert words == [
        "remove prototype_1", "merge prototype_1 into=prototype_2", "forbid prototype_1 label=rose",
        "require prototype_1 least=2.0", "re-home prototype_1 rank=2", "name prototype_1 to=dark rim",
    ]  # fmt: skip


def edited():
    model = make()
    model.journal = Journal.begin(model)
    before, after = Score(0.5, {"rose": 0.5, "lily": None, "daisy": 0.5}), Score(0.75, {})
    apply(model, name="remove", unit="prototype_0")
    edit = {"name": "remove", "unit": "prototype_0"}
    model.journal.entries.append(Entry(edit, False, before, after, "2026-01-01T00:00:00+00:00"))
    model.journal.sign(model)
    return model


def test_the_journal_travels_with_the_model(tmp_path):
    model = edited()
    save_model(model, tmp_path / "model")
    assert {JOURNAL, START} <= {path.name for path in (tmp_path / "model").iterdir()}
    again = load_model(tmp_path / "model")
    assert again.journal.entries == model.journal.entries
    again.journal.require_same(again)
    again.journal.rewind(again)
    assert digest(again) == digest(make())


def test_a_journal_of_another_model_is_refused(tmp_path):
    model = edited()
    with pytest.raises(UserError, match="belongs to another model"):
        model.journal.require_same(make(seed=1))
    save_model(model, tmp_path / "model")
    (tmp_path / "model" / START).unlink()
    with pytest.raises(UserError, match="nothing could be undone"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 1}), json.dumps({"format": 99})])
def test_a_damaged_journal_is_refused(content, tmp_path):
    save_model(edited(), tmp_path / "model")
    (tmp_path / "model" / JOURNAL).write_text(content)
    with pytest.raises(UserError, match=r"is no edit journal|newer Vitrarium"):
        load_model(tmp_path / "model")


def test_a_journal_is_replayed_on_models_with_the_same_names_only():
    journal = edited().journal
    journal.require_fitting(make(seed=5))
    other = build(
        {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": "features", "readout": "linear"}, CLASSES
    )
    with pytest.raises(UserError, match="does not have"):
        journal.require_fitting(other)
    other.class_names = ("oak", "elm", "ash")
    with pytest.raises(UserError, match="made for the classes rose"):
        journal.require_fitting(other)


def test_a_required_unit_is_not_merged_away():
    model = make()
    apply(model, name="require", unit="prototype_4")
    with pytest.raises(UserError, match="'prototype_4' is required"):
        apply(model, name="merge", unit="prototype_4", into="prototype_5")
    apply(model, name="merge", unit="prototype_5", into="prototype_4")
    assert model.readout.linear.weight[2, 4] >= 1
