"""Image files of every kind that users have: what each becomes, or why it is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from builders import build_folder, coordinates, sample_of, write_csv, write_folder, write_image
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing, open_map, open_rgb

ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def strict():
    """No warning of Pillow may reach a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("default", ResourceWarning)
        yield


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def blocks(height: int, width: int) -> np.ndarray:
    """Flat areas of 8 x 8 pixels, which JPEG keeps."""
    return np.kron(noise(height // 8, width // 8), np.ones((8, 8, 1), np.uint8)).astype(np.uint8)


def save_png16(path, array: np.ndarray) -> None:
    """A PNG with 16 bits a channel, written here: Pillow writes none in colour."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = array.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_the_upper_8_bits(tmp_path, channels):
    array = np.random.default_rng(channels).integers(0, 65536, (8, 9, channels)).astype(np.uint16)
    array[0, :3] = [[0] * channels, [65535] * channels, [257 * 100] * channels]
    save_png16(tmp_path / "a.png", array[..., 0] if channels == 1 else array)
    pixels = np.asarray(open_rgb(tmp_path / "a.png")).astype(float)
    true = np.repeat(array[..., :1], 3, axis=2) if channels < 3 else array[..., :3]
    assert np.abs(pixels - true / 257).max() <= 1
    assert pixels[0, :3].tolist() == [[0] * 3, [255] * 3, [100] * 3]


def test_12_bits_in_16_stay_dark(tmp_path):
    array = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    save_png16(tmp_path / "a.png", array)
    assert np.asarray(open_rgb(tmp_path / "a.png")).max() == 15


def test_16_bit_grey_in_other_files_and_in_memory(tmp_path):
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.tif")
    picture.save(tmp_path / "a.pgm")
    expected = (array // 257).astype(np.uint8)
    for given in (tmp_path / "a.tif", tmp_path / "a.pgm", picture, Image.fromarray(array.astype(np.int32))):
        assert np.array_equal(np.asarray(open_rgb(given))[..., 0], expected)
    with pytest.raises(
        UserError, match="image holds numbers from 0 to 70000, which 16 bits do not; save it with 8 or 16"
    ):
        open_rgb(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_float_images_must_lie_between_0_and_1(tmp_path):
    array = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(array).save(tmp_path / "a.tif")
    for given in (tmp_path / "a.tif", Image.fromarray(array)):
        assert np.array_equal(np.asarray(open_rgb(given))[..., 1], (array * 255).round().astype(np.uint8))
    for wrong in (array * 255, array - 0.5, np.where(array > 0.9, np.nan, array).astype(np.float32)):
        Image.fromarray(wrong).save(tmp_path / "b.tif")
        with pytest.raises(UserError, match=r"b\.tif' holds floats outside \[0, 1\]; divide"):
            open_rgb(tmp_path / "b.tif")


def test_cmyk_jpeg_has_the_colours_it_was_made_of(tmp_path):
    array = blocks(32, 40)
    Image.fromarray(array).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    raw = (tmp_path / "a.jpg").read_bytes()
    assert raw[2:4] == b"\xff\xee"
    assert b"Adobe" in raw[:30]
    assert np.abs(np.asarray(open_rgb(tmp_path / "a.jpg")).astype(int) - array).max() <= 3
    Image.fromarray(array).convert("CMYK").save(tmp_path / "a.tif")
    assert np.abs(np.asarray(open_rgb(tmp_path / "a.tif")).astype(int) - array).max() <= 1


def test_transparency_is_left_out(tmp_path):
    array = noise(8, 8)
    alpha = np.random.default_rng(9).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(np.dstack([array, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([array[..., 0], alpha])).save(tmp_path / "la.png")
    Image.fromarray(array[..., 0]).save(tmp_path / "l.png", transparency=int(array[0, 0, 0]))
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "rgba.png")), array)
    for name in ("la.png", "l.png"):
        assert np.array_equal(np.asarray(open_rgb(tmp_path / name)), np.repeat(array[..., :1], 3, 2))
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50] + [0] * 762)
    palette.putpixel((1, 0), 1)
    for number, transparency in enumerate((0, b"\x00\x80", None)):
        extra = {} if transparency is None else {"transparency": transparency}
        palette.save(tmp_path / f"p{number}.png", **extra)
        assert np.asarray(open_rgb(tmp_path / f"p{number}.png")).tolist() == [[[9, 8, 7], [200, 100, 50]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    array = coordinates(24)[:16]
    turn = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1), 7: array[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(array),
    }[orientation]  # fmt: skip
    picture = Image.fromarray(array)
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with Image.open(tmp_path / "a.png") as opened:
        for given in (tmp_path / "a.png", buffer.getvalue(), opened, opened.convert("RGBA")):
            assert np.array_equal(np.asarray(open_rgb(given)), turn)
    # Turned once, it says so no more.
    assert np.array_equal(np.asarray(open_rgb(open_rgb(tmp_path / "a.png"))), turn)


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        extra = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **extra)
        assert np.asarray(open_rgb(tmp_path / name)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64


def test_colours_that_cannot_be_rgb_are_refused():
    with pytest.raises(UserError, match=r"image has colours of the kind La .*save it as RGB"):
        open_rgb(Image.new("La", (4, 4)))


def test_bytes_and_open_pictures_are_refused_like_files(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(noise(32, 32)).save(buffer, "PNG")
    raw = buffer.getvalue()
    assert np.array_equal(np.asarray(open_rgb(raw)), noise(32, 32))
    for damaged, words in ((raw[:900], "cannot be decoded"), (b"", "is no image file"), (b"text", "is no image file")):
        with pytest.raises(UserError, match=f"the upload {words}"):
            open_rgb(damaged, "the upload")
    with pytest.raises(UserError, match="the upload cannot be decoded"):
        open_rgb(Image.open(io.BytesIO(raw[:900])), "the upload")
    monkeypatch.setattr("vitrarium.data.preprocessing.MAX_PIXELS", 100)
    with pytest.raises(UserError, match="image has 32 x 32 pixels, more than 100"):
        open_rgb(Image.fromarray(noise(32, 32)))


def test_a_crop_is_the_square_in_the_middle_of_the_box():
    array = noise(40, 60)
    fitted = Preprocessing(10).fit(Image.fromarray(array), within=(12, 5, 32, 35))
    by_hand = Image.fromarray(array[10:30, 12:32]).resize((10, 10), Image.Resampling.BILINEAR)
    # Only at the rim the neighbours outside the crop differ.
    assert np.abs(fitted.astype(int) - np.asarray(by_hand))[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("size", [(24, 20), (12, 10), (48, 40), (240, 200), (7, 6), (25, 21)])
def test_maps_of_another_scale_are_taken(tmp_path, size):
    Image.new("L", size, 255).save(tmp_path / "a.png")
    assert open_map(tmp_path / "a.png", (24, 20)).size == (24, 20)


@pytest.mark.parametrize("size", [(20, 24), (24, 24), (224, 224), (48, 20), (7, 7)])
def test_maps_of_another_shape_are_refused(tmp_path, size):
    Image.new("L", size, 255).save(tmp_path / "a.png")
    words = rf"a\.png' has {size[0]} x {size[1]} pixels, its image 24 x 20 when upright: not the same shape; draw it"
    with pytest.raises(UserError, match=words):
        open_map(tmp_path / "a.png", (24, 20))


@pytest.mark.parametrize("kind", ["L", "1", "P", "16", "float", "RGBA"])
def test_maps_of_any_kind(tmp_path, kind):
    array = np.zeros((20, 24), np.uint8)
    array[5:9, 3:20] = 255
    if kind == "16":
        Image.fromarray(array.astype(np.uint16) * 257).save(tmp_path / "a.png")
    elif kind == "float":
        Image.fromarray((array / 255).astype(np.float32)).save(tmp_path / "a.tif")
    else:
        Image.fromarray(array).convert(kind).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(open_map(next(tmp_path.iterdir()), (24, 20))), array)


def test_maps_and_keypoints_are_those_of_the_upright_image(tmp_path):
    """A photograph lying on its side: 24 x 20 in the file, 20 x 24 when it is looked at."""
    root = tmp_path / "own"
    write_folder(root)
    upright = coordinates(24)[:, :20]
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    assert lying.size == (24, 20)
    exif = lying.getexif()
    exif[ORIENTATION] = 6
    lying.save(root / "cat" / "photo.png", exif=exif)
    (root / "maps" / "cat").mkdir(parents=True)
    drawn = np.zeros((24, 20), np.uint8)
    drawn[15:18, 4:7] = 255
    Image.fromarray(drawn).save(root / "maps" / "cat" / "photo.png")
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y"), [("photo.png", "head", 5, 16)])
    sample = sample_of(build_folder(root, size=20), "cat/photo.png")
    # Two rows above and below are cut off.
    assert np.array_equal(sample.image, upright[2:22])
    assert np.array_equal(sample.human_map, drawn[2:22])
    assert sample.keypoints[0].tolist() == [5, 14, 1]
    assert sample.image[14, 5, :2].tolist() == [10, 32]
    Image.fromarray(np.rot90(drawn)).save(root / "maps" / "cat" / "photo.png")
    with pytest.raises(UserError, match="its image 20 x 24 when upright: not the same shape"):
        sample_of(build_folder(root, size=20), "cat/photo.png")
    write_image(root / "maps" / "cat" / "photo.png", size=(20, 24))
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y"), [("photo.png", "head", 22, 5)])
    words = (
        r"line 2: the keypoint 'head' at \(22, 5\) lies outside its image of 20 x 24 pixels; give pixels of the upright"
    )
    with pytest.raises(UserError, match=words):
        sample_of(build_folder(root, size=20), "cat/photo.png")
