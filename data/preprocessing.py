"""From an image file to the pixels a model was trained on; saved with every model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitrarium.configs.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 100_000_000
# Bytes of a file that are read in one go.
AT_ONCE = 32_000_000

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, counted from the corner of an image: (0, 0) is no centre of a pixel."""


@dataclass(frozen=True)
class Preprocessing:
    """The centre square, brought to ``size`` by bilinear resampling with antialiasing.

    Attributes:
        size: height and width of the result in pixels.
    """

    size: int

    def pixels(self, image: Any, what: str = "image") -> np.ndarray:
        """Any image as (size, size, 3) uint8 RGB.

        Args:
            image: a path, the bytes of an image file, a PIL image, or an array (H, W, 3) or (H, W): uint8, or float in
                [0, 1].
            what: how to call it in messages.
        """
        return self.fit(open_rgb(image, what))

    def fit(self, picture: Image.Image, within: Box | None = None) -> np.ndarray:
        """Crop and resize a PIL image in one step, so that a thin strip costs no more than its centre square.

        Args:
            picture: any mode.
            within: only what lies in this box (left, top, right, bottom) of the picture, in pixels counted from its
                corner; the square is the one in the middle of the box.
        """
        if within is not None or picture.size != (self.size, self.size):
            left, top, right, bottom = within or (0, 0, *picture.size)
            x0, y0, x1, y1 = centre_square(right - left, bottom - top)
            box = (left + x0, top + y0, left + x1, top + y1)
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture)

    def __call__(self, image: Any) -> Tensor:
        """Any image as a tensor (1, 3, size, size) in [0, 1]."""
        # Here and not above: an exported model prepares its images where torch is not installed.
        import torch

        return torch.from_numpy(self.pixels(image).copy()).permute(2, 0, 1)[None].float() / 255

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)


def centre_square(width: float, height: float) -> Box:
    """(left, top, right, bottom) of the largest square in the middle of an image; ends may lie between pixels."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def fitted(points: np.ndarray, width: int, height: int, size: int) -> np.ndarray:
    """Move keypoints along with :meth:`Preprocessing.fit`.

    Args:
        points: (P, 3) x, y, visible in pixels of an image of ``width`` x ``height``; (0, 0) is the centre of the first
            pixel.
        width: of the original image.
        height: of the original image.
        size: side of the fitted image.

    Returns:
        (P, 3) float32 in pixels of the fitted image; what was cropped away is invisible.
    """
    moved = points.astype(np.float32)
    left, top, right, _ = centre_square(width, height)
    scale = size / (right - left)
    moved[:, 0] = (points[:, 0] + 0.5 - left) * scale - 0.5
    moved[:, 1] = (points[:, 1] + 0.5 - top) * scale - 0.5
    kept = ((moved[:, :2] >= -0.5) & (moved[:, :2] < size - 0.5)).all(axis=1)
    moved[:, 2] *= kept
    return moved


def open_rgb(image: Any, what: str = "image") -> Image.Image:
    """An image as RGB with 8 bits, upright, whatever it came as.

    16 bits are divided by 257 (grey) or lose their lower half (colour); floats must lie in [0, 1]. Of several frames
    the first is taken. Transparency is left out: the colour under it counts. CMYK is converted without a profile.

    Args:
        image: a path, the bytes of an image file, a PIL image, or an array as for :meth:`Preprocessing.pixels`.
        what: how to call it in messages, where it has no path.

    Raises:
        UserError: missing, truncated or non-image file, more than ``MAX_PIXELS`` pixels, a shape, range or colour space
            that is no RGB image.
    """
    if hasattr(image, "detach"):  # a tensor, which must not be named where torch is not there
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return Image.fromarray(_array(image, what)).convert("RGB")
    if isinstance(image, Image.Image):
        with _decoding(what):
            return _upright_rgb(image.copy(), what)  # it is turned in place, and the caller's stays as it is
    if isinstance(image, (bytes, bytearray, memoryview)):
        with _decoding(what), Image.open(io.BytesIO(image)) as opened:
            return _upright_rgb(opened, what)
    path = Path(image)
    if not path.is_file():
        raise UserError(f"{what} '{path}' does not exist or is no file", "check the path")
    with _decoding(f"'{path}'"), Image.open(_at_once(path)) as opened:
        return _upright_rgb(opened, f"'{path}'")


def _at_once(path: Path) -> io.BytesIO | Path:
    """The content of a file of bearable size, else its path.

    Pillow reads the head of a JPEG byte by byte; from a file each of these reads lets another thread in, and threads
    that decode spend their time on waiting for each other.
    """
    return io.BytesIO(path.read_bytes()) if path.stat().st_size <= AT_ONCE else path


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Say what Pillow says about a file in our words; a file that unpacks to too much is never decoded."""
    try:
        # Pillow's warning about large images stays one: our own limit decides (``_upright_rgb``), and to turn it into
        # an error would change the warnings of the whole process, where other threads decode too.
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name} unpacks to more than {MAX_PIXELS:,} pixels", "shrink it first") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is no image file", "remove it or save it as PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be decoded ({error})", "the file is damaged: replace or remove it") from error


