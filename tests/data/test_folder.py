"""A user's own folder: how it is laid out and split, and the files in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import FOLDER_FILES, build_folder, places, sample_of, write_csv, write_folder, write_image
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, nothing else."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


def concepts(root, rows, header=("image", "wings", "colour")):
    return write_csv(root / "concepts.csv", header, rows)


def test_a_plain_folder_is_a_set_of_classes(root):
    source = build_folder(root)
    assert source.class_names == ("cat", "dog")
    assert source.concepts is None
    assert source.gives == frozenset()
    assert sorted(places(source)) == sorted(FOLDER_FILES)
    for name, split in source.splits.items():
        assert split.truth is None
        counts = np.bincount(split.labels).tolist()
        assert counts == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}[name]
        for index, file in enumerate(split.files):
            one = split.sample(index)
            assert source.class_names[one.label] == file.split("/")[0]
            assert np.array_equal(one.image, Preprocessing(16).pixels(root / file))
            assert one.concepts is one.human_map is one.keypoints is None
            assert split.origin(index) == file
    assert source.notes == [
        "15% of each class for val and 15% of each class for test drawn from the rest with split_seed=0"
    ]


def test_the_draw_is_fixed_by_its_seed_and_fractions(root):
    assert places(build_folder(root)) == places(build_folder(root))
    assert places(build_folder(root)) != places(build_folder(root, split_seed=1))
    sizes = {name: len(split) for name, split in build_folder(root, val_fraction=0.3, test_fraction=0.4).splits.items()}
    assert sizes == {"train": 6, "val": 6, "test": 8}


def test_split_folders(tmp_path):
    for number, base in enumerate(("Training/", "valid/", "Test/")):
        write_folder(tmp_path, count=3 - number, base=base)
    source = build_folder(tmp_path)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 4, "test": 2}
    assert all(file.startswith("valid/") for file in source.splits["val"].files)
    assert source.notes == ["splits as given by its folders"]


def test_a_missing_split_is_drawn_from_train_and_told(tmp_path):
    write_folder(tmp_path, count=10, base="train/")
    write_folder(tmp_path, count=3, base="test/")
    source = build_folder(tmp_path, val_fraction=0.2)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 16, "val": 4, "test": 6}
    assert "splits as given by its folders; 20% of each class for val drawn" in source.notes[0]


def test_a_column_says_the_split(root):
    given = {file: ("train", "val", "Test", "validation")[i % 4] for i, file in enumerate(FOLDER_FILES)}
    write_csv(root / "concepts.csv", ("image", "split"), given.items())
    source = build_folder(root)
    assert source.concepts is None
    words = {"train": "train", "val": "val", "Test": "test", "validation": "val"}
    assert {file: place[0] for file, place in places(source).items()} == {f: words[w] for f, w in given.items()}
    assert places(build_folder(root, split="random")) != places(source)


def test_sub_folders_belong_to_their_class(root):
    write_image(root / "cat" / "old" / "a.jpg", 5)
    assert "cat/old/a.jpg" in places(build_folder(root))


def test_system_files_and_hidden_files_are_passed_over(root):
    for name in (".DS_Store", "cat/.hidden", "cat/Thumbs.db", "dog/desktop.ini", "README.md", ".git/config"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    assert sorted(places(build_folder(root))) == sorted(FOLDER_FILES)


def test_what_cannot_be_split_is_refused(root):
    with pytest.raises(UserError, match="unknown way to split 'colum'; did you mean 'column'"):
        build_folder(root, split="colum")
    with pytest.raises(UserError, match="split=column needs a column 'split'"):
        build_folder(root, split="column")
    with pytest.raises(UserError, match="split=folders needs train/"):
        build_folder(root, split="folders")
    for options in ({"val_fraction": 0}, {"test_fraction": 1.0}, {"val_fraction": 0.5, "test_fraction": 0.5}):
        with pytest.raises(UserError, match="fraction"):
            build_folder(root, **options)
    for options in ({"size": 0}, {"split_seed": -1}):
        with pytest.raises(UserError, match="with s"):
            build_folder(root, **options)
    concepts(root, [(FOLDER_FILES[0], "dev")], ("image", "split"))
    with pytest.raises(UserError, match=r"concepts\.csv line 2: unknown split 'dev'"):
        build_folder(root)
    concepts(root, [(FOLDER_FILES[0], "train")], ("image", "split"))
    with pytest.raises(UserError, match=r"no row for 'cat/cat1\.png'"):
        build_folder(root)


def test_too_few_images_for_three_splits(tmp_path):
    write_folder(tmp_path, count=1)
    with pytest.raises(UserError, match="the split val got none of the 2 images"):
        build_folder(tmp_path)
    concepts(tmp_path, [("cat0.png", "test"), ("dog0.png", "train")], ("image", "split"))
    with pytest.raises(UserError, match=r"got none|no training image"):
        build_folder(tmp_path)


def test_folders_and_column_must_agree(tmp_path):
    for base in ("train/", "val/", "test/"):
        write_folder(tmp_path, count=2, base=base)
    rows = [(p.relative_to(tmp_path).as_posix(), p.relative_to(tmp_path).parts[0]) for p in tmp_path.rglob("*.png")]
    concepts(tmp_path, rows, ("image", "split"))
    build_folder(tmp_path)
    rows[0] = (rows[0][0], "test" if rows[0][1] != "test" else "val")
    concepts(tmp_path, rows, ("image", "split"))
    with pytest.raises(UserError, match=r"lies in \w+, but concepts\.csv puts it into"):
        build_folder(tmp_path)
    assert places(build_folder(tmp_path, split="column"))[rows[0][0]][0] == rows[0][1]


def test_missing_and_misplaced_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"the data folder .*nowhere' does not exist"):
        build_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is no folder"):
        build_folder(tmp_path / "file")
    with pytest.raises(UserError, match="found no class folders in"):
        build_folder(tmp_path)
    write_folder(tmp_path / "wrapped" / "images")
    with pytest.raises(UserError, match=r"found only one class folder, 'images',.*expected .*/CLASS/image\.jpg"):
        build_folder(tmp_path / "wrapped")


def test_odd_layouts_are_refused(root, tmp_path):
    (root / "bird").mkdir()
    with pytest.raises(UserError, match=r"the class folder '.*bird' holds no image"):
        build_folder(root)
    write_folder(root / "bird")
    with pytest.raises(UserError, match="bird' holds a folder 'cat' like the class; if these are human maps"):
        build_folder(root)
    write_folder(tmp_path / "both", base="train/")
    write_folder(tmp_path / "both", classes=["fish"])
    with pytest.raises(UserError, match="holds 'train' and 'fish' side by side"):
        build_folder(tmp_path / "both")
    write_folder(tmp_path / "more", base="train/")
    write_folder(tmp_path / "more", classes=["cats", "dog"], base="val/")
    with pytest.raises(UserError, match=r"val/cats' is none of the classes of train: cat, dog; did you mean 'cat'"):
        build_folder(tmp_path / "more")
    shutil.rmtree(tmp_path / "more" / "val")
    write_image(tmp_path / "more" / "test" / "loose.png")
    with pytest.raises(UserError, match=r"loose\.png' lies in no class folder"):
        build_folder(tmp_path / "more")
    write_folder(tmp_path / "twice", base="train/")
    write_folder(tmp_path / "twice", base="val/")
    write_folder(tmp_path / "twice", base="valid/")
    with pytest.raises(UserError, match="two folders for one split"):
        build_folder(tmp_path / "twice")


def test_files_that_are_no_images_are_refused_together(root):
    (root / "cat" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt' is no image file; move it away"):
        build_folder(root)
    (root / "cat" / "notes.txt").unlink()
    (root / "cat" / "cat3.png").write_text("no image")
    (root / "dog" / "dog4.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat3\.png' is no image file; .*dog4\.png' is empty; replace or remove"):
        build_folder(root)


def test_bombs_and_strips_are_refused(root):
    Image.new("1", (20_000, 20_000)).save(root / "cat" / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png' unpacks to more pixels than is safe"):
        build_folder(root)
    (root / "cat" / "bomb.png").unlink()
    Image.new("L", (1, 1)).save(root / "cat" / "dot.png")
    assert sample_of(build_folder(root), "cat/dot.png").image.shape == (16, 16, 3)
    Image.new("L", (1, 3000)).save(root / "cat" / "strip.png")
    with pytest.raises(UserError, match=r"strip\.png' has 1 x 3000 pixels"):
        build_folder(root)


def test_a_truncated_file_is_told_when_it_is_decoded(root):
    path = root / FOLDER_FILES[0]
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"cat0\.png' cannot be decoded .*the file is damaged"):
        sample_of(build_folder(root), FOLDER_FILES[0])


def test_links_out_of_the_folder_are_refused(root, tmp_path):
    outside = write_image(tmp_path / "outside" / "secret.png", 3)
    link = root / "cat" / "link.png"
    link.symlink_to(outside)
    with pytest.raises(UserError, match=r"link: 'cat/link\.png' leads out of the data folder"):
        build_folder(root)
    link.unlink()
    (root / "bird").symlink_to(outside.parent)
    with pytest.raises(UserError, match="'bird' leads out of the data folder"):
        build_folder(root)
    (root / "bird").unlink()
    (root / "again").symlink_to(root / "cat")
    with pytest.raises(UserError, match="again' is a link to a folder"):
        build_folder(root)
    (root / "again").unlink()
    (root / "maps").symlink_to(outside.parent)
    with pytest.raises(UserError, match="'maps' leads out"):
        build_folder(root)
    (root / "maps").unlink()
    link.symlink_to(root / "cat" / "cat0.png")
    assert "cat/link.png" in places(build_folder(root))
    link.unlink()
    link.symlink_to(root / "cat" / "gone.png")
    with pytest.raises(UserError, match=r"link\.png' cannot be read"):
        build_folder(root)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(UserError, match=r"link\.png' (leads nowhere|cannot be read)"):
        build_folder(root)


def test_duplicates_across_splits_are_told(root):
    source = build_folder(root)
    one, other = source.splits["train"].files[0], source.splits["test"].files[0]
    shutil.copy(root / one, root / other)
    source = build_folder(root)
    assert source.splits["test"].leaked.tolist() == [True, False, False, False]
    assert not source.splits["train"].leaked.any()
    assert source.notes[-1].startswith("1 group of exact duplicates, 1 of them across splits (1 test images have")


def test_the_fingerprint_follows_the_content(root, tmp_path):
    concepts(root, [(file, i % 2, ("red", "blue")[i % 2]) for i, file in enumerate(FOLDER_FILES)])
    prints = [build_folder(root).fingerprint]
    copied = shutil.copytree(root, tmp_path / "copy")
    assert build_folder(copied).fingerprint == prints[0]
    prints.append(build_folder(root, size=8).fingerprint)
    prints.append(build_folder(root, split_seed=3).fingerprint)
    concepts(copied, [(file, 1 - i % 2, ("red", "blue")[i % 2]) for i, file in enumerate(FOLDER_FILES)])
    prints.append(build_folder(copied).fingerprint)
    write_image(copied / "maps" / "cat" / "cat0.png")
    prints.append(build_folder(copied).fingerprint)
    write_image(copied / "maps" / "cat" / "cat0.png", seed=4)
    prints.append(build_folder(copied).fingerprint)
    write_csv(copied / "keypoints.csv", ("image", "part", "x", "y"), [("cat0.png", "head", 1, 1)])
    prints.append(build_folder(copied).fingerprint)
    write_image(copied / "cat" / "cat5.png", seed=99)
    prints.append(build_folder(copied).fingerprint)
    assert len(set(prints)) == len(prints)


def test_pictures_may_be_shown_only_with_a_credit(root):
    assert build_folder(root).pictures is None
    assert build_folder(root, credit="photographs: the author").pictures == "photographs: the author"


def test_a_relative_root_survives_a_change_of_place(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root.parent)
    source = build_folder(Path(root.name))
    monkeypatch.chdir(tmp_path / root.name / "cat")
    assert sample_of(source, FOLDER_FILES[0]).image.shape == (16, 16, 3)
