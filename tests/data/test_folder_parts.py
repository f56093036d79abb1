"""``maps/`` and ``keypoints.csv``: they follow their images to the pixel."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from builders import build_folder, coordinates, sample_of, write_csv, write_folder, write_image
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.folder_keypoints import fitted


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, nothing else."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


def test_maps_follow_their_images(root):
    x = np.arange(24) * 10
    ramp = np.tile(x, (20, 1)).astype(np.uint8)
    (root / "maps" / "cat").mkdir(parents=True)
    Image.fromarray(ramp).save(root / "maps" / "cat" / "cat0.png")
    Image.fromarray(ramp[:10, ::2]).convert("RGB").save(root / "maps" / "cat" / "cat1.bmp")
    source = build_folder(root)
    assert source.gives == {"human_map"}
    full = sample_of(source, "cat/cat0.png").human_map
    assert full.shape == (16, 16)
    assert full.dtype == np.uint8
    assert np.array_equal(full, Preprocessing(16).pixels(ramp)[..., 0])
    assert np.abs(sample_of(source, "cat/cat1.png").human_map.astype(int) - full).max() <= 12
    assert sample_of(source, "dog/dog0.png").human_map is None


def test_maps_that_fit_no_image_or_hold_no_map_are_refused(root):
    write_image(root / "maps" / "cat" / "cat77.png")
    with pytest.raises(
        UserError, match=r"cat77\.png' belongs to no image; call it like its image, as in maps/cat/cat0\.png"
    ):
        build_folder(root)
    shutil.rmtree(root / "maps")
    write_image(root / "maps" / "cat" / "cat1.png")
    write_image(root / "maps" / "cat" / "cat1.bmp")
    with pytest.raises(UserError, match=r"the image 'cat/cat1\.png' has two maps"):
        build_folder(root)
    shutil.rmtree(root / "maps")
    (root / "maps" / "cat").mkdir(parents=True)
    Image.fromarray(np.eye(20, 24, dtype=np.uint8)).save(root / "maps" / "cat" / "cat1.png")
    with pytest.raises(UserError, match=r"holds only 0 and 1; save it with 255 where to look"):
        sample_of(build_folder(root), "cat/cat1.png")
    write_image(root / "cat" / "cat1.jpg")
    with pytest.raises(UserError, match=r"belongs to cat/cat1\.jpg and cat/cat1\.png; rename all but one"):
        build_folder(root)


@pytest.mark.parametrize("size", [(24, 20), (20, 24), (16, 16), (100, 33), (7, 9), (40, 40)])
def test_keypoints_follow_their_pixels(size):
    width, height = size
    big = np.kron(coordinates(128)[:height, :width], np.ones((1, 1, 1))).astype(np.uint8)
    pixels = Preprocessing(16).pixels(big).astype(float)
    y, x = np.mgrid[:height, :width]
    points = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)
    moved = fitted(points, width, height, 16)
    side = min(width, height)
    seen = 0
    for (px, py, _), (mx, my, visible) in zip(points, moved, strict=True):
        assert visible == (-0.5 <= mx < 15.5 and -0.5 <= my < 15.5)
        if visible and 1 <= mx <= 14 and 1 <= my <= 14:
            shown = pixels[round(float(my)), round(float(mx)), :2] / 2
            assert np.abs(shown - (px, py)).max() <= 0.5 * side / 16 + 0.8
            seen += 1
    assert seen > 10


def test_keypoints_are_read_and_moved(root):
    rows = [("cat/cat0.png", "tail", 12, 10, 1), ("cat0.png", "head", 0, 0, 1), ("dog1.png", "head", "", "", 0)]
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y", "visible"), rows)
    source = build_folder(root)
    assert source.part_names == ("head", "tail")
    assert source.gives == {"keypoints"}
    points = sample_of(source, "cat/cat0.png").keypoints
    # Of 24 x 20 the columns 2 to 21 are kept, and 20 become 16.
    assert points[0, 2] == 0
    assert points[1] == pytest.approx([10.5 * 16 / 20 - 0.5, 10.5 * 16 / 20 - 0.5, 1], abs=1e-4)
    assert sample_of(source, "dog/dog1.png").keypoints[:, 2].tolist() == [0, 0]
    assert sample_of(source, "dog/dog5.png").keypoints[:, 2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("cat9x.png", "head", 1, 1)], r"keypoints\.csv line 2: there is no image"),
        (
            [("cat0.png", "head", 1, 1), ("cat0.png", "head", 2, 2)],
            "line 3: the part 'head' of this image is in line 2",
        ),
        ([("cat0.png", "head", "left", 1)], r"line 2: the position \('left', '1'\) is no pair of numbers"),
        ([("cat0.png", "head", "nan", 1)], "no pair of numbers"),
        ([("cat0.png", "head", "", "")], "no pair of numbers"),
        ([("cat0.png", "", 1, 1)], "line 2: the part has no name"),
        ([], "lists no keypoints"),
    ],
)
def test_damaged_keypoints_are_refused(root, rows, words):
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y"), rows)
    with pytest.raises(UserError, match=words):
        build_folder(root)


def test_a_keypoint_outside_its_image_is_refused_by_line(root):
    write_csv(
        root / "keypoints.csv", ("image", "part", "x", "y"), [("cat0.png", "head", 25, 3), ("cat1.png", "head", 3, 3)]
    )
    source = build_folder(root)
    with pytest.raises(
        UserError, match=r"keypoints\.csv line 2: the keypoint 'head' at \(25, 3\) lies outside its image of 24 x"
    ):
        sample_of(source, "cat/cat0.png")
    sample_of(source, "cat/cat1.png")
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y", "visible"), [("cat0.png", "head", 3, 3, "maybe")])
    with pytest.raises(UserError, match="line 2: visible is 'maybe'; write 1 or 0"):
        build_folder(root)
