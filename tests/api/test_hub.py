"""Model folders on the Hugging Face Hub, which is a folder here."""

from __future__ import annotations

import fnmatch
import shutil
import sys
import types
from pathlib import Path

import pytest
import yaml

import vitrarium as vt
from vitrarium.models.folder import CARD, CONFIG, WEIGHTS


class RepositoryNotFoundError(OSError):
    """As the hub's own, by its name."""


class Hub(types.ModuleType):
    """What we use of huggingface_hub, on a folder; a download gets its own copy, as the real one does."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.folder, self.asked, self.broken = folder, [], None

    def HfApi(self, token=None):
        self.asked.append(("token", token))
        return self

    def create_repo(self, repo_id, *, private, exist_ok, repo_type):
        if self.broken is not None:
            raise self.broken
        assert (exist_ok, repo_type) == (True, "model")
        self.asked.append(("create", repo_id, private))
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id, folder_path, repo_type, revision, commit_message, allow_patterns):
        assert repo_type == "model"
        assert commit_message
        for path in Path(folder_path).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.folder / repo_id)
        self.asked.append(("upload", revision))
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, *, revision, token, repo_type, allow_patterns):
        if self.broken is not None:
            raise self.broken
        assert repo_type == "model"
        self.asked.append(("download", revision, token))
        if not (self.folder / repo_id).is_dir():
            raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found")
        place = self.folder / "cache" / repo_id
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for path in (self.folder / repo_id).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, place)
        return str(place)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_there_and_back(hub, tiny_run):
    address = vt.push_to_hub(tiny_run, "some.body/cbm-flowers_1", private=True, token="secret")
    assert address == "https://hub/some.body/cbm-flowers_1/commit/1"
    assert ("create", "some.body/cbm-flowers_1", True) in hub.asked
    assert ("token", "secret") in hub.asked
    there = hub.folder / "some.body" / "cbm-flowers_1"
    assert {p.name for p in there.iterdir()} == {WEIGHTS, CONFIG, CARD}
    assert (there / WEIGHTS).read_bytes() == (tiny_run.folder / "model" / WEIGHTS).read_bytes()
    (there / "evil.bin").write_bytes(b"\x80\x04")
    model = vt.from_pretrained("some.body/cbm-flowers_1", revision="abc", token="t")
    assert ("download", "abc", "t") in hub.asked
    assert not (hub.folder / "cache" / "some.body" / "cbm-flowers_1" / "evil.bin").exists()
    image = vt.example("flowers", 0, size=32)
    assert model.predict(image).to_dict() == tiny_run.model.predict(image).to_dict()


def test_the_card_says_how_it_is_loaded_from_there(hub, tiny_run):
    vt.push_to_hub(tiny_run.folder, "a/b")
    card, ours = (hub.folder / "a" / "b" / CARD).read_text(), (tiny_run.folder / "model" / CARD).read_text()
    assert 'model = vt.from_pretrained("a/b")' in card
    assert "vt.load(" not in card
    assert 'model = vt.load("path/to/this/folder")' in ours
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "vitrarium"
    assert front["pipeline_tag"] == "image-classification"
    assert front["license"] == "mit"
    (result,) = front["model-index"][0]["results"]
    (accuracy,) = [m["value"] for m in result["metrics"] if m["type"] == "accuracy"]
    assert f"| class accuracy | {accuracy:.4f} |" in card


def test_a_model_folder_without_its_run(hub, tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder / "model", tmp_path / "model")
    vt.push_to_hub(tmp_path / "model", "a/b")
    assert vt.from_pretrained("a/b").class_names == tiny_run.model.class_names


def test_what_is_not_uploaded(hub, tiny_run, tmp_path):
    with pytest.raises(vt.UserError, match="no name on the hub"):
        vt.push_to_hub(tiny_run, "name")
    with pytest.raises(vt.UserError, match="has no model card"):
        vt.push_to_hub(tiny_run.model, "a/b")
    with pytest.raises(vt.UserError, match="no run or model"):
        vt.push_to_hub(tmp_path / "none", "a/b")
    shutil.copytree(tiny_run.folder, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "progress.json").write_text('{"finished": false}')
    with pytest.raises(vt.UserError, match="is not finished"):
        vt.push_to_hub(tmp_path / "unfinished", "a/b")
    shutil.copytree(tiny_run.folder / "model", tmp_path / "bare")
    (tmp_path / "bare" / CARD).unlink()
    with pytest.raises(vt.UserError, match="has no model card"):
        vt.push_to_hub(tmp_path / "bare", "a/b")
    assert not [asked for asked in hub.asked if asked[0] == "create"]


def test_what_is_not_loaded(hub, tiny_run):
    for name in ("cbm", "a/b/c", "https://hub/a/b", ""):
        with pytest.raises(vt.UserError, match="no name on the hub"):
            vt.from_pretrained(name)
    with pytest.raises(vt.UserError, match=r"404 Client Error\. Repository Not Found; check the name; a"):
        vt.from_pretrained("nobody/nothing")
    (hub.folder / "a" / "text").mkdir(parents=True)
    (hub.folder / "a" / "text" / CARD).write_text("# nothing else")
    with pytest.raises(vt.UserError, match="holds no model of ours"):
        vt.from_pretrained("a/text")
    vt.push_to_hub(tiny_run, "a/pickled")
    (hub.folder / "a" / "pickled" / WEIGHTS).write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(vt.UserError, match="it was not opened"):
        vt.from_pretrained("a/pickled")
    (hub.folder / "a" / "pickled" / CONFIG).write_text('{"model_type": "vit"}')
    with pytest.raises(vt.UserError, match="describes no Vitrarium model"):
        vt.from_pretrained("a/pickled")


def test_a_network_of_a_package_that_is_not_allowed_is_refused(hub, tiny_run):
    vt.push_to_hub(tiny_run, "a/foreign")
    config = hub.folder / "a" / "foreign" / CONFIG
    import json

    described = json.loads(config.read_text())
    described["spec"]["backbone"] = {"module": "antigravity.Net"}
    config.write_text(json.dumps(described))
    with pytest.raises(vt.UserError, match="antigravity"):
        vt.from_pretrained("a/foreign")
    assert "antigravity" not in sys.modules


def test_without_a_network(hub, tiny_run):
    hub.broken = ConnectionError("no route to host")
    with pytest.raises(vt.UserError, match=r"'a/b' could not be had: no route to host; check the network"):
        vt.from_pretrained("a/b")
    with pytest.raises(vt.UserError, match=r"'a/b' could not be written: no route to host; check the network"):
        vt.push_to_hub(tiny_run, "a/b")


def test_without_the_package(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: vt.from_pretrained("a/b"), lambda: vt.push_to_hub(tiny_run, "a/b")):
        with pytest.raises(vt.UserError, match="pip install huggingface_hub"):
            call()


def test_what_is_called_exists_in_the_real_package():
    """The hub above is ours: the names and arguments must be theirs."""
    import inspect

    import huggingface_hub as real

    def takes(function, *names):
        return set(names) <= set(inspect.signature(function).parameters)

    assert takes(real.HfApi, "token")
    assert takes(real.HfApi.create_repo, "repo_id", "private", "exist_ok", "repo_type")
    assert takes(
        real.HfApi.upload_folder,
        *("repo_id", "folder_path", "repo_type", "revision", "commit_message", "allow_patterns"),
    )
    assert takes(real.snapshot_download, "repo_id", "revision", "token", "repo_type", "allow_patterns")
    from huggingface_hub import errors

    from vitrarium.hub import CURES

    assert all(hasattr(errors, name) for name in CURES)
