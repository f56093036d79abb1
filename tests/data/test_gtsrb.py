"""``gtsrb``: the official files and the packed copy, tracks kept whole, boxes as maps or crops, concepts of classes."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from archives import SIGN_CLASSES, noise, write_gtsrb, write_packed_signs
from builders import write_csv
from PIL import Image
from torchvision.datasets import GTSRB

from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.gtsrb import CLASS_NAMES
from vitrarium.data.sets.stored import box_map
from vitrarium.data.source import LAYOUTS
from vitrarium.data.splitting import draw_splits

CONCEPTS = ("class_id", "class_name", "shape_round", "shape_eight_sided", "red_rim", "red_fill", "digit")
ROWS = [(0, "twenty", 1, 0, 1, 0, 1), (1, "thirty", 1, 0, 1, 0, 1), (14, "halt", 0, 1, 0, 1, 0)]


def build(root, **options):
    return build_source({"name": "gtsrb", "root": str(root), "val_fraction": 0.25, **options})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Three classes of four tracks with three frames each, six test images."""
    root = tmp_path_factory.mktemp("signs")
    write_gtsrb(root)
    return root


@pytest.fixture
def copy(original, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(original, tmp_path / "signs")


@pytest.fixture
def packed(tmp_path):
    """The packed copy with a table of concepts."""
    write_packed_signs(tmp_path / "packed")
    write_csv(tmp_path / "packed" / "class_concepts.csv", CONCEPTS, ROWS)
    return tmp_path / "packed"


def test_official_files_are_those_that_torchvision_reads(original):
    source = build(original, boxes="ignore")
    assert source.class_names == tuple(CLASS_NAMES[c] for c in SIGN_CLASSES)
    assert source.concepts is None
    assert source.gives == frozenset()
    assert source.pictures is None
    theirs = {}
    for split in ("train", "test"):
        # torchvision counts the folders of the training part, and takes the official numbers in the test part.
        number = {i: i for i in range(3)} if split == "train" else {c: i for i, c in enumerate(SIGN_CLASSES)}
        theirs |= {str(p): number[c] for p, c in GTSRB(str(original), split=split)._samples}
    ours = {}
    for split in source.splits.values():
        for index in range(len(split)):
            assert split.file(index) == original / split.origin(index)
            assert "GT-" in split.where(index)
            ours[str(split.file(index))] = int(split.labels[index])
            sample = split.sample(index)
            assert np.array_equal(sample.image, Preprocessing(32).pixels(split.file(index)))
            assert sample.human_map is sample.concepts is None
    assert ours == theirs
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 27, "val": 9, "test": 6}


def test_validation_is_drawn_by_track(original):
    def tracks(split):
        return {origin.rsplit("_", 1)[0] for origin in map(split.origin, range(len(split)))}

    drawn = set()
    for seed in range(4):
        source = build(original, split_seed=seed)
        val, train = tracks(source.splits["val"]), tracks(source.splits["train"])
        assert not val & train
        assert len(val) == 3
        assert len(train) == 9
        assert sorted(np.bincount(source.splits["val"].labels)) == [3, 3, 3]
        drawn.add(tuple(sorted(val)))
    assert len(drawn) > 1
    assert "25% of the tracks of each class for val" in source.notes[0]


def test_groups_stay_together_and_a_draw_without_them_is_as_before():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat([0, 1, 2], 40), rng.integers(0, 30, 120) + np.repeat([0, 100, 200], 40)
    splits = np.full(120, "train", "<U5")
    draw_splits(splits, labels, {"val": 0.2, "test": 0.3}, 5, groups)
    for group in np.unique(groups):
        assert len(set(splits[groups == group])) == 1
    for c in range(3):
        of_class = np.unique(groups[labels == c])
        moved = {name: len(np.unique(groups[(labels == c) & (splits == name)])) for name in ("val", "test")}
        assert moved == {"val": round(0.2 * len(of_class)), "test": round(0.3 * len(of_class))}
    alone, plain = np.full(120, "train", "<U5"), np.full(120, "train", "<U5")
    draw_splits(alone, labels, {"val": 0.2}, 5, np.arange(120))
    draw_splits(plain, labels, {"val": 0.2}, 5)
    assert np.array_equal(alone, plain)


