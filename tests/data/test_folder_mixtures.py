"""Folders that are laid out in two ways at once: each is told what is wrong with it, or what was made of it."""

from __future__ import annotations

import unicodedata

import pytest
from archives import write_packed_signs
from builders import build_folder, places, write_folder, write_image

from vitrarium.configs.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, nothing else."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


def test_images_outside_class_folders_are_refused(root):
    write_image(root / "cat.png")
    with pytest.raises(UserError, match=r"the image '.*own/cat\.png' lies in no class folder; expected .*/CLASS/image"):
        build_folder(root)
    write_image(root / "dog.JPG")
    with pytest.raises(UserError, match=r"cat\.png' lies in no class folder \(and 1 more\)"):
        build_folder(root)
    with pytest.raises(UserError, match=r"cat0\.png' lies in no class folder \(and 9 more\)"):
        build_folder(root / "cat")


def test_splits_without_train_are_refused(root):
    write_image(root / "test" / "a.png")
    with pytest.raises(UserError, match=r"own' holds 'test', but no 'train'; expected .*\{train,val,test\}/CLASS"):
        build_folder(root)
    write_image(root / "val" / "a.png")
    with pytest.raises(UserError, match="holds 'test' and 'val', but no 'train'"):
        build_folder(root)


def test_tables_of_other_layouts_are_refused(root):
    (root / "train_test_split.txt").write_text("1 0\n")
    with pytest.raises(UserError, match=r"holds train_test_split\.txt, tables of the layout of CUB-200-2011"):
        build_folder(root)
    (root / "train_test_split.txt").unlink()
    write_packed_signs(root)
    with pytest.raises(
        UserError, match=r"is laid out like the data set 'gtsrb': gtsrb32_train.*set data=gtsrb data\.root="
    ):
        build_folder(root)


def test_folders_inside_class_folders_are_told(root, tmp_path):
    write_image(root / "cat" / "old" / "a.png", 5)
    assert "folders inside class folders are part of their class: cat/old/" in build_folder(root).notes
    for camera in ("left", "right"):
        write_folder(tmp_path / "nested" / "first", (camera,))
        write_folder(tmp_path / "nested" / "second", (camera,), base="x/")
    source = build_folder(tmp_path / "nested")
    assert source.class_names == ("first", "second")
    assert source.notes[1].startswith("folders inside class folders are part of their class: first/left/, first/right/")
    assert source.notes[1].endswith("if the inner folders are the classes, data.root is too high")
    write_folder(tmp_path / "split", base="train/")
    write_image(tmp_path / "split" / "train" / "dog" / "more" / "b.png", 6)
    notes = build_folder(tmp_path / "split").notes
    assert "folders inside class folders are part of their class: train/dog/more/" in notes


def test_classes_are_the_same_however_their_letters_are_composed(tmp_path):
    one, other = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))
    write_folder(tmp_path / "a", (one, "cat"), base="train/")
    write_folder(tmp_path / "a", (other, "cat"), count=3, base="test/")
    source = build_folder(tmp_path / "a")
    assert source.class_names == ("Bär", "cat")
    assert sorted(source.splits["test"].labels) == [0, 0, 0, 1, 1, 1]
    assert any(other in file for file in places(source))
    write_folder(tmp_path / "b", (one, other, "cat"))
    with pytest.raises(UserError, match="two folders 'Bär', with letters that are composed differently"):
        build_folder(tmp_path / "b")
