"""The CUB layout: what is read, how it is split, and that any data set in the layout is taken."""

from __future__ import annotations

import shutil
import unicodedata

import numpy as np
import pytest
from builders import places, sample_of
from cub_builder import PARTS, build, rows_of, write_cub, write_lines
from PIL import Image

from vitrarium.configs.compose import compose
from vitrarium.data.derived import DerivedSplit
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.cub import recognise
from vitrarium.data.source import LAYOUTS


def test_the_unpacked_archive_is_read(tmp_path):
    written = write_cub(tmp_path)
    source = build(tmp_path)
    assert source.class_names[:2] == ("Bird_A0", "Bird_B1")
    assert source.part_names == PARTS
    assert source.gives == {"concepts", "human_map", "keypoints"}
    assert source.pictures is None
    assert build(tmp_path, credit="the photographers").pictures == "the photographers"
    rows = rows_of(source, written)
    assert sorted(row for split in rows.values() for row in split) == list(range(40))
    for name, split in source.splits.items():
        for index, row in enumerate(rows[name]):
            sample = split.sample(index)
            assert sample.label == split.labels[index] == written.labels[row]
            assert np.array_equal(sample.image, Preprocessing(16).pixels(written.place / "images" / written.files[row]))
            assert split.where(index) == f"{written.place / 'images.txt'} line {row + 1}"
            assert split.file(index) == written.place / "images" / written.files[row]
            assert DerivedSplit(split).where(index) == split.where(index)
            assert np.array_equal(sample.concepts, split.truth[index], equal_nan=True)


def test_inside_and_around_are_the_same(tmp_path):
    written = write_cub(tmp_path)
    outer, inner = build(tmp_path), build(written.place)
    assert outer.fingerprint == inner.fingerprint
    assert outer.gives == inner.gives
    flat = write_cub(tmp_path / "flat", archive=False)
    assert flat.place == tmp_path / "flat"
    assert build(flat.place).fingerprint == inner.fingerprint
    shutil.move(flat.place / "attributes.txt", flat.place / "attributes" / "attributes.txt")
    assert build(flat.place).fingerprint == inner.fingerprint


def test_ids_are_any_integers(tmp_path):
    plain, other = write_cub(tmp_path / "a"), write_cub(tmp_path / "b", first_id=-3, step=17)
    one, two = build(tmp_path / "a"), build(tmp_path / "b")
    assert other.ids[1] == 14
    assert one.fingerprint == two.fingerprint
    assert places(one) == places(two)
    # Lines may come in any order.
    for table in ("image_class_labels.txt", "train_test_split.txt", "parts/part_locs.txt"):
        path = plain.place / table
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert build(tmp_path / "a").fingerprint == one.fingerprint


def test_the_official_test_split_stays_and_val_is_drawn_class_by_class(tmp_path):
    written = write_cub(tmp_path, classes=10, per_class=8, parts=(), boxes=False, segmentations=False, attributes=())
    source = build(tmp_path, val_fraction=0.34)
    rows = rows_of(source, written)
    assert sorted(rows["test"]) == np.flatnonzero(~written.train).tolist()
    assert np.bincount(written.labels[rows["val"]]).tolist() == [2] * 10
    assert "test as given by train_test_split.txt; 34% of each class for val" in source.notes[0]
    assert places(build(tmp_path, val_fraction=0.34)) == places(source)
    assert places(build(tmp_path, val_fraction=0.34, split_seed=1)) != places(source)


def test_without_anything_but_images_and_classes(tmp_path):
    write_cub(tmp_path, attributes=(), parts=(), boxes=False, segmentations=False, split=False)
    source = build(tmp_path, test_fraction=0.5)
    assert source.gives == frozenset()
    assert source.concepts is None
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 10, "val": 10, "test": 20}
    assert source.notes[0].startswith("no train_test_split.txt; 10% of each class for val and 50% of each class for")
    sample = source.splits["test"].sample(0)
    assert sample.concepts is sample.concept_weight is sample.human_map is sample.keypoints is None


