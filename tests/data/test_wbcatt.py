"""The blood cells: official tables and split, duplicates told, second annotators kept; the real set where it lies."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from builders import WBCATT_HEADER, same_samples, write_csv, write_wbcatt
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data import DATASETS, build_source
from vitrarium.data.sets.wbcatt import stratified_fraction
from vitrarium.data.sets.wbcatt_tables import second_annotator
from vitrarium.data.tables import read_table

PATH = "PBC_dataset_normal_DIB/lymphocyte/LY_0.jpg"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wbcatt(tmp_path_factory.mktemp("data") / "wbcatt")


@pytest.fixture
def copy(root, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(root, tmp_path / "wbcatt")


@pytest.fixture(scope="module")
def source(root):
    return build_source({"name": "wbcatt", "root": str(root), "size": 16})


def table(root, split):
    return read_table(root / f"pbc_attr_v1_{split}.csv").rows


def test_classes_values_and_splits_are_those_of_the_tables(source, root):
    assert source.class_names == ("Lymphocyte", "Monocyte")
    assert {g.name: g.values for g in source.concepts.groups} == {
        "cell_size": ("big", "small"),
        "nucleus_shape": ("band", "irregular", "round"),
        "granularity": ("no", "yes"),
    }
    assert all(group.categorical for group in source.concepts.groups)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 24, "val": 6, "test": 8}
    assert source.gives == {"concepts"}
    assert source.pictures == "images: Acevedo et al., Data in Brief 30 (2020) 105474, CC BY 4.0"
    names = source.concepts.names
    for name, split in source.splits.items():
        for index, row in enumerate(table(root, name)):
            assert split.origin(index) == row["path"]
            assert source.class_names[split.labels[index]] == row["label"]
            true = {names[k] for k in np.flatnonzero(split.truth[index])}
            assert true == {f"{a}={row[a]}" for a in ("cell_size", "nucleus_shape", "granularity")}
            assert split.truth[index].sum() == 3


def test_a_sample_is_the_file_resized(source, root):
    sample = source.splits["val"].sample(2)
    picture = Image.open(root / table(root, "val")[2]["path"])
    assert picture.size == (20, 21)
    shrunken = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR, box=(0, 0.5, 20, 20.5)))
    assert np.array_equal(sample.image, shrunken)
    assert sample.label == source.splits["val"].labels[2]
    assert np.array_equal(sample.concepts, source.splits["val"].truth[2])
    assert sample.index == 2
    sample.concepts[:] = 9
    assert source.splits["val"].truth.max() == 1


def test_exact_duplicates_are_told(source):
    leaked = {name: np.flatnonzero(split.leaked).tolist() for name, split in source.splits.items()}
    assert leaked == {"train": [], "val": [1], "test": [0, 1]}
    assert source.notes[0] == (
        "3 groups of exact duplicates, 2 of them across splits (1 val, 2 test images have a copy in another split); "
        "in 2 the copies have different labels"
    )


def test_duplicates_can_be_dropped_from_train(root, source):
    dropped = build_source({"name": "wbcatt", "root": str(root), "size": 16, "drop_duplicates": True})
    paths = [row["path"] for row in table(root, "train")]
    assert dropped.splits["train"].paths == [paths[0], *paths[3:]]
    assert {name: int(split.leaked.sum()) for name, split in dropped.splits.items()} == {
        "train": 0,
        "val": 1,
        "test": 1,
    }
    assert dropped.fingerprint != source.fingerprint
    assert any("left out" in note for note in dropped.notes)


def test_what_the_second_annotators_wrote(source, root):
    second = second_annotator(root)
    asked = [
        table(root, "train")[3]["img_name"],
        table(root, "test")[2]["img_name"],
        table(root, "test")[5]["img_name"],
    ]
    assert list(second) == asked
    names = source.concepts.names
    for name, (answer, label) in second.items():
        assert {"cell_size=big", "nucleus_shape=band"} < {names[k] for k in np.flatnonzero(answer)}
        assert source.class_names[label].upper().startswith(name[:2])
    for split, places in {"train": [3], "val": [], "test": [2, 5]}.items():
        known = ~np.isnan(source.splits[split].second_truth).all(axis=1)
        assert np.flatnonzero(known).tolist() == places
        assert np.flatnonzero(source.splits[split].second_labels >= 0).tolist() == places
        for place in places:
            name = table(root, split)[place]["img_name"]
            assert np.array_equal(source.splits[split].second_truth[place], second[name][0])
            assert source.splits[split].second_labels[place] == second[name][1]
    assert "second annotators saw 1 train, 0 val, 2 test images" in source.notes


def test_a_fraction_is_fixed_stratified_and_nested():
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 1000, p=[0.4, 0.3, 0.2, 0.09, 0.01])
    counts = np.bincount(labels, minlength=5)
    before = np.array([], np.int64)
    for fraction in (0.001, 0.01, 0.1, 0.5, 1.0):
        kept = stratified_fraction(labels, fraction)
        assert np.array_equal(kept, stratified_fraction(labels, fraction))
        assert np.array_equal(kept, np.unique(kept))
        assert set(before) <= set(kept)
        wanted = [max(1, round(n * fraction)) for n in counts]
        assert np.bincount(labels[kept], minlength=5).tolist() == wanted
        before = kept
    assert len(before) == 1000
    assert not np.array_equal(stratified_fraction(labels, 0.1), np.arange(100))


def test_small_is_a_tenth_of_train_and_all_of_the_rest(root, source):
    small = build_source({"name": "wbcatt_small", "root": str(root), "size": 16})
    tenth = build_source({"name": "wbcatt", "root": str(root), "size": 16, "fraction": 0.1})
    assert small.name == "wbcatt_small"
    assert small.splits["train"].paths == tenth.splits["train"].paths
    assert np.bincount(small.splits["train"].labels).tolist() == [1, 1]
    for name in ("val", "test"):
        assert small.splits[name].paths == source.splits[name].paths
    assert len({small.fingerprint, tenth.fingerprint, source.fingerprint}) == 3


def test_the_fingerprint_follows_the_content_and_not_the_place(root, copy, source):
    spec = {"name": "wbcatt", "size": 16}
    assert build_source({**spec, "root": str(copy)}).fingerprint == source.fingerprint
    assert build_source({**spec, "root": str(root), "size": 8}).fingerprint != source.fingerprint
    Image.new("RGB", (20, 20)).save(copy / PATH)
    assert build_source({**spec, "root": str(copy)}).fingerprint != source.fingerprint


def test_the_root_comes_from_the_environment(root, monkeypatch):
    monkeypatch.setenv("VITRARIUM_DATA", str(root.parent))
    assert len(build_source("wbcatt").splits["test"]) == 8
    monkeypatch.delenv("VITRARIUM_DATA")
    with pytest.raises(UserError, match=r"does not know where its data lie; set data\.root, or VITRARIUM_DATA"):
        build_source("wbcatt")


def test_an_unknown_cell_is_an_unknown_attribute(copy):
    path = copy / "pbc_attr_v1_val.csv"
    rows = [list(row.cells.values()) for row in table(copy, "val")]
    rows[0][3] = ""
    write_csv(path, WBCATT_HEADER, rows)
    truth = build_source({"name": "wbcatt", "root": str(copy)}).splits["val"].truth[0]
    assert np.isnan(truth).tolist() == [False, False, True, True, True, False, False]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("pbc_attr_v1_train.csv", "granularity", "granul", r"val\.csv has no column 'granul'|has no column 'granul'"),
        (
            "pbc_attr_v1_val.csv",
            "Lymphocyte",
            "Lymphozyte",
            r"val\.csv line \d+: the label 'Lymphozyte' is none of the classes; did",
        ),
        (
            "pbc_attr_v1_train.csv",
            PATH,
            "../../secret.jpg",
            r"train\.csv line 2: '../../secret\.jpg' leads out of the data folder",
        ),
        ("pbc_attr_v1_train.csv", PATH, PATH.replace("LY_0", "LY_none"), r"LY_none\.jpg' is missing"),
        ("pbc_attr_v1_train.csv", "label", "label,label", "two columns 'label'|cells"),
        (
            "pbc_attr_reannotations.csv",
            ",band,",
            ",bent,",
            r"reannotations\.csv line 2: 'bent' is no nucleus_shape; did you mean",
        ),
    ],
)
def test_damaged_tables_are_refused_by_file_and_line(copy, file, old, new, words):
    edit(copy / file, old, new)
    with pytest.raises(UserError, match=words):
        build_source({"name": "wbcatt", "root": str(copy)})


def test_missing_things_are_refused(copy, tmp_path):
    with pytest.raises(UserError, match=r"the folder of wbcatt .* does not exist; set data\.root"):
        build_source({"name": "wbcatt", "root": str(tmp_path / "nowhere")})
    (copy / "pbc_attr_v1_test.csv").unlink()
    with pytest.raises(UserError, match=r"pbc_attr_v1_test\.csv cannot be read \(No such file"):
        build_source({"name": "wbcatt", "root": str(copy)})


def test_a_link_out_of_the_root_is_refused(copy, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.jpg")
    (copy / PATH).unlink()
    (copy / PATH).symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(UserError, match="leads out of the data folder"):
        build_source({"name": "wbcatt", "root": str(copy)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fraction": 0}, "fraction=0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"size": 0}, "size=0"),
        ({"size": 1.5}, "size=1.5"),
    ],
)
def test_options_out_of_range_are_refused(root, options, words):
    with pytest.raises(UserError, match=words):
        build_source({"name": "wbcatt", "root": str(root), **options})


def test_both_are_registered():
    assert DATASETS.list("wbcatt*") == ["wbcatt", "wbcatt_small"]


def test_the_real_set(real_data):
    source = build_source({"name": "wbcatt", "root": str(real_data / "wbcatt")})
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6169, "val": 1030, "test": 3099}
    assert len(source.class_names) == 5
    assert len(source.concepts.groups) == 11
    assert len(source.concepts) == 31
    assert source.notes[0].startswith("14 groups of exact duplicates, 6 of them across splits")
    assert {name: int(split.leaked.sum()) for name, split in source.splits.items()} == {"train": 0, "val": 2, "test": 6}
    asked = {name: int((split.second_labels >= 0).sum()) for name, split in source.splits.items()}
    assert asked == {"train": 592, "val": 104, "test": 304}
    test = source.splits["test"]
    rows = test.second_labels >= 0
    same = [
        (test.truth[rows][:, group.members].argmax(1) == test.second_truth[rows][:, group.members].argmax(1)).mean()
        for group in source.concepts.groups
    ]
    # What people agree on, as measured by others on the same 304 images.
    assert abs(np.mean(same) - 0.956) < 0.001
    small = build_source({"name": "wbcatt_small", "root": str(real_data / "wbcatt")})
    assert len(small.splits["train"]) == 617
    assert len(small.splits["test"]) == 3099
    assert same_samples(small.splits["test"].sample(7), test.sample(7))
