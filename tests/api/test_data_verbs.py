"""``vitrarium data check`` and ``data show``, as they are typed."""

from __future__ import annotations

import csv
import json
import shlex

import numpy as np
import pytest
from PIL import Image

import vitrarium as vt
from vitrarium.cli import main
from vitrarium.configs.compose import compose, to_plain
from vitrarium.data import build_source
from vitrarium.data.check.report import command


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(path)


def table(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def pets(tmp_path):
    """Two classes of forty images with concepts that vary; the name has blanks, a quote and letters beyond ASCII."""
    root = tmp_path / "Ünsere Tiere: it's [new]"
    rng, rows = np.random.default_rng(0), [("image", "spots", "size", "wet")]
    for c, name in enumerate(("cat", "dog")):
        for index in range(40):
            draw(root / name / f"{name}{index}.png", 100 * c + index)
            rows.append((f"{name}/{name}{index}.png", rng.integers(2), ("big", "small", "mid")[rng.integers(3)], ""))
            rows[-1] = (*rows[-1][:3], ("0", "1", "0.5", "")[rng.integers(4)])
    table(root / "concepts.csv", *rows)
    return root


def said(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, capsys.readouterr().out


def test_a_clean_folder(pets, capsys):
    status, out = said(capsys, "data", "check", pets, "size=16")
    assert status == 0
    for words in ("2 folders of images (cat, dog)", "spots", "uncertain", "unknown", "big:", "findings: 2 notes"):
        assert words in out.replace("\n", " ")
    line = out.strip().splitlines()[-1]
    assert line.startswith("vitrarium train model=cbm data=folder ")


def build_from(line):
    """What the printed line builds."""
    words = shlex.split(line)
    assert words[:2] == ["vitrarium", "train"]
    return build_source(to_plain(compose(words[2:]))["data"])


def test_the_line_at_the_end_works(pets):
    check = vt.check_data(pets, size=16, categorical=["wet"], val_fraction=0.25)
    source = build_from(check.command)
    assert source.name == "folder"
    assert source.size == 16
    assert {row["name"]: row["images"] for row in check.splits} == {n: len(s) for n, s in source.splits.items()}
    assert source.concepts.names == tuple(row["name"] for row in check.concepts)
    assert source.fingerprint == check.source["fingerprint"]


def test_without_concepts_the_line_trains_a_black_box(pets):
    (pets / "concepts.csv").unlink()
    line = vt.check_data(pets, size=16).command
    assert "model=blackbox" in line
    assert build_from(line).concepts is None


@pytest.mark.parametrize("root", ["/a b", "/a: b", "[x]", "5", "a #b", "${x}", "it's", 'a"b', "a,b", "true", "~", "*x"])
def test_awkward_paths_survive_shell_and_yaml(root):
    line = command({"name": "folder", "root": root, "categorical": ["a", "5", "b c"]}, True)
    data = to_plain(compose(shlex.split(line)[2:]))["data"]
    assert (data["root"], data["categorical"]) == (root, ["a", "5", "b c"])


def test_json_has_everything(pets, capsys):
    (pets / "cat" / "cat0.png").write_bytes((pets / "cat" / "cat0.png").read_bytes()[:-700])
    status, out = said(capsys, "data", "check", pets, "size=16", "--json")
    assert status == 3
    found = json.loads(out)
    assert not found["clean"]
    assert {row["name"] for row in found["concepts"]} == {"spots", "size=big", "size=mid", "size=small", "wet"}
    [broken] = [f for f in found["findings"] if f["kind"] == "broken_file"]
    assert broken["severity"] == "error"
    assert "concepts.csv line 2" in broken["items"][0]
    assert found["spec"]["root"] == str(pets)
    assert found["concept_summary"]["ceiling"]["rows"] > 0


def test_broken_files_are_all_printed(pets, capsys):
    for index in range(12):
        path = pets / "dog" / f"dog{index}.png"
        path.write_bytes(path.read_bytes()[:-700])
    status, out = said(capsys, "data", "check", pets, "size=16")
    assert status == 3
    assert all(f"dog{index}.png" in out.replace("\n", "") for index in range(12))
    assert said(capsys, "data", "check", pets, "size=16", "--fast")[0] == 0


def test_what_cannot_be_built_is_a_finding(pets, capsys):
    for index in range(7):
        (pets / "dog" / f"dog{index}.png").write_text("words")
    check = vt.check_data(pets)
    assert [(f.kind, len(f.items)) for f in check.findings] == [("broken_file", 7)]
    assert not check.clean
    for index in range(7):
        draw(pets / "dog" / f"dog{index}.png", index)
    table(pets / "concepts.csv", ("image", "spots"), ("cat/cat0.png", "1"), ("cat/cta1.png", "1"))
    status, out = said(capsys, "data", "check", pets)
    assert status == 3
    assert "concepts.csv line 3: there is no image" in " ".join(out.split())
    assert "train on it" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "flowrs"], "did you mean 'flowers'"),
        (["check", "no/such/folder"], "does not exist"),
        (["check", "flowers", "sizee=3"], "did you mean 'size'"),
        (["check", "flowers", "classes=1"], "flowers cannot have classes=1"),
        (["check", "flowers", "size"], "is no override"),
        (["check", "flowers", "count=3"], "no data set has an option 'count'"),
        (["check", "EMPTY"], "it is empty"),
        (["check", "EMPTY", "name=flowers"], "is not read from a folder"),
        (["chekc", "flowers"], "unknown action 'chekc'; did you mean 'check'"),
        (["show", "flowers", "-o", "sheet.docx"], "is no picture file"),
        (["show", "flowers", "--class", "mooneey"], "did you mean 'mooneye'"),
        (["check", "flowers", "--fsat"], "unrecognized arguments: --fsat"),
        ([], "ACTION"),
    ],
)
def test_refusals(arguments, words, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "empty") if a == "EMPTY" else a for a in arguments]
    assert main(["data", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vitrarium: ")
    assert words in error


def test_a_name_needs_no_folder():
    check = vt.check_data("flowers", size=32, train=60, val=24, test=24)
    assert check.clean
    assert check.command == "vitrarium train model=cbm data=flowers data.size=32 data.train=60 data.val=24 data.test=24"
    assert check.images["maps"] == 108
    assert {row["name"] for row in check.parts} == {"petals", "disc", "stem", "leaves", "thorns"}
    assert vt.check_data({"name": "flowers", "train": 60}, fast=True).splits[0]["images"] == 60


def test_a_folder_called_like_a_data_set_is_the_folder(pets, monkeypatch):
    pets.rename(pets.parent / "flowers")
    monkeypatch.chdir(pets.parent)
    check = vt.check_data("flowers", size=16)
    assert check.spec["name"] == "folder"
    assert check.of("folder_taken")


def test_two_layouts_in_one_folder(pets, monkeypatch):
    from vitrarium.data.source import LAYOUTS, Recognition

    def seen(name):
        return lambda root: Recognition({"name": name, "root": str(root)}, f"{name}.txt")

    LAYOUTS.list()
    monkeypatch.setitem(LAYOUTS._entries, "wbcatt", seen("wbcatt"))
    monkeypatch.setitem(LAYOUTS._entries, "other", seen("other"))
    check = vt.check_data(pets)
    [finding] = check.of("mixed_layout")
    assert "other by other.txt; wbcatt by wbcatt.txt" in finding.message
    assert not check.clean
    assert not check.command


def test_class_folders_that_a_recognised_set_does_not_read(tmp_path, pets):
    root = tmp_path / "cells"
    header = ("img_name", "label", "granularity", "path")
    for s, split in enumerate(("train", "val", "test")):
        rows = []
        for index in range(12):
            path = f"images/{split}{index}.png"
            draw(root / path, 1000 * (s + 1) + index)
            rows.append((f"{split}{index}.png", "ab"[index % 2], ("no", "yes")[index // 2 % 2], path))
        table(root / f"pbc_attr_v1_{split}.csv", header, *rows)
    table(root / "pbc_attr_reannotations.csv", header)
    assert not vt.check_data(root, size=16).of("mixed_layout")
    pets.rename(root / "train")
    [finding] = vt.check_data(root, size=16).of("mixed_layout")
    assert finding.severity == "warning"
    assert finding.items == ("train",)
    [low] = vt.check_data(root / "train", size=16).of("too_low")
    assert "wbcatt" in low.message


def test_a_place_that_cannot_be_written_is_refused(pets, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["data", "show", str(pets), "--count", "2", "-o", str(tmp_path / "file" / "sheet.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_show(pets, tmp_path, capsys):
    out = tmp_path / "sheets" / "pets.png"
    status, printed = said(capsys, "data", "show", pets, "-o", out, "--count", "4", "size=16", "--split", "val")
    assert status == 0
    assert "pets.png" in printed
    assert [path.name for path in out.parent.iterdir()] == ["pets.png"]
    whole = Image.open(out)
    assert said(capsys, "data", "show", pets, "-o", out, "--count", "4", "size=16", "--class", "dog")[0] == 0
    assert Image.open(out).size != whole.size
    sheet = vt.show_data("flowers", which="test", count=3, size=32, train=60, val=24, test=24)
    assert sheet.width > 400