def test_names_with_blanks_accents_tabs_and_other_line_ends(tmp_path):
    written = write_cub(tmp_path)
    table, labels = written.place / "images.txt", written.place / "image_class_labels.txt"
    names = dict(zip(written.files, written.files, strict=True))
    first, second, third = written.files[:3]
    names[first] = "001.Bird_A0/ein Vogel  (ä) [1].jpg"
    names[second] = "001.Bird_A0/" + unicodedata.normalize("NFD", "é.jpg")
    names[third] = "001.Bird_A0/鳥　の　絵.jpg"
    for old, new in names.items():
        (written.place / "images" / old).rename(written.place / "images" / new)
    listed = dict(names)
    listed[second] = unicodedata.normalize("NFC", names[second])
    lines = [f"{i}\t{listed[file]}  " for i, file in zip(written.ids, written.files, strict=True)]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    labels.write_bytes(labels.read_bytes().replace(b"\n", b"\r\n\r\n").replace(b" ", b" \t "))
    for name in ("attributes.txt", "CUB_200_2011/classes.txt", "CUB_200_2011/attributes/image_attribute_labels.txt"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    source = build(tmp_path)
    found = places(source)
    assert {f"images/{name}" for name in names.values()} == set(found)
    for file in (first, second, third):
        sample = sample_of(source, f"images/{names[file]}")
        assert np.array_equal(sample.image, Preprocessing(16).pixels(written.place / "images" / names[file]))
        assert sample.label == 0


def test_votes_about_classes_do_not_see_the_test_images(tmp_path):
    written = write_cub(tmp_path)
    before = build(tmp_path, truth="class")
    table = written.place / "attributes" / "image_attribute_labels.txt"
    tested = set(written.ids[~written.train].tolist())
    lines = [line.split() for line in table.read_text().splitlines()]
    write_lines(table, [(i, a, 1 - int(p), c, t) if int(i) in tested else (i, a, p, c, t) for i, a, p, c, t in lines])
    after = build(tmp_path, truth="class")
    assert all(np.array_equal(after.splits[n].truth, before.splits[n].truth, equal_nan=True) for n in before.splits)


def test_images_without_segmentation_have_no_map(tmp_path):
    written = write_cub(tmp_path)
    gone = written.files[3]
    (tmp_path / "segmentations" / gone).with_suffix(".png").unlink()
    source = build(tmp_path)
    assert "39 of 40 images have a segmentation" in source.notes
    assert sample_of(source, f"images/{gone}").human_map is None
    assert sample_of(source, f"images/{written.files[4]}").human_map.dtype == np.uint8


def test_unannotated_parts_are_not_visible(tmp_path):
    written = write_cub(tmp_path)
    table = written.place / "parts" / "part_locs.txt"
    kept = [line for line in table.read_text().splitlines() if int(line.split()[0]) > 2]
    table.write_text("\n".join(kept))
    source = build(tmp_path)
    assert "2 of 40 images have no annotated parts" in source.notes
    for row in (0, 1):
        assert not sample_of(source, f"images/{written.files[row]}").keypoints[:, 2].any()


def test_a_class_without_test_images_is_noted(tmp_path):
    written = write_cub(tmp_path, per_class=5)
    table = written.place / "train_test_split.txt"
    trained = written.train | np.isin(written.labels, (0, 3))
    write_lines(table, zip(written.ids, trained.astype(int), strict=True))
    source = build(tmp_path)
    assert "2 classes have no test image: Bird_A0, Bird_D3" in source.notes


def test_copies_in_other_splits_are_told(tmp_path):
    written = write_cub(tmp_path)
    train, test = np.flatnonzero(written.train)[0], np.flatnonzero(~written.train)[0]
    images = written.place / "images"
    shutil.copy(images / written.files[0], images / written.files[1])
    shutil.copy(images / written.files[train], images / written.files[test])
    source = build(tmp_path)
    assert source.duplicates is not None
    assert source.duplicates.across == 1
    assert source.splits["test"].leaked.sum() == 1
    assert any(note.startswith("1 group of exact duplicates, 1 of them across splits") for note in source.notes)


def test_the_fingerprint_follows_the_content(tmp_path):
    written = write_cub(tmp_path / "a")
    root = tmp_path / "a"
    prints = [build(root).fingerprint]
    copied = shutil.copytree(root, tmp_path / "copy")
    assert build(copied).fingerprint == prints[0]
    for options in (
        {"size": 8}, {"split_seed": 5}, {"crop": True}, {"crop": True, "margin": 0.2}, {"truth": "class"},
        {"uncertain": "soft"}, {"uncertain": "ignore"}, {"attributes": "koh112", "min_classes": 6},
    ):  # fmt: skip
        prints.append(build(root, **options).fingerprint)
    shutil.copy(written.place / "images" / written.files[1], copied / "CUB_200_2011" / "images" / written.files[0])
    prints.append(build(copied).fingerprint)
    png = (copied / "segmentations" / written.files[0]).with_suffix(".png")
    Image.new("L", (40, 30), 255).save(png)
    prints.append(build(copied).fingerprint)
    table = copied / "CUB_200_2011" / "parts" / "part_locs.txt"
    table.write_text(table.read_text().replace("\n1 1 ", "\n1 1 ", 1).replace(" 1\n", " 0\n", 1))
    prints.append(build(copied).fingerprint)
    assert len(set(prints)) == len(prints)


def test_the_layout_is_recognised(tmp_path):
    written = write_cub(tmp_path / "a")
    assert "cub" in LAYOUTS
    found = recognise(tmp_path / "a")
    assert found.spec == {"name": "cub", "root": str(tmp_path / "a")}
    assert found.because.startswith("CUB_200_2011/images.txt and CUB_200_2011/classes.txt")
    assert recognise(written.place).because == "images.txt and classes.txt and image_class_labels.txt"
    (written.place / "classes.txt").unlink()
    assert recognise(written.place).because == "images.txt and image_class_labels.txt"
    (written.place / "images.txt").unlink()
    assert recognise(written.place) is None
    assert recognise(tmp_path) is None


def test_the_preset_is_there():
    config = compose(["data=cub", "data.root=birds", "model=cbm"])
    assert config["data"]["name"] == "cub"
    assert config["data"]["size"] == 112


@pytest.mark.parametrize("classes", [2, 27])
def test_any_number_of_classes(tmp_path, classes):
    write_cub(tmp_path, classes=classes, parts=("one part",), boxes=False)
    assert len(build(tmp_path).class_names) == classes