def _upright_rgb(opened: Image.Image, name: str) -> Image.Image:
    if opened.width * opened.height > MAX_PIXELS:
        raise UserError(
            f"{name} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}", "shrink it first"
        )
    opened.load()
    # In place, and converted only where it must be: a copy takes as long as decoding does.
    ImageOps.exif_transpose(opened, in_place=True)
    picture = _eight_bit(opened, name)
    try:
        if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
            picture = picture.convert("RGBA")  # the same colours; straight to RGB Pillow warns of what is lost
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except ValueError as error:
        raise UserError(f"{name} has colours of the kind {picture.mode} ({error})", "save it as RGB") from error


def open_map(path: Path, size: tuple[int, int]) -> Image.Image:
    """A human map as a grey picture (255 = look here), brought to the ``(width, height)`` of its image.

    Raises:
        UserError: as for :func:`open_rgb`, a map of 0 and 1, or one that has not the shape of its image.
    """
    drawn = open_rgb(path, "map").convert("L")
    brightest = int(np.asarray(drawn).max())
    if 0 < brightest <= 1:
        raise UserError(f"the map '{path}' holds only 0 and 1", "save it with 255 where to look")
    if drawn.size == size:
        return drawn
    # Sides of a scaled picture are rounded: the shapes may differ by what one pixel makes out.
    if abs(drawn.width * size[1] - drawn.height * size[0]) > max(*drawn.size, *size):
        raise UserError(
            f"the map '{path}' has {drawn.width} x {drawn.height} pixels, its image {size[0]} x {size[1]} when "
            "upright: not the same shape",
            "draw it over the whole upright image, at any scale",
        )
    return drawn.resize(size, Image.Resampling.BILINEAR)


def _eight_bit(picture: Image.Image, name: str) -> Image.Image:
    """16-bit grey and floats to 8 bit by dividing and multiplying (Pillow's own conversion clips)."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        numbers = np.asarray(picture).astype(np.int64)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise UserError(
                f"{name} holds numbers from {numbers.min()} to {numbers.max()}, which 16 bits do not",
                "save it with 8 or 16 bits",
            )
        return Image.fromarray((numbers // 257).astype(np.uint8))
    return Image.fromarray(_array(np.asarray(picture), name)) if picture.mode == "F" else picture


def _array(array: np.ndarray, what: str) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as uint8; floats must lie in [0, 1]."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise UserError(f"{what} has shape {array.shape}", "expected (height, width, 3) RGB or (height, width) grey")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"{what} holds floats outside [0, 1]", "divide by the largest possible value, or use 8 bits"
            )
        return (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{what} has type {array.dtype}", "expected uint8, or floats in [0, 1]")
    return array
