"""Models with parts of other packages: what is saved of them, and what is said where they are missing."""

from __future__ import annotations

import json

import pytest

from vitrarium.configs.errors import UserError
from vitrarium.models import build, load_model, save_model
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.evidence.features import PooledFeatures
from vitrarium.models.folder import CONFIG, read_facts


@pytest.fixture
def brought():
    """Registers an evidence layer as if a module had brought it; forgotten again afterwards."""
    names = []

    def bring(module, name="birdsong"):
        EVIDENCE.register(name)(type("Birdsong", (PooledFeatures,), {"__module__": module}))
        names.append(name)
        return name

    yield bring
    for name in names:
        EVIDENCE._entries.pop(name, None)


def saved(folder, evidence):
    spec = {"backbone": {"name": "convnet", "widths": [4]}, "evidence": evidence, "readout": "linear"}
    return save_model(build(spec, ("a", "b")), folder, facts={"fingerprint": "f00"})


def plugins(folder):
    return json.loads((folder / CONFIG).read_text())["plugins"]


def test_our_own_parts_come_from_nowhere(tmp_path):
    folder = saved(tmp_path / "model", "features")
    assert plugins(folder) == {}
    assert read_facts(folder) == {"fingerprint": "f00"}


@pytest.mark.parametrize(
    ("module", "home", "said"),
    [
        ("birds.song", {"package": "big-birds 1.5"}, r"the package big-birds 1.5 \(module birds.song\): install it"),
        ("birds_file", {}, "the module birds_file, .*import it before loading"),
        ("__main__", {}, "defined in the program that trained the model"),
    ],
)
def test_a_missing_part_says_who_brought_it(module, home, said, brought, tmp_path, monkeypatch):
    info = tmp_path / "site" / "big_birds-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: big-birds\nVersion: 1.5\n")
    (info / "top_level.txt").write_text("birds\n")
    (info / "RECORD").write_text("birds/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    name = brought(module)
    folder = saved(tmp_path / "model", {"name": name})
    assert plugins(folder) == {"evidence": {"module": module, **home}}
    assert load_model(folder).evidence.units.kind == "channel"
    del EVIDENCE._entries[name]
    with pytest.raises(UserError, match=f"unknown evidence 'birdsong'; it .*{said}"):
        load_model(folder)


def test_folders_that_are_too_old_to_know_say_what_there_is(brought, tmp_path):
    name = brought("birds")
    folder = saved(tmp_path / "model", name)
    config = json.loads((folder / CONFIG).read_text())
    del config["plugins"], EVIDENCE._entries[name]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="unknown evidence 'birdsong'; known: "):
        load_model(folder)