def rows_of(path):
    with path.open(newline="") as file:
        return {row["Filename"]: row for row in csv.DictReader(file, delimiter=";")}


def test_boxes_become_maps(original):
    source = build(original, size=30)
    assert source.gives == {"human_map"}
    rows = rows_of(original / "gtsrb" / "GT-final_test.csv")
    test = source.splits["test"]
    for index in range(len(test)):
        row = rows[test.origin(index).rsplit("/", 1)[1]]
        x1, y1, x2, y2 = (int(row[f"Roi.{side}"]) for side in ("X1", "Y1", "X2", "Y2"))
        # 24 x 25 pixels: half a row is cut off above and below, and 24 pixels become 30.
        at = (np.arange(30) + 0.5) * 24 / 30
        inside = np.outer((at + 0.5 >= y1) & (at + 0.5 < y2), (at >= x1) & (at < x2))
        drawn = test.sample(index).human_map
        assert drawn.dtype == np.uint8
        assert np.array_equal(drawn, inside * 255)
    assert test.sample(0).human_map.mean() == pytest.approx(255 * 14 * 15 / 24**2, rel=0.1)


def test_a_box_follows_the_pixels_it_was_drawn_around():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[12:30, 22:44] = 255
    image = Preprocessing(100).pixels(picture)[..., 0]
    drawn = box_map((22, 12, 44, 30), (60, 40), 100)
    # Through the middle of the box: at its corners both directions blur.
    assert np.array_equal(image[52] > 127, drawn[52] == 255)
    assert np.array_equal(image[:, 57] > 127, drawn[:, 57] == 255)


def test_crops_show_the_inside_of_the_box(original):
    source = build(original, boxes="crop", size=20)
    assert source.gives == frozenset()
    assert any("cropped" in note for note in source.notes)
    test = source.splits["test"]
    for index in range(2):
        row = rows_of(original / "gtsrb" / "GT-final_test.csv")[test.origin(index).rsplit("/", 1)[1]]
        box = tuple(int(row[f"Roi.{side}"]) for side in ("X1", "Y1", "X2", "Y2"))
        whole = Image.open(test.file(index)).resize((20, 20), Image.Resampling.BILINEAR, (5, 5.5, 19, 19.5))
        assert box == (5, 5, 19, 20)
        assert np.array_equal(test.sample(index).image, np.asarray(whole))


def test_the_packed_copy_and_its_concepts(packed):
    source = build(packed)
    assert source.class_names == ("twenty", "thirty", "halt")
    assert source.concepts.names == ("shape=round", "shape=eight_sided", "red=rim", "red=fill", "digit")
    assert source.concepts.per_class
    assert [group.categorical for group in source.concepts.groups] == [True, True, False]
    assert source.gives == {"concepts", "human_map"}
    for split in source.splits.values():
        for index in range(len(split)):
            expected = np.array(ROWS[split.labels[index]][2:], np.float32)
            assert np.array_equal(split.sample(index).concepts, expected)
            assert split.file(index) is None
    said = " | ".join(source.notes)
    assert "lossy JPEG copy at 32 x 32 pixels of 36 training and 6 test images" in said
    assert "concepts belong to classes and were written by this project" in said
    train = source.splits["train"]
    assert train.origin(0).startswith("00000/0000")
    assert "gtsrb32_train_jpeg.npz image " in train.where(0)
    image = Image.fromarray(noise(32, 32, int(train.rows[0])))
    assert np.abs(train.sample(0).image.astype(int) - np.asarray(image)).mean() < 20


