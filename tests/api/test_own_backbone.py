"""Somebody's own network: two lines of Python, one line of YAML, and what of other people's weights matched."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from torch import nn

import vitrarium as vt
from vitrarium.cli import main
from vitrarium.configs.allowed import find_named
from vitrarium.configs.compose import compose, to_plain

PACKAGE = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("imported").touch()

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(x)).mean((2, 3)))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``mypkg`` in the current directory, not allowed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRARIUM_ALLOW", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "net.yaml").write_text("backbone: {module: mypkg.Net, cut: stage2, options: {width: 3}}\n")
    yield tmp_path / "mypkg"
    sys.modules.pop("mypkg", None)


class Own(nn.Module):
    """A network that no configuration can name."""

    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Conv2d(width, 6, 3, 2, 1)

    def forward(self, x):
        return self.second(self.first(x)).relu()


@pytest.fixture(scope="module")
def small(tiny):
    """A short run; the backbone is said elsewhere."""
    return [override for override in tiny if not override.startswith("backbone")]


@pytest.fixture(scope="module")
def handed(small, tmp_path_factory):
    """A run whose backbone was handed over."""
    torch.manual_seed(0)
    network = Own()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = vt.fit("model=cbm", *small, out=tmp_path_factory.mktemp("own") / "run", backbone=network)
    return run, network, before


def test_two_lines_of_python():
    backbone = vt.backbone(Own(), cut="first", mean=0.5, std=0.25)
    model = vt.build({"name": "flowers", "size": 32, "train": 24, "val": 12, "test": 12}, backbone=backbone, seed=0)
    output = model(torch.rand(2, 3, 32, 32))
    assert output.logits.shape == (2, len(model.class_names))
    output.logits.sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    with pytest.raises(vt.UserError, match=r"no option 'men'; did you mean 'mean'"):
        vt.backbone(Own(), men=0.5)


def test_a_network_handed_over_is_trained_as_a_copy(handed):
    run, network, before = handed
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    trained = run.model.backbone.network.state_dict()
    assert any(not torch.equal(trained[name], value) for name, value in before.items())
    written = yaml.safe_load((run.folder / "config.yaml").read_text())["backbone"]
    assert written["module"].endswith("test_own_backbone.Own")
    assert set(written) == {"name", "module", "structure"}
    assert "test_own_backbone.Own" in (run.folder / "model" / "README.md").read_text()


def test_its_run_is_evaluated_resumed_and_loaded_with_its_like(handed, small):
    run, network, _ = handed
    assert vt.evaluate(run).value("accuracy") >= 0
    with pytest.raises(vt.UserError, match="handed over as an object"):
        vt.load(run.folder)
    with pytest.raises(vt.UserError, match="its structure is"):
        vt.load(run.folder, backbone=Own(width=5))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(vt.load(run.folder, backbone=Own())(x).logits, run.model(x).logits)
    assert vt.fit("model=cbm", *small, out=run.folder, resume=True, backbone=Own()).finished
    assert vt.fit(out=run.folder, resume=True, backbone=network).model(x).logits.equal(run.model(x).logits)
    with pytest.raises(vt.UserError, match=r"another configuration \(backbone.structure\)"):
        vt.fit("model=cbm", *small, out=run.folder, resume=True, backbone=Own(width=5))


@pytest.mark.parametrize("override", ["backbone.cut=first", "backbone=resnet20", "+backbone=resnet20"])
def test_a_backbone_is_said_once(small, tmp_path, override):
    with pytest.raises(vt.UserError, match=r"handed over, and '.*backbone"):
        vt.fit("model=cbm", *small, override, out=tmp_path / "run", backbone=Own())


def test_the_command_line_explains_that_an_object_is_needed(handed, capsys):
    assert main(["evaluate", str(handed[0].folder)]) == 2
    assert "commands can load models that were trained with backbone.module" in capsys.readouterr().err


def test_one_line_of_yaml(package, small, capsys):
    overrides = ["model=cbm", *small, "backbone=net.yaml"]
    assert main(["train", *overrides, "-o", "run"]) == 2
    assert "VITRARIUM_ALLOW=mypkg" in capsys.readouterr().err
    assert not (package / "imported").exists()
    vt.allow("mypkg")
    assert main(["train", *overrides, "-o", "run"]) == 0
    assert (package / "imported").exists()
    config = yaml.safe_load((package.parent / "run" / "config.yaml").read_text())
    assert config["backbone"] == {"name": "module", "module": "mypkg.Net", "cut": "stage2", "options": {"width": 3}}
    model = vt.load("run")
    assert model.backbone.channels == 6
    assert main(["evaluate", "run"]) == 0


def test_a_model_folder_cannot_allow_itself(package, small, monkeypatch):
    vt.allow("mypkg")
    vt.fit("model=blackbox", *small, "backbone=net.yaml", out="run")
    monkeypatch.setenv("VITRARIUM_ALLOW", "")
    (package / "imported").unlink()
    for name in [n for n in sys.modules if n.partition(".")[0] == "mypkg"]:
        del sys.modules[name]
    with pytest.raises(vt.UserError, match="code of the package 'mypkg', which is not allowed: nothing was imported"):
        vt.load("run")
    assert not (package / "imported").exists()


def composed(*overrides, config=None):
    return to_plain(compose(overrides, config))["backbone"]


def test_a_module_takes_the_place_of_the_backbone_below(package, tmp_path):
    own = {"name": "module", "module": "mypkg.Net", "cut": "stage2"}
    assert composed("backbone=net.yaml") == {**own, "options": {"width": 3}}
    assert composed("backbone.module=mypkg.Net", "backbone.cut=stage2") == own
    (tmp_path / "run.yaml").write_text("backbone: {module: mypkg.Net, cut: stage2}\n")
    assert composed(config="run.yaml") == own
    # Whoever says both means both, and the registry refuses what does not go together.
    assert composed("backbone.module=mypkg.Net", "backbone.name=convnet")["name"] == "convnet"
    assert main(["train", "backbone.module=mypkg.Net", "backbone.name=convnet", "-o", "both"]) == 2


def test_show_lists_cuts_at_a_size_and_what_of_some_weights_matches(package, capsys):
    vt.allow("mypkg")
    assert main(["list", "backbones", "--show", "mypkg.Net", "--size", "40"]) == 0
    said = capsys.readouterr().out
    for text in ("40 x 40 x 3", "stage2", "10 x 10", "432"):
        assert text in said
    network = find_named("mypkg.Net")
    state = {n: v for n, v in network().state_dict().items() if not n.startswith("stage1")}
    torch.save({**state, "stage2.0.bias": torch.zeros(3), "more": torch.zeros(1)}, "w.pt")
    assert main(["list", "backbones", "--show", "mypkg.Net", "--weights", "w.pt"]) == 0
    said = capsys.readouterr().out
    for text in ("missing: stage1.0.weight", "not used: more", "of another shape: stage2.0.bias"):
        assert text in said
    assert main(["list", "backbones", "--show", "net.yaml", "--size", "32"]) == 0
    assert "8 x 8" in capsys.readouterr().out
    for wrong in (["--show", "convnet", "--size", "1"], ["--size", "32"], ["--show", "convnet", "--weights", "no.pt"]):
        assert main(["list", "backbones", *wrong]) == 2


def test_weights_from_elsewhere_are_reported_in_the_run(package, small, capsys):
    vt.allow("mypkg")
    network = find_named("mypkg.Net")
    torch.save(network(width=3).state_dict(), "w.pt")
    settings = ["model=blackbox", *small, "train.epochs=1", "backbone=net.yaml"]
    assert main(["train", *settings, "backbone.weights=w.pt", "-o", "first"]) == 0
    line = "weights 'w.pt': 14 tensors loaded, 100.0% of the parameters; 2 not used (head.weight, head.bias)"
    assert line in capsys.readouterr().err
    report = json.loads((package.parent / "first" / "weights.json").read_text())["backbone.weights"]
    assert report["said"] == line
    assert report["unexpected"] == ["head.weight", "head.bias"]
    assert len(report["matched"]) == 14
    assert main(["train", *settings, "init_from=first", "model=cbm", "-o", "second"]) == 0
    said = capsys.readouterr().err
    report = json.loads((package.parent / "second" / "weights.json").read_text())["init_from"]
    assert report["said"] in said
    assert any(name.startswith("evidence.head") for name in report["missing"])
    assert "readout.linear.weight" in report["mismatched"]
    assert {name for name in report["matched"] if name.startswith("backbone.")} == {
        name for name in vt.load("second").state_dict() if name.startswith("backbone.")
    }
    # Measuring writes the card again, and does not forget.
    vt.evaluate("first")
    assert line in (package.parent / "first" / "model" / "README.md").read_text()
