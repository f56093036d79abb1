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
        to_plain(compose([f"data={option}", "data.root=x"] if option == "folder" else [f"data={option}"]))
    for option in options("experiment"):
        compose_experiment(option)