def test_concepts_are_grouped_only_where_exactly_one_is_true_of_every_class(packed):
    rows = [(*ROWS[0][:4], 1, 1, 1), *ROWS[1:]]
    write_csv(packed / "class_concepts.csv", CONCEPTS, rows)
    assert build(packed).concepts.names == ("shape=round", "shape=eight_sided", "red_rim", "red_fill", "digit")
    rows = [(*ROWS[0][:2], "", 0, *ROWS[0][4:]), *ROWS[1:]]
    write_csv(packed / "class_concepts.csv", CONCEPTS, rows)
    source = build(packed)
    assert source.concepts.names[:2] == ("shape_round", "shape_eight_sided")
    assert np.isnan(source.splits["test"].truth[source.splits["test"].labels == 0, 0]).all()


def test_a_table_of_concepts_may_lie_elsewhere(original, tmp_path):
    table = write_csv(
        tmp_path / "signs.csv", ("class_id", "red", "shape"), [(14, "yes", "a"), (0, 0, "b"), (1, 1, "b")]
    )
    source = build(original, concepts=str(table))
    assert source.concepts.names == ("red", "shape=a", "shape=b")
    assert source.class_names[2] == "stop"
    assert [source.splits["test"].truth[i].tolist() for i in range(3)] == [[0, 0, 1], [1, 0, 1], [1, 1, 0]]
    assert "concepts belong to classes: no image was annotated on its own" in source.notes
    with pytest.raises(UserError, match=r"nowhere\.csv' does not exist or is no file; check data\.concepts"):
        build(original, concepts=str(tmp_path / "nowhere.csv"))
    write_csv(tmp_path / "signs.csv", ("class_id", "red"), [(14, 1), (0, 0)])
    with pytest.raises(UserError, match=r"signs\.csv has no row for the class '1'"):
        build(original, concepts=str(table))


@pytest.mark.parametrize(
    ("table", "old", "new", "words"),
    [
        ("GT-00001.csv", ";1\n", ";2\n", "line 2: ClassId is 2 in the table of class 1"),
        ("GT-00001.csv", ";5;6;", ";5;x;", r"line 2: Roi\.Y1 is 'x', no whole number"),
        ("GT-00001.csv", ";5;6;", ";5;60;", r"line 2: the box \(5, 60, .* does not lie in"),
        ("GT-00001.csv", "00000_00001.ppm", "00000_00000.ppm", r"line 3: '.*' has a row already, in line 2"),
        ("GT-00001.csv", "00000_00000.ppm", "../../../../../x.ppm", r"line 2: '.*x\.ppm' leads out of"),
        ("GT-00001.csv", "00000_00000.ppm", "/x.ppm", r"GT-00001\.csv has no row for '00000_00000\.ppm'"),
        ("GT-00001.csv", ";", ",", "is not separated by semicolons but by commas"),
        ("GT-00001.csv", "Roi.X2", "Roi.X3", r"has no column 'Roi\.X2'"),
        ("GT-final_test.csv", "24;25", "48;50", "line 2: the image has 24 x 25 pixels, the table says 48 x 50"),
        ("GT-final_test.csv", ";14\n", ";13\n", "ClassId is 13, which no training image has"),
        ("GT-final_test.csv", "00003.ppm", "00009.ppm", r"line 5: .*00009\.ppm.*"),
    ],
)
def test_damaged_tables_are_refused_by_line(copy, table, old, new, words):
    path = next(copy.rglob(table))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) if old == ";" else text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        build(copy)


