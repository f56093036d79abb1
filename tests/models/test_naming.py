"""Names that people give to units."""

import json

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build, load_model, save_model
from vitrarium.models.naming import can_be_named, refuse_name, with_names
from vitrarium.models.prototypes.edits import Bench, build_edit
from vitrarium.models.prototypes.journal import Entry, Journal
from vitrarium.models.units import UnitTable

CLASSES = ("rose", "lily", "daisy")
CONCEPTS = ConceptSet.categorical({"colour": ("red", "blue"), "thorns": ()})
SMALL = {"name": "convnet", "widths": (8, 8)}


def make(evidence="features", readout="linear", seed=0):
    spec = {"backbone": SMALL, "evidence": evidence, "readout": readout}
    return build(spec, CLASSES, CONCEPTS, Preprocessing(16), seed).eval()


def name(model, unit, to):
    build_edit({"name": "name", "unit": unit, "to": to}).apply(Bench(model))


NAMEABLE = [
    ("features", "channel_1"),
    ({"name": "prototypes", "per_class": 2, "picture": 8}, "prototype_1"),
    ({"name": "softmax_channels", "count": 4}, "prototype_1"),
    ({"name": "prototype_pool", "size": 5, "slots": 2}, "prototype_1"),
]


@pytest.mark.parametrize(("evidence", "unit"), NAMEABLE, ids=lambda v: str(v)[:24])
def test_a_name_is_said_everywhere_and_survives_saving(evidence, unit, tmp_path):
    model, x = make(evidence), torch.rand(2, 3, 16, 16)
    before = model(x).logits
    old = model.predict((x[0].permute(1, 2, 0) * 255).byte().numpy())
    name(model, unit, "dark rim")
    save_model(model, tmp_path / "model")
    for named in (model, load_model(tmp_path / "model"), model.deploy()):
        assert named.evidence.units.names[1] == named.readout.unit_names[1] == "dark rim"
        torch.testing.assert_close(named(x).logits, before, atol=1e-5, rtol=1e-5)
    said = model.predict((x[0].permute(1, 2, 0) * 255).byte().numpy())
    assert list(said.units.values()) == list(old.units.values())
    assert list(said.contributions)[1] == "dark rim"
    made = model.intervention({"dark rim": {"score": 0.5}})
    assert made.mask[0].nonzero().flatten().tolist() == [1]
    with pytest.raises(UserError, match="did you mean 'dark rim'"):
        model.intervention({"dark rims": {"score": 0.5}})
    with pytest.raises(UserError, match="unknown"):
        model.intervention({unit: {"score": 0.5}})
    assert json.loads((tmp_path / "model" / "config.json").read_text())["units"]["names"][1] == "dark rim"


def test_rules_of_readouts_say_the_new_name():
    model = make({"name": "prototypes", "per_class": 2, "picture": 8}, "class_connected")
    name(model, "prototype_1", "dark rim")
    assert list(model.readout.rules()[0]["weights"])[:3] == ["prototype_0", "dark rim", "prototype_2"]
    sparse = make({"name": "softmax_channels", "count": 4}, "nonnegative")
    name(sparse, "prototype_1", "dark rim")
    assert set(sparse.readout.rules()[0]["weights"]) == {"prototype_0", "dark rim", "prototype_2", "prototype_3"}
    tree = make({"name": "prototypes", "shared": 3, "similarity": "exp_l2", "picture": 8}, "soft_tree")
    name(tree, "prototype_0", "dark rim")
    assert tree.readout.rules()[0]["words"].startswith("dark rim ")
    assert tree.readout.path(tree(torch.rand(1, 3, 16, 16)).evidence)[0].steps[0].name == "dark rim"


def test_exported_metadata_say_the_new_name():
    from vitrarium.models.export import describe

    model = make()
    name(model, "channel_3", "dark rim")
    assert describe(model)["units"]["names"][3] == "dark rim"


