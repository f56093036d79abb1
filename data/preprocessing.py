"""From an image file to the pixels a model was trained on; saved with every model."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrarium.configs.errors import UserError

MAX_PIXELS = 100_000_000


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
            image: a path, a PIL image, or an array (H, W, 3) or (H, W): uint8, or float in [0, 1].
            what: how to call it in messages.
        """
        return self.fit(open_rgb(image, what))

    def fit(self, picture: Image.Image) -> np.ndarray:
        """Crop and resize a PIL image in one step, so that a thin strip costs no more than its centre square."""
        if picture.size != (self.size, self.size):
            box = centre_square(*picture.size)
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture)

    def __call__(self, image: Any) -> Tensor:
        """Any image as a tensor (1, 3, size, size) in [0, 1]."""
        return torch.from_numpy(self.pixels(image).copy()).permute(2, 0, 1)[None].float() / 255

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)


def centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest square in the middle of an image; ends may lie between pixels."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def open_rgb(image: Any, what: str = "image") -> Image.Image:
    """An image as RGB, upright, whatever it came as.

    Raises:
        UserError: missing, truncated or non-image file, more than ``MAX_PIXELS`` pixels, a shape or range that
            is no RGB image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return Image.fromarray(_array(image, what)).convert("RGB")
    path = Path(image)
    if not path.is_file():
        raise UserError(f"{what} '{path}' does not exist or is no file", "check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise UserError(
                        f"'{path}' has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}",
                        "shrink it first",
                    )
                opened.load()
                return _eight_bit(ImageOps.exif_transpose(opened)).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"'{path}' unpacks to more than {MAX_PIXELS:,} pixels", "shrink it first") from error
    except UnidentifiedImageError as error:
        raise UserError(f"'{path}' is no image file", "remove it or save it as PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"'{path}' cannot be decoded ({error})", "the file is damaged: replace or remove it") from error


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey to 8 bit by dividing (Pillow's own conversion clips)."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return Image.fromarray((np.asarray(picture).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    return picture


def _array(array: np.ndarray, what: str) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as uint8; floats must lie in [0, 1]."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise UserError(f"{what} has shape {array.shape}", "expected (height, width, 3) RGB or (height, width) grey")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UserError(f"{what} holds floats outside [0, 1]", "divide by 255 or pass uint8")
        return (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{what} has type {array.dtype}", "expected uint8, or floats in [0, 1]")
    return array
