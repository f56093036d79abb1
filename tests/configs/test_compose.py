from __future__ import annotations

import pytest

from vitrarium.configs.compose import compose, compose_experiment, options, to_plain, to_yaml
from vitrarium.configs.errors import UserError


def test_layers_win_in_order(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("train: {epochs: 7, lr: 0.5}\ndefaults:\n  - data: wbcatt\n")
    config = to_plain(compose(["train.lr=0.25"], own))
    assert (config["train"]["epochs"], config["train"]["lr"]) == (7, 0.25)
    assert config["data"]["name"] == "wbcatt"
    assert to_plain(compose(["data=flowers"], own))["data"]["name"] == "flowers"


def test_an_option_inherits_and_replaces_whole_recipes():
    config = to_plain(compose(["model=cbm_sequential", "train.epochs=4"]))
    assert list(config["recipe"]) == ["concepts", "readout"]
    assert config["recipe"]["concepts"]["epochs"] == 4
    assert config["model"]["evidence"] == {"name": "concepts", "activation": "sigmoid"}
    assert config["model"]["family"] == "concept bottleneck"


def test_a_stage_can_be_overridden_by_name():
    config = to_plain(compose(["model=cbm", "recipe.joint.epochs=3", "recipe.joint.do.kind=random"]))
    assert config["recipe"]["joint"]["epochs"] == 3
    assert config["recipe"]["joint"]["do"]["kind"] == "random"


def test_an_event_can_be_set_and_added_by_name():
    settings = ["model=cbm_sequential", "recipe.readout.events.fit_readout.strengths=[0.1]"]
    config = to_plain(compose([*settings, "recipe.readout.events.calibrate.low=0.2"]))
    assert config["recipe"]["readout"]["events"] == {
        "fit_readout": {"when": "start", "strengths": [0.1]},
        "calibrate": {"low": 0.2},
    }


@pytest.mark.parametrize(
    ("overrides", "part", "left"),
    [
        (["model.evidence.name=features"], "evidence", {"name": "features"}),
        (["model.evidence={name: features}"], "evidence", {"name": "features"}),
        (["model.evidence.name=concepts"], "evidence", {"name": "concepts", "activation": "sigmoid"}),
        (["model.evidence.name=top", "model.evidence.k=3"], "evidence", {"name": "top", "k": 3}),
        (["model.evidence.k=3", "model.evidence.name=top"], "evidence", {"name": "top", "k": 3}),
        (["model.readout.name=mlp", "model.readout.hidden=[8]"], "readout", {"name": "mlp", "hidden": [8]}),
    ],
)
def test_another_part_does_not_inherit_options(overrides, part, left):
    config = to_plain(compose(["model=cbm", *overrides]))
    assert config["model"][part] == left
    other = {"evidence": "readout", "readout": "evidence"}[part]
    assert config["model"][other] == to_plain(compose(["model=cbm"]))["model"][other]


def test_another_backbone_does_not_inherit_options(tmp_path):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "wide.yaml").write_text(
        "backbone: {name: convnet, widths: [64], weights: w.safetensors}\n"
    )

    def backbone(*overrides, config=None):
        return to_plain(compose(["backbone=wide", *overrides], config, [tmp_path]))["backbone"]

    assert backbone("backbone.cut=stage1")["widths"] == [64]
    assert backbone("backbone.cut=layer2", "backbone.name=timm/resnet18") == {"name": "timm/resnet18", "cut": "layer2"}
    assert backbone("backbone.module=mine.Net") == {"name": "module", "module": "mine.Net"}
    own = tmp_path / "own.yaml"
    own.write_text("backbone: {name: resnet20}\n")
    assert backbone(config=own) == {"name": "resnet20"}
    own.write_text("backbone: {cut: stage1}\n")
    assert backbone(config=own)["weights"] == "w.safetensors"


def test_a_preset_that_names_another_part_starts_from_it(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("defaults: [model/cbm]\nmodel: {evidence: {name: features}}\n")
    assert to_plain(compose([f"model={preset}"]))["model"]["evidence"] == {"name": "features"}
    preset.write_text("defaults: [model/cbm]\nmodel: {evidence: {side: 4}}\n")
    evidence = {"name": "concepts", "activation": "sigmoid", "side": 4}
    assert to_plain(compose([f"model={preset}"]))["model"]["evidence"] == evidence


def test_own_folders_and_paths_are_options(tmp_path):
    (tmp_path / "model").mkdir()
    preset = tmp_path / "model" / "mine.yaml"
    preset.write_text("defaults: [model/cbm]\nmodel: {preset: mine}\n")
    assert compose(["model=mine"], folders=[tmp_path]).model.preset == "mine"
    assert compose([f"model={preset}"]).model.preset == "mine"


def test_plus_adds_a_group(tmp_path):
    (tmp_path / "imitation").mkdir()
    (tmp_path / "imitation" / "gentle.yaml").write_text("loss: {gentle: 0.5}\n")
    config = compose(["+imitation=gentle"], folders=[tmp_path])
    assert dict(config.loss) == {"cross_entropy": 1.0, "concepts": 3.0, "gentle": 0.5}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=cmb"], "unknown model preset 'cmb'; did you mean 'cbm'"),
        (["data=flower"], "did you mean 'flowers'"),
        (["train.epoch=3"], "unknown key 'train.epoch'; did you mean 'epochs'"),
        (["trian.epochs=3"], "unknown key 'trian'; did you mean 'train'"),
        (["train.epochs=abc"], "'train.epochs'.*'abc'"),
        (["train.schedule=cosin"], "cosine"),
        (["recipe.jiont.epochs=1"], "did you mean 'joint'"),
        (["recipe.joint.epoch=1"], "did you mean 'epochs'"),
        (["data=folder"], "no value for data.root"),
        (["nonsense"], "is no override"),
        (["+imitation=energy"], "unknown configuration group 'imitation'"),
        (["seed=x"], "'seed'"),
    ],
)
def test_refusals_are_one_message_with_the_cure(overrides, said):
    with pytest.raises(UserError, match=said) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [unclosed\n")
    with pytest.raises(UserError, match=r"broken.yaml.*no valid YAML"):
        compose(config=broken)
    broken.write_text("trian: {epochs: 3}\n")
    with pytest.raises(UserError, match="did you mean 'train'"):
        compose(config=broken)
    with pytest.raises(UserError, match="does not exist"):
        compose(config=tmp_path / "none.yaml")


def test_yaml_round_trips(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose(["model=cbm_independent", "train.epochs=2"])))
    again = to_plain(compose(["model=cbm_independent"], path))
    assert again == to_plain(compose(["model=cbm_independent", "train.epochs=2"]))


def test_experiments_sort_their_overrides():
    settings = compose_experiment("quick", ["seeds=[4,5]", "train.epochs=1", "sweep.loss.concepts=.1,1"])
    assert list(settings.seeds) == [4, 5]
    assert settings.overrides[-1] == "train.epochs=1"
    assert settings.sweep["cbm"]["loss.concepts"] == [0.1, 1]
    assert settings.baseline not in settings.sweep


def test_every_shipped_option_composes():
    for group in ("model", "backbone", "train"):
        for option in options(group):
            to_plain(compose([f"{group}={option}"]))
    for option in options("data"):
        to_plain(compose([f"data={option}", "data.root=x"]))
    for option in options("experiment"):
        compose_experiment(option)