@pytest.mark.parametrize(
    ("unit", "to", "message"),
    [
        ("channel_1", "", "neither begins nor ends"),
        ("channel_1", " rim", "neither begins nor ends"),
        ("channel_1", 3, "cannot be called 3"),
        ("channel_1", "rim=dark", "could not be corrected by name"),
        ("channel_1", "dark\nrim", "could not be corrected by name"),
        ("channel_1", "channel_2", "name of another channel"),
        ("channel_1", "channel_99", "another channel without a name"),
        ("channel_1", "everywhere", "read that as something else"),
        ("channel_1", "--do", "read that as something else"),
        ("chanel_1", "rim", "unknown channel 'chanel_1'.*did you mean 'channel_1'"),
    ],
)
def test_refused_names(unit, to, message):
    model = make()
    with pytest.raises(UserError, match=message):
        name(model, unit, to)
    assert model.evidence.units.names == make().evidence.units.names


def test_the_data_name_annotated_units():
    model = make("concepts")
    for unit in ("colour=red", "thorns"):
        with pytest.raises(UserError, match=f"'{unit}' is an annotated concept"):
            name(model, unit, "rim")


def test_free_units_beside_annotated_ones():
    table = UnitTable.with_free(CONCEPTS, "axis", 5)
    assert [can_be_named(table, m) for m in range(5)] == [False, False, False, True, True]
    # A group is said under do as well: no unit may take its name.
    with pytest.raises(UserError, match="name of another axis"):
        refuse_name(table, 3, "colour")
    named = with_names(table, [*table.names[:3], "dark rim", "axis_4"])
    assert named.names == ("colour=red", "colour=blue", "thorns", "dark rim", "axis_4")
    assert [g.members for g in named.groups] == [g.members for g in table.groups]
    assert named.judged.names == table.judged.names
    with pytest.raises(UserError, match="keep the data's name"):
        with_names(table, ["colour=red", "colour=blue", "spikes", "axis_3", "axis_4"])
    with pytest.raises(UserError, match="two axes are called 'rim'"):
        with_names(table, [*table.names[:3], "rim", "rim"])
    with pytest.raises(UserError, match="4 names are given for 5"):
        with_names(table, table.names[:4])


def test_a_unit_can_have_its_own_number_back():
    model = make()
    name(model, "channel_1", "dark rim")
    name(model, "dark rim", "channel_1")
    assert model.evidence.units.names == make().evidence.units.names


def test_a_removed_unit_is_not_named():
    model = make({"name": "prototypes", "per_class": 2, "picture": 8}, "class_connected")
    with torch.no_grad():
        build_edit({"name": "remove", "unit": "prototype_1"}).apply(Bench(model))
    with pytest.raises(UserError, match="removed before"):
        name(model, "prototype_1", "rim")


def test_a_foreign_unit_table_is_refused(tmp_path):
    model = make("concepts")
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["units"]["names"][2] = "spikes"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"unit table in .*config.json.* is not that of this model"):
        load_model(tmp_path / "model")
    # A folder of the first version has no table.
    del config["units"]
    path.write_text(json.dumps(config))
    assert load_model(tmp_path / "model").evidence.units.names == model.evidence.units.names


def entry(**edit):
    return Entry(edit, False, None, None, "2026-01-01T00:00:00+00:00")


def test_the_journal_knows_which_names_it_has_given_itself():
    model = make({"name": "prototypes", "per_class": 2, "picture": 8}, "class_connected")
    journal = Journal.begin(model)
    journal.entries = [
        entry(name="name", unit="prototype_1", to="dark rim"),
        entry(name="merge", unit="dark rim", into="prototype_0"),
    ]
    assert journal.touched() == ["prototype_1", "prototype_0"]
    journal.require_fitting(make({"name": "prototypes", "per_class": 2, "picture": 8}, "class_connected"))
    name(model, "prototype_1", "dark rim")
    journal.rewind(model)
    assert model.evidence.units.names[1] == "prototype_1"
    # A name that is used before it is given is the model's own.
    journal.entries = [entry(name="remove", unit="rim"), entry(name="name", unit="prototype_2", to="rim")]
    assert journal.touched() == ["rim", "prototype_2"]