def test_what_is_missing_is_named(copy, tmp_path):
    training = copy / "gtsrb" / "GTSRB" / "Training"
    Image.fromarray(noise(20, 20, 1)).save(training / "00001" / "00009_00000.ppm")
    with pytest.raises(UserError, match=r"GT-00001\.csv has no row for '00009_00000\.ppm'"):
        build(copy)
    (training / "00001" / "GT-00001.csv").unlink()
    with pytest.raises(UserError, match=r"GT-00001\.csv' is missing; unpack it again, or set data\.boxes=ignore"):
        build(copy)
    assert len(build(copy, boxes="ignore").splits["test"]) == 6
    (training / "00001" / "00009_00000.ppm").rename(training / "00001" / "sign.ppm")
    with pytest.raises(UserError, match=r"00001/sign\.ppm' is not called TRACK_FRAME\.ppm"):
        build(copy, boxes="ignore")
    (training / "00001" / "sign.ppm").unlink()
    (copy / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(UserError, match=r"GT-final_test\.csv' is missing; unpack GTSRB_Final_Test_GT\.zip there"):
        build(copy, boxes="ignore")
    with pytest.raises(UserError, match="holds neither gtsrb/GTSRB/Training/ nor gtsrb32_train"):
        build(tmp_path)
    with pytest.raises(UserError, match="gtsrb with boxes='maps'; did you mean 'map'"):
        build(copy, boxes="maps")


def test_a_damaged_image_is_told_by_table_and_line(copy):
    path = next(copy.rglob("00002_00001.ppm"))
    path.write_bytes(b"P6 nothing")
    with pytest.raises(UserError, match=r"GT-00000\.csv line 9: '.*00002_00001\.ppm' (is no image|cannot be read)"):
        build(copy)


def test_damaged_packed_copies_are_refused(packed):
    for changes, words in (
        ({"roi_xyxy": np.full((36, 4), 3, np.float32)}, "roi_xyxy holds no box"),
        ({"labels": np.zeros(36, np.uint8)}, "image 1 has the class 1, which no training image has"),
        ({"track": np.zeros(35, np.int32)}, r"track has the shape \(35,\), for 36 images"),
    ):
        write_packed_signs(packed, changes)
        with pytest.raises(UserError, match=words):
            build(packed)


def test_the_fingerprint_follows_the_content(packed):
    prints = [build(packed, **options).fingerprint for options in ({}, {"size": 16}, {"boxes": "crop"})]
    prints.append(build(packed, split_seed=1).fingerprint)
    write_csv(packed / "class_concepts.csv", CONCEPTS, [(*row[:-1], 1 - row[-1]) for row in ROWS])
    prints.append(build(packed).fingerprint)
    write_packed_signs(packed, {"roi_xyxy": np.tile(np.array([4, 4, 20, 20], np.float32), (36, 1))})
    prints.append(build(packed).fingerprint)
    assert len(set(prints)) == len(prints)


def test_both_layouts_are_recognised(original, packed, tmp_path):
    see = LAYOUTS.get("gtsrb")
    for root, because in (
        (original, "gtsrb/GTSRB/Training/"),
        (original / "gtsrb", "GTSRB/Training/"),
        (packed, "gtsrb32_train_jpeg.npz and class_concepts.csv"),
    ):
        seen = see(root)
        assert seen.because == because
        build_source(seen.spec)
    assert see(tmp_path) is None


def test_the_real_copy(real_data):
    source = build_source({"name": "gtsrb", "root": str(real_data / "gtsrb32")})
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 11120, "val": 1950, "test": 6315}
    assert source.class_names == CLASS_NAMES
    assert len(source.concepts) == 49
    assert [group.name for group in source.concepts.groups if group.categorical] == ["shape"]
    assert len(np.unique(source.splits["test"].truth, axis=0)) == 43
    train, val = source.splits["train"], source.splits["val"]
    tracks = train.part.groups
    assert not set(tracks[train.rows]) & set(tracks[val.rows])
    assert len(np.unique(val.labels)) == 43
    maps = np.stack([source.splits["test"].sample(i).human_map for i in range(50)])
    # The official margin is a tenth on each side, and at least five pixels.
    assert 0.4 < (maps > 0).mean() < 0.7
    assert (maps[:, 16, 16] == 255).all()
