"""Any image to the pixels a model was trained on, or a refusal that says what is wrong with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from builders import coordinates
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing, open_rgb

ORIENTATION = 0x0112


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_an_image_of_the_right_size_is_left_alone():
    image = noise(16, 16)
    assert np.array_equal(Preprocessing(16).pixels(image), image)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64), (65, 200), (10, 20), (1, 1), (3, 1)])
def test_shorter_side_then_the_centre_square(height, width):
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), np.full_like(x, 9)], -1).astype(
        np.uint8
    )
    pixels = Preprocessing(32).pixels(image)
    assert pixels.shape == (32, 32, 3)
    assert (pixels[..., 2] == 9).all()
    # The middle of the image stays in the middle, whatever was cropped.
    middle = pixels[15:17, 15:17, :2].astype(float).mean(axis=(0, 1))
    expected = [127.5 if width > 1 else 0, 127.5 if height > 1 else 0]
    assert np.abs(middle - expected).max() <= 6
    shown = 32 / (32 * max(width, height) / min(width, height))
    longer = 0 if width >= height else 1
    if max(width, height) >= 32:
        assert abs(np.ptp(pixels[..., longer].astype(float)) / 255 - shown) < 0.06


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunken = Preprocessing(16).pixels(stripes).astype(float)
    assert np.abs(shrunken[:, 1:-1] - 127.5).max() < 3
    assert np.abs(shrunken - 127.5).max() < 20


def test_every_way_to_give_an_image_gives_the_same(tmp_path):
    image, preprocessing = noise(40, 50), Preprocessing(20)
    Image.fromarray(image).save(tmp_path / "a.png")
    ways = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(image),
        image,
        image / np.float32(255),
        image.astype(np.float64) / 255,
        torch.from_numpy(image),
        np.dstack([image, np.full(image.shape[:2], 77, np.uint8)]),
    ]
    expected = preprocessing.pixels(image)
    for way in ways:
        assert np.array_equal(preprocessing.pixels(way), expected)
    tensor = preprocessing(image)
    assert tensor.shape == (1, 3, 20, 20)
    assert np.array_equal((tensor[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_files_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(noise(8, 8)).convert(mode).save(path)
    assert Preprocessing(8).pixels(path).shape == (8, 8, 3)


def test_grey_arrays():
    grey = noise(8, 8)[..., 0]
    for image in (grey, grey[..., None]):
        assert np.array_equal(Preprocessing(8).pixels(image), np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = Preprocessing(8).pixels(tmp_path / "a.png")[..., 0].astype(float)
    assert np.abs(pixels - ramp / 65535 * 255).max() <= 1


def test_a_photograph_is_turned_upright(tmp_path):
    picture = Image.fromarray(coordinates(16))
    exif = picture.getexif()
    exif[ORIENTATION] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(Preprocessing(16).pixels(tmp_path / "a.png"), np.rot90(coordinates(16), -1))


def test_survives_json():
    assert Preprocessing(**json.loads(json.dumps(Preprocessing(48).to_dict()))) == Preprocessing(48)


def bad_file(path, kind):
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbled":
        path.write_bytes(data[:60] + bytes(reversed(data[60:])))
    return path


# JPEG has no checksum: a garbled one may well be decoded.
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("a.png", "a.jpg") for kind in ("truncated", "text", "empty")] + [("a.png", "garbled")],
)
def test_files_that_are_no_images_are_refused_by_name(tmp_path, name, kind):
    with pytest.raises(UserError, match=rf"{name}' (is no image file|cannot be decoded)"):
        open_rgb(bad_file(tmp_path / name, kind))


def test_what_is_missing_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(UserError, match="does not exist or is no file"):
            open_rgb(path)


def test_an_image_bomb_is_refused_unopened(tmp_path, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(UserError, match=r"bomb\.png' unpacks to more than"):
        open_rgb(tmp_path / "bomb.png")
    monkeypatch.setattr("vitrarium.data.preprocessing.MAX_PIXELS", 100)
    Image.fromarray(noise(11, 10)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="10 x 11 pixels, more than 100; shrink it first"):
        open_rgb(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        (np.zeros((8, 8, 5), np.uint8), r"shape \(8, 8, 5\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros(8, np.uint8), "shape"),
        (np.full((8, 8, 3), 1.5), r"floats outside \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"floats outside \[0, 1\]"),
        (np.zeros((8, 8, 3), np.int64), "type int64"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, words):
    with pytest.raises(UserError, match=words):
        Preprocessing(8).pixels(array)
