"""Unit maps over the image."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# Light to dark in one hue family: reads in print and for colour-blind eyes.
STOPS = np.array([[255, 244, 214], [253, 196, 98], [240, 123, 51], [196, 45, 50], [110, 8, 60]], dtype=np.float64)


def upsample(unit_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) stretched smoothly to ``size`` (H, W), float32; its cells are centred on the pixels they cover.

    Cubic interpolation overshoots, so the result is kept between the weakest and the strongest cell.
    """
    picture = Image.fromarray(np.ascontiguousarray(unit_map, dtype=np.float32))
    stretched = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return stretched.clip(unit_map.min(), unit_map.max())


def normalise(unit_map: np.ndarray) -> np.ndarray:
    """A map from its weakest (0) to its strongest (1) response; a flat one is all 0."""
    low, high = float(unit_map.min()), float(unit_map.max())
    if not high - low > 1e-12:
        return np.zeros_like(unit_map, dtype=np.float32)
    return ((unit_map - low) / (high - low)).astype(np.float32)


def colours(heat: np.ndarray) -> np.ndarray:
    """Heat in [0, 1] (H, W) as RGB (H, W, 3) float in [0, 255]."""
    place = np.clip(heat, 0, 1) * (len(STOPS) - 1)
    return np.stack([np.interp(place, np.arange(len(STOPS)), STOPS[:, c]) for c in range(3)], -1)


def overlay(image: np.ndarray, unit_map: np.ndarray, size: int = 256) -> np.ndarray:
    """The image in pale grey under the heat of a unit.

    Args:
        image: (H, W, 3) uint8.
        unit_map: (h, w) float, at the model's resolution.
        size: height of the result in pixels; a small image is enlarged smoothly.

    Returns:
        (size, size W / H, 3) uint8.
    """
    shape = (size, max(1, round(size * image.shape[1] / image.shape[0])))
    picture = Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None]
    heat = upsample(normalise(unit_map), shape)
    # Weak responses stay clear, so that the image remains visible where the unit saw little.
    opacity = (0.82 * heat**1.2)[..., None]
    return ((1 - opacity) * (55 + 0.78 * grey) + opacity * colours(heat)).round().clip(0, 255).astype(np.uint8)


def enlarge(image: np.ndarray, size: int = 512) -> np.ndarray:
    """A small image enlarged smoothly to a height of ``size``; a larger one as it is."""
    if image.shape[0] >= size:
        return image
    shape = (max(1, round(size * image.shape[1] / image.shape[0])), size)
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))


def png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def stacked(pictures: list[bytes]) -> bytes:
    """PNG files of one width as one, below each other."""
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in pictures]
    whole = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return png(np.asarray(whole))


def smaller(png: bytes, width: int = 1240) -> bytes:
    """A picture no wider than ``width`` pixels with at most 256 colours: a page with many of them stays small."""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_address(content: bytes, kind: str = "image/png") -> str:
    """Bytes as an address that a page can hold in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def from_data_address(address: str) -> np.ndarray:
    """The image (H, W, 3) uint8 in a data address."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))
