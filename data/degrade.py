"""Named test-time degradations: the same images, harder to read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vitrarium.configs.errors import UserError
from vitrarium.configs.registry import Registry
from vitrarium.data.batch import Sample
from vitrarium.data.derived import DerivedSplit
from vitrarium.data.source import Split

DEGRADATIONS = Registry("degradation", [__name__])

CLEAN = "clean"

Degradation = Callable[[np.ndarray, int], np.ndarray]
"""(image (H, W, 3) uint8, index in the split) to an image of the same shape; a pure function of both."""


@DEGRADATIONS.register(CLEAN)
def clean() -> Degradation:
    """The image as it is."""
    return lambda image, index: image


@DEGRADATIONS.register("grey")
def grey() -> Degradation:
    """Luminance in all three channels (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B)."""
    return lambda image, index: np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


@DEGRADATIONS.register("pixels16")
def pixels16(size: int = 16) -> Degradation:
    """Shrunk to ``size`` x ``size`` pixels by the mean of what each covers, and enlarged again bilinearly."""
    if size < 1:
        raise UserError(f"pixels16 cannot shrink to {size} pixels", "give 1 or more")

    def shrink(image: np.ndarray, index: int) -> np.ndarray:
        height, width = image.shape[:2]
        small = Image.fromarray(image).resize((min(size, width), min(size, height)), Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))

    return shrink


@DEGRADATIONS.register("blur")
def blur(sigma: float = 2.0) -> Degradation:
    """Gaussian blur with a standard deviation of ``sigma`` pixels in a 64-pixel image, in proportion at other sizes."""
    if not sigma > 0:
        raise UserError(f"blur with a sigma of {sigma}", "give a number above 0")
    return lambda image, index: np.asarray(
        Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma * image.shape[0] / 64))
    )


@DEGRADATIONS.register("noise")
def noise(sd: float = 0.1, seed: int = 0) -> Degradation:
    """Gaussian noise with a standard deviation of ``sd`` of the full range; image ``index`` always gets the same."""
    if not 0 <= sd <= 10 or seed < 0:
        raise UserError(f"noise with sd {sd} and seed {seed}", "give an sd from 0 to 10 and a seed of at least 0")

    def disturb(image: np.ndarray, index: int) -> np.ndarray:
        drawn = np.random.default_rng([seed, index]).normal(0.0, sd * 255, image.shape)
        return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)

    return disturb


@DEGRADATIONS.register("jpeg")
def jpeg(quality: int = 10) -> Degradation:
    """Compressed as JPEG with a quality from 1 (worst) to 95."""
    if not 1 <= quality <= 95:
        raise UserError(f"jpeg with a quality of {quality}", "give 1 to 95")

    def compress(image: np.ndarray, index: int) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))

    return compress


class DegradedSplit(DerivedSplit):
    """A split whose images are degraded; labels, truth, maps and keypoints stay.

    Args:
        inner: the split.
        degradation: what happens to each image.
    """

    def __init__(self, inner: Split, degradation: Degradation) -> None:
        super().__init__(inner)
        self._spoil = degradation

    def sample(self, index: int) -> Sample:
        """Example ``index``, degraded."""
        sample = self.inner.sample(index)
        sample.image = self._spoil(sample.image, index)
        return sample


def degraded(split: Split, name: str | Mapping[str, Any]) -> Split:
    """A split seen through a degradation.

    Args:
        split: any split, best a cached one: only the degradation is computed anew.
        name: of the degradation, or ``{name, **options}``; "clean" gives the split itself.

    Raises:
        UserError: an unknown name or option.
    """
    built = DEGRADATIONS.build(name)
    chosen = name if isinstance(name, str) else name["name"]
    return split if chosen == CLEAN else DegradedSplit(split, built)
