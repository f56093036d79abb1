"""Every example is looked at: broken files all by name, odd pictures, maps and parts, copies."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from builders import array_source, build_folder, write_csv, write_folder, write_image, write_wbcatt
from PIL import Image

from vitrarium.data import build_source, reading
from vitrarium.data.check import check_source
from vitrarium.data.check.examples import look_at_all
from vitrarium.data.files import BrokenFiles, check_headers, digests


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, nothing else."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


def check(root, **options):
    source = build_folder(root, **options)
    return check_source(source, {"name": "folder", "root": str(root)})


def only(found, kind):
    [finding] = found.of(kind)
    return finding


def test_a_clean_folder_has_only_its_own_note(root):
    found = check(root)
    assert [f.kind for f in found.findings] == ["said"]
    assert found.clean
    assert found.images["images"] == found.images["files"] == 20
    assert (found.images["smallest"], found.images["largest"]) == ((24, 20), (24, 20))
    assert found.decoded
    assert found.to_dict()["splits"][0] == {"name": "train", "images": 12, "leaked": 0}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-700])


def test_all_broken_files_are_named_with_their_line(root):
    write_csv(root / "concepts.csv", ("image", "spots"), [(f"cat/cat{i}.png", i % 2) for i in range(8)])
    for name in ("cat/cat1.png", "cat/cat9.png", "dog/dog0.png", "dog/dog3.png", "dog/dog7.png", "dog/dog8.png"):
        truncate(root / name)
    finding = only(check(root), "broken_file")
    assert finding.severity == "error"
    assert finding.message == "6 images cannot be read"
    assert len(finding.items) == 6
    [first] = [item for item in finding.items if "cat1" in item]
    assert "concepts.csv line 3: " in first
    assert all(any(name in item for item in finding.items) for name in ("cat9", "dog0", "dog3", "dog7", "dog8"))


def test_missing_files_are_all_named_with_their_line(tmp_path):
    write_wbcatt(tmp_path)
    images = sorted(tmp_path.rglob("*.jpg"))
    for path in images[:7]:
        path.unlink()
    with pytest.raises(BrokenFiles) as refused:
        build_source({"name": "wbcatt", "root": str(tmp_path)})
    assert len(refused.value.problems) == 7
    assert all(".csv line " in problem for problem in refused.value.problems)
    assert str(refused.value).count("is missing") == 5
    assert "and 2 more" in str(refused.value)


def test_headers_and_digests_tell_everything_at_once(tmp_path):
    good = write_image(tmp_path / "good.png")
    bad = [tmp_path / f"{number}.png" for number in range(7)]
    for path in bad:
        path.write_text("words")
    with pytest.raises(BrokenFiles) as refused:
        check_headers([good, *bad])
    assert len(refused.value.problems) == 7
    with pytest.raises(BrokenFiles, match=r"list\.txt line 4: the file '.*gone\.png' is missing"):
        digests([good, tmp_path / "gone.png"], ["list.txt line 3", "list.txt line 4"])


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def noise(width=24, height=20, seed=5):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(path, noise(), exif=exif)


@pytest.mark.parametrize(
    ("kind", "severity", "write"),
    [
        ("blank_image", "warning", lambda p: save(p, Image.new("RGB", (24, 20), "gold"))),
        ("thin_image", "warning", lambda p: save(p, noise(40, 1))),
        ("enlarged", "note", lambda p: save(p, noise(24, 15))),
        ("elongated", "note", lambda p: save(p, noise(50, 24))),
        ("grey", "note", lambda p: save(p, noise().convert("L"))),
        ("palette", "note", lambda p: save(p, noise().convert("P"))),
        ("transparent", "note", lambda p: save(p, noise().convert("RGBA"))),
        ("turned", "note", turned),
        ("16_bit", "note", lambda p: save(p, Image.fromarray((np.arange(480).reshape(20, 24) * 99).astype(np.uint16)))),
    ],
)
def test_odd_pictures(root, kind, severity, write):
    write(root / "cat" / "odd.png")
    found = check(root)
    assert only(found, kind).severity == severity
    if severity == "warning":
        assert only(found, kind).items == ("cat/odd.png",)
    (root / "cat" / "odd.png").unlink()
    assert not check(root).of(kind)


def test_cmyk(root):
    save(root / "cat" / "odd.jpg", noise().convert("CMYK"))
    assert only(check(root), "cmyk").message == "1 image is CMYK"


def test_maps(root):
    x = np.tile(np.arange(24), (20, 1))
    for name, grey in (("cat0", np.zeros((20, 24))), ("cat1", np.full((20, 24), 90)), ("cat2", x * 10)):
        save(root / "maps" / "cat" / f"{name}.png", Image.fromarray(grey.astype(np.uint8)))
    found = check(root)
    assert only(found, "empty_map").items == ("cat/cat0.png",)
    assert only(found, "constant_map").items == ("cat/cat1.png",)
    assert (found.images["maps"], found.images["empty_maps"], found.images["constant_maps"]) == (3, 1, 1)


def test_parts(root):
    points = [(f"cat{i}.png", "head", 12, 10, 1) for i in range(5)] + [("dog0.png", "tail", 1, 1, 0)]
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y", "visible"), points)
    found = check(root)
    assert found.parts == [
        {"name": "head", "visible": 0.25, "masked": None},
        {"name": "tail", "visible": 0.0, "masked": None},
    ]
    assert only(found, "hidden_part").items == ("tail",)
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y", "visible"), points[:5])
    assert not check(root).of("hidden_part")


def test_part_masks_count_as_seen():
    found = check_source(array_source(), {"name": "arrays"})
    assert [row["masked"] for row in found.parts] == [1.0] * 3
    assert not found.of("hidden_part")


def test_copies(root):
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = [(f"{c}/{c}{i}.png", splits[i]) for c in ("cat", "dog") for i in range(10)]
    write_csv(root / "concepts.csv", ("image", "split"), rows)
    shutil.copy(root / "cat" / "cat0.png", root / "cat" / "cat1.png")
    shutil.copy(root / "cat" / "cat2.png", root / "cat" / "cat9.png")
    shutil.copy(root / "dog" / "dog0.png", root / "cat" / "cat3.png")
    found = check(root)
    assert only(found, "duplicate").items[0] == "cat/cat0.png (train) = cat/cat1.png (train)"
    assert only(found, "leak").items == ("cat/cat2.png (train) = cat/cat9.png (test)",)
    assert "(seen elsewhere: 1 of test)" in only(found, "leak").message
    assert only(found, "contradicting_copies").items == ("cat/cat3.png (train, cat) = dog/dog0.png (train, dog)",)
    assert [row["leaked"] for row in found.splits] == [0, 0, 1]
    assert not found.of("said") or all("duplicates" not in f.message for f in found.of("said"))


def test_copies_are_found_by_pixels_where_nobody_has_looked():
    source = array_source()
    source.splits["test"].images[3] = source.splits["train"].images[2]
    found = check_source(source, {"name": "arrays"})
    assert only(found, "leak").items == ("generated/2.png (train) = generated/3.png (test)",)
    fast = check_source(source, {"name": "arrays"}, fast=True)
    assert not fast.of("leak")
    assert [row["leaked"] for row in fast.splits] == [None] * 3


def test_fast_decodes_nothing(root):
    truncate(root / "cat" / "cat1.png")
    source = build_folder(root)
    found = check_source(source, {"name": "folder"}, fast=True)
    assert not found.of("broken_file")
    assert (found.decoded, found.images, found.parts) == (False, {}, [])
    assert len(found.classes) == 2


def test_several_processes_see_the_same(root, monkeypatch):
    for number in range(40):
        write_image(root / "dog" / f"more{number}.png", 5000 + number)
    truncate(root / "dog" / "more7.png")
    truncate(root / "dog" / "more33.png")
    source = build_folder(root)
    one = look_at_all(source)
    monkeypatch.setattr(reading, "WORTH", -1.0)
    monkeypatch.setattr(reading, "_workers", lambda: 2)
    told = []
    two = look_at_all(source, lambda done, total: told.append((done, total)))
    assert vars(one) == vars(two)
    assert len(one.broken) == 2
    assert told == [(32, 60)]
