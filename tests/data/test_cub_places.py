"""Boxes, parts and segmentations of the CUB layout: they follow their pixels, cropped or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import coordinates, sample_of
from cub_builder import build, write_cub, write_lines
from PIL import Image

from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.sets.cub_parts import window

WIDTH, HEIGHT = 60, 40


@pytest.fixture
def marked(tmp_path):
    """Images without loss whose pixels say where they were; a segmentation that repeats their red; no random parts."""
    written = write_cub(tmp_path, classes=2, per_class=4, attributes=(), parts=(), size=(WIDTH, HEIGHT))
    picture = coordinates(WIDTH)[:HEIGHT]
    files = [file.replace(".jpg", ".png") for file in written.files]
    for n, (old, new) in enumerate(zip(written.files, files, strict=True)):
        (written.place / "images" / old).unlink()
        shown = picture.copy()
        shown[..., 2] = n
        Image.fromarray(shown).save(written.place / "images" / new)
        Image.fromarray(picture[..., 0]).save(tmp_path / "segmentations" / new)
    write_lines(written.place / "images.txt", zip(written.ids, files, strict=True))
    return tmp_path, written, files, picture


def square(box, width, height, margin):
    """The window by trying all squares: that which is centred best, then moved inside; clipped if it is too large."""
    left, top, wide, high = box
    side = math.ceil(max(wide, high) * (1 + 2 * margin))
    found = []
    for start, length, limit in ((left, wide, width), (top, high, height)):
        if side >= limit:
            found.append((0, limit))
            continue
        middle = start + length / 2
        best = min(range(limit - side + 1), key=lambda first: (round(abs(first + side / 2 - middle), 6), -first))
        found.append((best, best + side))
    return found[0][0], found[1][0], found[0][1], found[1][1]


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.75])
def test_the_window_is_the_best_centred_square_inside_the_image(margin):
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top = rng.integers(0, (WIDTH - 3, HEIGHT - 3))
        box = np.array([left, top, rng.integers(2, WIDTH - left + 1), rng.integers(2, HEIGHT - top + 1)], float)
        made = window(box, (WIDTH, HEIGHT), margin)
        assert made == square(box.tolist(), WIDTH, HEIGHT, margin)
        if max(box[2:]) <= HEIGHT:
            # The whole box is seen.
            assert made[0] <= box[0]
            assert made[1] <= box[1]
            assert made[2] >= box[0] + box[2]
            assert made[3] >= box[1] + box[3]
    assert window(np.array([-4.0, 0, 20, 10]), (WIDTH, HEIGHT), 0) == (0, 0, 20, 20)
    assert window(np.array([10.2, 5.6, 15.5, 8.0]), (WIDTH, HEIGHT), 0) == (10, 2, 26, 18)


def test_a_crop_shows_its_box_to_the_pixel(marked):
    root, written, files, picture = marked
    boxes = [(20, 10, 16, 16), (0, 0, 16, 10), (50, 30, 10, 10), (30, 4, 32 - 16, 3)]
    boxes += [(5.5, 6.5, 16, 16), (0, 0, 60, 40), (40, 0, 20, 32), (1, 38, 16, 2)]
    write_lines(written.place / "bounding_boxes.txt", [(i, *b) for i, b in zip(written.ids, boxes, strict=True)])
    source = build(root, crop=True)
    assert "images are cropped to their boxes: crop images alike before they are predicted" in source.notes
    for n, (file, box) in enumerate(zip(files, boxes, strict=True)):
        left, top, right, bottom = square(box, WIDTH, HEIGHT, 0)
        sample = sample_of(source, f"images/{file}")
        shown = picture[top:bottom, left:right]
        assert (sample.image[..., 2] == n).all()
        assert np.array_equal(sample.image[..., :2], Preprocessing(16).pixels(shown)[..., :2])
        assert np.array_equal(sample.human_map, Preprocessing(16).pixels(shown[..., 0])[..., 0])
        if (right - left, bottom - top) == (16, 16):
            # Nothing is resampled: red and green are twice the coordinates.
            y, x = np.mgrid[top:bottom, left:right]
            assert np.array_equal(sample.image[..., 0], 2 * x)
            assert np.array_equal(sample.image[..., 1], 2 * y)
    wider = build(root, crop=True, margin=0.5)
    sample = sample_of(wider, f"images/{files[0]}")
    assert np.array_equal(sample.image[..., :2], Preprocessing(16).pixels(picture[2:34, 12:44])[..., :2])


@pytest.mark.parametrize("crop", [False, True])
def test_parts_follow_their_pixels(marked, crop):
    root, written, files, _ = marked
    rng = np.random.default_rng(1)
    boxes = [(20, 10, 16, 16), (3, 3, 30, 12), (25, 5, 30, 30), (0, 20, 18, 20)] * 2
    write_lines(written.place / "bounding_boxes.txt", [(i, *b) for i, b in zip(written.ids, boxes, strict=True)])
    names = [f"part {p}" for p in range(24)]
    write_lines(written.place / "parts" / "parts.txt", enumerate(names, start=1))
    points = rng.integers(0, (WIDTH, HEIGHT), (len(files), 24, 2))
    visible = rng.random((len(files), 24)) < 0.8
    rows = [
        (i, p + 1, *map(float, points[n, p]), int(visible[n, p])) for n, i in enumerate(written.ids) for p in range(24)
    ]
    write_lines(written.place / "parts" / "part_locs.txt", rows)
    source = build(root, crop=crop)
    assert source.part_names == tuple(names)
    seen = 0
    for n, (file, box) in enumerate(zip(files, boxes, strict=True)):
        sample = sample_of(source, f"images/{file}")
        left, top, right, bottom = square(box, WIDTH, HEIGHT, 0) if crop else (0, 0, WIDTH, HEIGHT)
        side = min(right - left, bottom - top)
        inner = (left + (right - left - side) / 2, top + (bottom - top - side) / 2)
        for p, (x, y, shown) in enumerate(sample.keypoints):
            px, py = points[n, p]
            inside = inner[0] <= px + 0.5 < inner[0] + side and inner[1] <= py + 0.5 < inner[1] + side
            assert shown == (visible[n, p] and inside)
            if shown:
                assert x == pytest.approx((px + 0.5 - inner[0]) * 16 / side - 0.5, abs=1e-4)
                assert y == pytest.approx((py + 0.5 - inner[1]) * 16 / side - 0.5, abs=1e-4)
                if 1 <= x <= 14 and 1 <= y <= 14:
                    colour = sample.image[round(float(y)), round(float(x)), :2] / 2
                    assert np.abs(colour - (px, py)).max() <= 0.5 * side / 16 + 0.8
                    seen += 1
    assert seen > 10


def test_segmentations_are_soft_maps_wherever_they_lie(tmp_path):
    written = write_cub(tmp_path)
    source = build(tmp_path)
    png = (tmp_path / "segmentations" / written.files[0]).with_suffix(".png")
    grey = np.asarray(Image.open(png))
    assert set(np.unique(grey)) >= {0, 51, 255}
    drawn = sample_of(source, f"images/{written.files[0]}").human_map
    assert np.array_equal(drawn, Preprocessing(16).pixels(grey)[..., 0])
    assert drawn.max() == 255
    (tmp_path / "segmentations").rename(written.place / "segmentations")
    assert build(tmp_path).fingerprint == source.fingerprint
    # A folder beside that belongs to something else is passed over.
    (written.place / "segmentations").rename(tmp_path / "segmentations")
    (tmp_path / "segmentations" / "001.Bird_A0").rename(tmp_path / "segmentations" / "other")
    for n in range(1, 10):
        (tmp_path / "segmentations" / written.files[4 * n].split("/")[0]).rename(tmp_path / "segmentations" / f"o{n}")
    assert build(tmp_path).gives == {"concepts", "keypoints"}


def test_boxes_that_stick_out_are_clipped_and_told(tmp_path):
    written = write_cub(tmp_path)
    rows = [(i, *b) for i, b in zip(written.ids, written.boxes.tolist(), strict=True)]
    rows[4] = (written.ids[4], -2.0, 5.0, 20.0, 30.0)
    write_lines(written.place / "bounding_boxes.txt", rows)
    source = build(tmp_path, crop=True)
    assert "1 boxes reach beyond their images (line 5 first): they are clipped" in source.notes
    assert sample_of(source, f"images/{written.files[4]}").image.shape == (16, 16, 3)
