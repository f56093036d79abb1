"""What is wrong in a folder of the CUB layout is told with file, line and cure."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from cub_builder import build, write_cub, write_lines
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.files import BrokenFiles


@pytest.fixture
def written(tmp_path):
    return write_cub(tmp_path, archive=False)


def refused(written, words, **options):
    with pytest.raises(UserError, match=words) as caught:
        build(written.place, **options)
    return caught.value


def lines_of(written, table):
    return (written.place / table).read_text(encoding="utf-8").splitlines()


def change(written, table, line, text):
    """Replace a line (from 1); None appends."""
    lines = lines_of(written, table)
    if line is None:
        lines.append(text)
    else:
        lines[line - 1] = text
    (written.place / table).write_text("\n".join(lines) + "\n", encoding="utf-8")


IMAGE = "001.Bird_A0/Bird_A0_0000.jpg"


@pytest.mark.parametrize(
    ("table", "line", "text", "words"),
    [
        ("images.txt", 5, "4 x/y.jpg", r"images\.txt line 5: the id 4 is given to '001\S+_0003\.jpg' already, in"),
        ("images.txt", 5, f"5 {IMAGE}", f"line 5: the image '{IMAGE}' is listed already, in line 1, as '001.* as '002"),
        ("images.txt", 3, f"3 001.Bird_A0/./../{IMAGE}", rf"line 3: the image '{IMAGE}' is listed already, in line 1;"),
        ("images.txt", 3, f"x {IMAGE}", r"images\.txt line 3: the id 'x' is no whole number"),
        ("images.txt", 3, f"3.0 {IMAGE}", r"images\.txt line 3: the id '3\.0' is no whole number"),
        ("images.txt", 3, f"3,{IMAGE}", r"images\.txt line 3 is separated by commas; write blanks or tabs"),
        ("images.txt", 3, f"3;{IMAGE}", r"images\.txt line 3 is separated by semicolons"),
        ("images.txt", 3, "3", r"images\.txt line 3 has 1 fields; write it like '12 class_folder/picture\.jpg'"),
        ("images.txt", 3, "3 ../../secret.jpg", r"images\.txt line 3: 'images/\.\./\.\./secret\.jpg' leads out"),
        ("images.txt", 3, "3 002.Bird_B1/z.jpg", r"line 3: .* folder of the class '002\.\S+', but .* '001\.Bird_A0'"),
        ("images.txt", None, "41 001.Bird_A0/new.jpg", r"_labels\.txt has no line for 1 of the 41 .*\(line 41\)"),
        ("classes.txt", 2, "1 zzz", r"classes\.txt line 2: the id 1 is given to '001\.Bird_A0' already, in line 1"),
        ("classes.txt", 2, "2 001.Bird_A0", r"line 2: the class '001\.Bird_A0' is named already, in line 1"),
        ("classes.txt", None, "11 011.New", r"classes\.txt line 11: the class '011\.New' has no image; remove"),
        ("image_class_labels.txt", 3, "3 77", r"image_class_labels\.txt line 3: there is no class 77 in classes\.txt"),
        ("image_class_labels.txt", 3, "77 1", r"image_class_labels\.txt line 3: there is no image 77 in images\.txt"),
        ("image_class_labels.txt", None, "3 2", r"line 41: the image 3 has a line already, line 3, with '1' instead"),
        ("image_class_labels.txt", None, "3 1", r"line 41: the image 3 has a line already, line 3; keep one"),
        ("image_class_labels.txt", 3, "3 one", r"line 3: the class id 'one' is no whole number"),
        ("train_test_split.txt", 3, "3 2", r"train_test_split\.txt line 3: the split is '2'; write 1 for training"),
        ("train_test_split.txt", 3, "1 1", r"train_test_split\.txt line 3: the image 1 has a line already, line 1"),
        ("bounding_boxes.txt", 3, "3 1 2 0 5", r"bounding_boxes\.txt line 3: the box \(1, 2, 0, 5\) is empty"),
        ("bounding_boxes.txt", 3, "3 1 2 5 -5", r"line 3: the box \(1, 2, 5, -5\) is empty"),
        ("bounding_boxes.txt", 3, "3 50 2 5 5", r"line 3: the box \(50, 2, 5, 5\) lies outside its image of 40 x 30"),
        ("bounding_boxes.txt", 3, "3 37 2 9 5", r"line 3: the box \(37, 2, 9, 5\) lies outside"),
        ("bounding_boxes.txt", 3, "3 nan 2 9 5", r"line 3: the left 'nan' is no number"),
        ("bounding_boxes.txt", 3, "3 1 2 9", r"line 3 has 4 fields; write it like '12 60\.0"),
        ("parts/part_locs.txt", 5, "2 9 1 1 1", r"part_locs\.txt line 5: there is no part 9 in parts\.txt"),
        ("parts/part_locs.txt", 5, "99 1 1 1 1", r"part_locs\.txt line 5: there is no image 99"),
        ("parts/part_locs.txt", 5, "1 1 1 1 1", r"line 5: the part 'left eye' of '001\S+' is in line 1 already"),
        ("parts/part_locs.txt", 5, "2 2 41 3 1", r"line 5: the part 'tail' at \(41, 3\) lies outside its image of 40"),
        ("parts/part_locs.txt", 5, "2 2 -1 3 1", r"line 5: the part 'tail' at \(-1, 3\) lies outside"),
        ("parts/part_locs.txt", 5, "2 2 1 inf 1", r"line 5: the y 'inf' is no number"),
        ("parts/part_locs.txt", 5, "2 2 1 1 2", r"line 5: visible is '2'; write 1 or 0"),
        ("parts/parts.txt", 2, "2 left eye", r"parts\.txt line 2: the part 'left eye' is named already, in line 1"),
        ("attributes.txt", 2, "2 sings", r"attributes\.txt line 7: the attribute 'sings' is named already, in line 2"),
        ("attributes.txt", 2, "2 has_wing_color", r"line 4: 'has_wing_color' is the name of an attribute and of"),
        ("attributes/image_attribute_labels.txt", 3, "1 99 1 4 2", r"_labels\.txt line 3: there is no attribute 99"),
    ],
)  # fmt: skip
def test_damaged_lines(written, table, line, text, words):
    change(written, table, line, text)
    refused(written, words)


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (2, "1 2 3", r"continuous\.txt line 2 has 3 columns for the 7 attributes of .*attributes\.txt"),
        (2, "1,2,3,4,5,6,7", r"line 2 has 1 columns .*separate them by blanks, not by commas"),
        (2, "1 2 nan 4 5 6 7", r"line 2: the value of 'has_bill_shape::curved_\(up_or_down\)' 'nan' is no number"),
        (2, "1 2 x 4 5 6 7", r"line 2: the value of .* 'x' is no number"),
        (2, "1 2 101 4 5 6 7", r"line 2: the value of 'has_bill_shape::curved\S* is 101, outside 0 \.\. 100"),
        (2, "1 2 -2 4 5 6 7", r"line 2: the value of 'has_bill_shape::curved\S* is -2, outside .*; -1 where nobody"),
        (None, "1 2 3 4 5 6 7", r"line 11: more lines than the 10 classes of classes\.txt"),
    ],
)
def test_a_damaged_matrix_of_classes(tmp_path, line, text, words):
    written = write_cub(tmp_path, archive=False, class_level_only=True)
    change(written, "attributes/class_attribute_labels_continuous.txt", line, text)
    refused(written, words)


def test_a_matrix_with_too_few_lines(tmp_path):
    written = write_cub(tmp_path, archive=False, class_level_only=True)
    table = written.place / "attributes" / "class_attribute_labels_continuous.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-2]))
    refused(written, r"has 8 lines for the 10 classes of classes\.txt")


@pytest.mark.parametrize("table", ["images.txt", "classes.txt", "image_class_labels.txt", "parts/parts.txt"])
def test_missing_and_empty_tables(written, table):
    path = written.place / table
    path.write_text("\n  \n")
    words = "has no line for 40 of the 40" if "labels" in table else "is empty"
    refused(written, rf"{path.name} {words}")
    path.unlink()
    refused(written, rf"{path.name} is missing; each of its lines reads like")


def test_labels_without_names_and_empty_ones(written):
    (written.place / "attributes" / "image_attribute_labels.txt").write_text("")
    refused(written, r"image_attribute_labels\.txt is empty; fill it, or remove it")
    (written.place / "attributes.txt").unlink()
    refused(written, r"has labels of attributes, but no attributes\.txt; put it there, into attributes/, or one")
    (written.place / "parts" / "part_locs.txt").write_text("")
    shutil.rmtree(written.place / "attributes")
    refused(written, r"part_locs\.txt is empty")
    (written.place / "parts" / "part_locs.txt").unlink()
    source = build(written.place)
    assert "no concepts" in source.notes
    assert "parts/parts.txt has no part_locs.txt beside it" in source.notes
    assert source.gives == {"human_map"}


def test_one_class_is_none(tmp_path):
    with pytest.raises(UserError, match=r"classes\.txt names only one class, '001\.Bird_A0'"):
        build(write_cub(tmp_path, classes=1).place)


def test_no_such_layout(tmp_path):
    with pytest.raises(UserError, match=r"the data folder .*nowhere' does not exist; set data\.root"):
        build(tmp_path / "nowhere")
    (tmp_path / "images.txt").write_text("1 a/b.jpg\n")
    with pytest.raises(UserError, match=r"holds no CUB layout: .* are neither there nor in CUB_200_2011/"):
        build(tmp_path)


def test_other_encodings(written):
    path = written.place / "images.txt"
    text = path.read_text().replace(IMAGE, "001.Bird_A0/Vögel.jpg")
    path.write_bytes(text.encode("latin-1"))
    refused(written, r"images\.txt is not UTF-8 text: line 1 ")
    path.write_bytes(text.encode("utf-16"))
    refused(written, r"images\.txt is not UTF-8 text")


def test_the_first_missing_images_are_named_and_the_rest_is_counted(written):
    for row in (0, 2, 4, 6, 8, 10, 12):
        (written.place / "images" / written.files[row]).unlink()
    error = refused(written, r"images\.txt line 1: the file '\S*_0000\.jpg' is missing; .*images\.txt line 3: ")
    assert isinstance(error, BrokenFiles)
    assert len(error.problems) == 7
    assert "images.txt line 9: " in error.problem
    assert "line 11: " not in error.problem
    assert error.problem.endswith("and 2 more")


def test_files_that_are_no_images(written):
    images = written.place / "images"
    (images / written.files[3]).write_text("no image")
    (images / written.files[5]).write_bytes(b"")
    refused(written, r"images\.txt line 4: .* is no image file; .*images\.txt line 6: .* is empty; replace or remove")


def test_truncated_images_are_told_by_line(written):
    path = written.place / "images" / written.files[6]
    path.write_bytes(path.read_bytes()[:700])
    source = build(written.place)
    name, index = next((n, i) for n, s in source.splits.items() for i in range(len(s)) if s.file(i) == path)
    with pytest.raises(
        UserError, match=r"images\.txt line 7: .*_0002\.jpg' cannot be decoded .*: replace or remove it"
    ):
        source.splits[name].sample(index)


def test_links_out_of_the_folder(written, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    Image.new("RGB", (40, 30)).save(outside)
    path = written.place / "images" / written.files[6]
    path.unlink()
    path.symlink_to(outside)
    refused(written, r"images\.txt line 7: 'images/\S*' leads out of the data folder")
    path.unlink()
    shutil.copy(outside, path)
    png = (written.place / "segmentations" / written.files[6]).with_suffix(".png")
    png.unlink()
    png.symlink_to(outside)
    refused(written, r"segmentation: '\S*' leads out of the data folder")


def test_segmentations_that_fit_no_image(written):
    png = (written.place / "segmentations" / written.files[6]).with_suffix(".png")
    shutil.copy(png, png.with_suffix(".bmp"))
    refused(written, r"holds two segmentations, \S*\.bmp and \S*\.png; remove one")
    shutil.rmtree(written.place / "segmentations")
    (written.place / "segmentations").mkdir()
    refused(written, r"holds no segmentation of any image; call them like the images, as in 001\.Bird_A0/\S*_0000\.png")
    png.parent.mkdir()
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(png)
    source = build(written.place)
    name, index = next(
        (n, i) for n, s in source.splits.items() for i in range(len(s)) if s.origin(i).endswith(written.files[6])
    )
    with pytest.raises(UserError, match=r"images\.txt line 7: the map .* holds only 0 and 1"):
        source.splits[name].sample(index)


def test_a_crop_needs_a_box_for_every_image(written):
    table = written.place / "bounding_boxes.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-7]))
    assert "7 of 40 images have no box" in build(written.place).notes
    error = refused(
        written, r"no line for 7 of the 40 entries of images\.txt: .*\(line 34\), .* or set crop=false", crop=True
    )
    assert "and 2 more" in error.problem
    table.unlink()
    refused(written, r"crop=true needs '\S*bounding_boxes\.txt', which is not there; set crop=false", crop=True)


def test_classes_without_training_images_and_empty_splits(written):
    split = np.where(written.labels == 2, 0, 1)
    write_lines(written.place / "train_test_split.txt", zip(written.ids, split, strict=True))
    refused(written, r"classes\.txt line 3: the class '003\.Bird_C2' has no training image; put one of its")
    write_lines(written.place / "train_test_split.txt", zip(written.ids, split * 0 + 1, strict=True))
    refused(written, r"the split test got none of the 40 images; remove train_test_split\.txt to have it drawn")
    table = written.place / "train_test_split.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-7]))
    refused(written, r"no line for 7 of the 40 entries .*and 2 more; .* without the file the splits are drawn")
