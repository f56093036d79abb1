"""What a folder holds is seen from its names; where nothing is seen, the message helps."""

from __future__ import annotations

import pytest
from builders import write_csv, write_folder, write_image, write_wbcatt

from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.recognition import above, recognise
from vitrarium.data.source import LAYOUTS


def test_class_folders(tmp_path):
    write_folder(tmp_path)
    seen = recognise(tmp_path)
    assert list(seen) == ["folder"]
    assert seen["folder"].because == "2 folders of images (cat, dog)"
    assert build_source({**seen["folder"].spec, "size": 16}).class_names == ("cat", "dog")


def test_split_folders_and_what_lies_beside(tmp_path):
    write_folder(tmp_path, base="Train/")
    write_csv(tmp_path / "concepts.csv", ("image", "spots"), [("Train/cat/cat0.png", "yes")])
    (tmp_path / "maps").mkdir()
    assert recognise(tmp_path)["folder"].because == "Train/ with 2 folders of images (cat, dog), concepts.csv, maps"


def test_wbcatt(tmp_path):
    seen = recognise(write_wbcatt(tmp_path))
    assert list(seen) == ["wbcatt"]
    assert "pbc_attr_v1_train.csv" in seen["wbcatt"].because
    assert build_source(seen["wbcatt"].spec).name == "wbcatt"


def test_the_plain_folder_comes_last(tmp_path):
    write_wbcatt(tmp_path)
    write_folder(tmp_path, base="train/")
    assert list(recognise(tmp_path)) == ["wbcatt", "folder"]


def test_nothing_known_says_what_each_layout_looks_like_and_what_was_found(tmp_path):
    root = tmp_path / "own" / "things"
    write_csv(root / "pbc_attr_v1_trian.csv", ("a",), [("1",)])
    for number in range(3):
        write_image(root / f"{number}.png")
    (root / "notes").mkdir()
    with pytest.raises(UserError) as refused:
        recognise(root)
    said = str(refused.value)
    assert "found 3 .png, 1 .csv, 1 sub-folder (notes)" in said
    assert "'pbc_attr_v1_trian.csv' is nearly 'pbc_attr_v1_train.csv'" in said
    for name in LAYOUTS.list():
        assert f"\n  {name}: {LAYOUTS.get(name).__doc__.strip().splitlines()[0]}" in said


def test_human_maps_are_not_taken_for_images_one_level_down(tmp_path):
    write_folder(tmp_path / "own", base="leaves/")
    write_folder(tmp_path / "own", base="maps/")
    with pytest.raises(UserError) as refused:
        recognise(tmp_path / "own")
    assert "own/leaves' (folder" in str(refused.value)
    assert "/maps'" not in str(refused.value)


def test_every_layout_says_in_its_first_line_what_it_looks_like():
    for name in LAYOUTS.list():
        first = (LAYOUTS.get(name).__doc__ or "").strip().split("\n")[0]
        assert any(sign in first for sign in (".txt", ".csv", ".npz", "/")), name


def test_one_level_too_high_or_too_low(tmp_path):
    write_folder(tmp_path / "pets")
    with pytest.raises(UserError, match=r"holds no data set itself; did you mean '.*/pets' \(folder: 2 folders"):
        recognise(tmp_path)
    with pytest.raises(UserError, match=r"did you mean '.*/pets' \(folder"):
        recognise(tmp_path / "pets" / "cat")


def test_a_part_of_a_larger_set_is_known_as_one(tmp_path):
    write_folder(tmp_path / "pets", base="train/")
    write_folder(tmp_path / "pets", base="test/", count=2)
    assert "is folder by train/ with 2 folders" in above(tmp_path / "pets" / "train")
    assert above(tmp_path / "pets") is None
    write_folder(write_wbcatt(tmp_path / "cells") / "other")
    assert "is wbcatt by" in above(tmp_path / "cells" / "other")


@pytest.mark.parametrize(("name", "words"), [("a.zip", "unpack it"), ("b.tar.gz", "unpack it"), ("c.csv", "is a file")])
def test_files_are_no_folders(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        recognise(tmp_path / name)


def test_an_archive_inside_is_named(tmp_path):
    (tmp_path / "birds.tgz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'birds\.tgz' is an archive: unpack it"):
        recognise(tmp_path)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="it is empty"):
        recognise(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        recognise(tmp_path / "nowhere")
