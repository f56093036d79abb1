"""The named transforms of augmentation, and which half of it each belongs to."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from vitrarium.configs.errors import UserError
from vitrarium.configs.registry import Registry

Half = Literal["geometry", "appearance"]

TRANSFORMS = Registry("transform", [__name__])

HALVES: dict[str, Half] = {}
"""Which half each registered transform belongs to."""

F = TypeVar("F", bound=Callable[..., Any])


def transform(name: str, half: Half) -> Callable[[F], F]:
    """File a function that builds an albumentations transform.

    Args:
        name: what a configuration calls it.
        half: "geometry" moves maps, masks and keypoints along; "appearance" changes the pixels only.
    """

    def file(build: F) -> F:
        HALVES[name] = half
        return TRANSFORMS.register(name)(build)

    return file


def _library() -> Any:
    """The transforms of albumentations and ours; imported when first needed, because that takes a second."""
    return importlib.import_module("vitrarium.data.warps")


def _within(value: float, low: float, high: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"{what} is {value!r}", f"give a number from {low:g} to {high:g}")
    return value


@transform("flip_horizontal", "geometry")
def flip_horizontal(p: float = 0.5) -> Any:
    """Left and right exchanged, with probability ``p``."""
    return _library().albumentations.HorizontalFlip(p=_within(p, 0, 1, "p of flip_horizontal"))


@transform("flip_vertical", "geometry")
def flip_vertical(p: float = 0.5) -> Any:
    """Top and bottom exchanged, with probability ``p``."""
    return _library().albumentations.VerticalFlip(p=_within(p, 0, 1, "p of flip_vertical"))


@transform("rotate90", "geometry")
def rotate90(p: float = 1.0) -> Any:
    """One of the four quarter turns (none among them), with probability ``p``."""
    return _library().albumentations.RandomRotate90(p=_within(p, 0, 1, "p of rotate90"))


@transform("shift", "geometry")
def shift(pixels: int = 4, p: float = 1.0) -> Any:
    """Shift by up to ``pixels`` whole pixels to each side; the border is filled by reflection."""
    if not isinstance(pixels, int):
        raise UserError(f"pixels of shift is {pixels!r}", "give a whole number")
    _within(pixels, 0, 10_000, "pixels of shift")
    return _library().Shift(pixels, _within(p, 0, 1, "p of shift"))


@transform("rotate", "geometry")
def rotate(limit: float = 15.0, p: float = 1.0) -> Any:
    """Turn by up to ``limit`` degrees to each side."""
    _within(limit, 0, 180, "limit of rotate")
    return _library().Warp(rotate=limit, p=_within(p, 0, 1, "p of rotate"))


@transform("scale", "geometry")
def scale(low: float = 0.9, high: float = 1.1, p: float = 1.0) -> Any:
    """Everything seen ``low`` to ``high`` times as large; uniform in the logarithm."""
    _within(low, 0.05, 20, "low of scale")
    _within(high, low, 20, "high of scale")
    return _library().Warp(scale=(low, high), p=_within(p, 0, 1, "p of scale"))


@transform("affine", "geometry")
def affine(
    rotate: float = 15.0, scale: float = 1.1, shear: float = 5.0, translate: float = 0.05, p: float = 1.0
) -> Any:
    """Turn, scale, shear and shift in one interpolation.

    Args:
        rotate: degrees to each side.
        scale: largest factor; the smallest is 1 / ``scale``.
        shear: degrees to each side.
        translate: share of the image's side, to each side.
        p: probability.
    """
    _within(rotate, 0, 180, "rotate of affine")
    _within(scale, 1, 20, "scale of affine")
    _within(shear, 0, 60, "shear of affine")
    _within(translate, 0, 1, "translate of affine")
    return _library().Warp(
        rotate=rotate, scale=(1 / scale, scale), shear=shear, translate=translate, p=_within(p, 0, 1, "p of affine")
    )


@transform("crop", "geometry")
def crop(smallest: float = 0.5, aspect: float = 4 / 3, p: float = 1.0) -> Any:
    """A random part of the image, enlarged to its size (the "random resized crop").

    Args:
        smallest: least share of the area that is kept; the share is uniform in the logarithm up to 1.
        aspect: the part's width against its height lies in [1 / ``aspect``, ``aspect``].
        p: probability.
    """
    _within(smallest, 0.01, 1, "smallest of crop")
    _within(aspect, 1, 10, "aspect of crop")
    return _library().Warp(
        scale=(1.0, 1 / math.sqrt(smallest)), aspect=aspect, inside=True, p=_within(p, 0, 1, "p of crop")
    )


@transform("erase", "appearance")
def erase(boxes: int = 1, smallest: float = 0.1, largest: float = 0.3, p: float = 0.5) -> Any:
    """Up to ``boxes`` boxes of one random colour each.

    Args:
        boxes: largest number of boxes.
        smallest: least side of a box as a share of the image's.
        largest: largest side.
        p: probability.
    """
    if not isinstance(boxes, int):
        raise UserError(f"boxes of erase is {boxes!r}", "give a whole number")
    _within(boxes, 1, 100, "boxes of erase")
    _within(smallest, 0, 1, "smallest of erase")
    _within(largest, smallest, 1, "largest of erase")
    return _library().albumentations.CoarseDropout(
        num_holes_range=(1, boxes),
        hole_height_range=(float(smallest), float(largest)),
        hole_width_range=(float(smallest), float(largest)),
        fill="random_uniform",
        p=_within(p, 0, 1, "p of erase"),
    )


@transform("brightness_contrast", "appearance")
def brightness_contrast(brightness: float = 0.2, contrast: float = 0.2, p: float = 1.0) -> Any:
    """Brightness and contrast changed by up to these shares of the full range, to each side."""
    _within(brightness, 0, 1, "brightness of brightness_contrast")
    _within(contrast, 0, 1, "contrast of brightness_contrast")
    return _library().albumentations.RandomBrightnessContrast(
        brightness_limit=(-brightness, brightness),
        contrast_limit=(-contrast, contrast),
        p=_within(p, 0, 1, "p of brightness_contrast"),
    )


@transform("colour_jitter", "appearance")
def colour_jitter(
    brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.05, p: float = 1.0
) -> Any:
    """Brightness, contrast and saturation by factors in [1 - v, 1 + v], hue by up to a share of the colour circle."""
    for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        _within(value, 0, 1, f"{name} of colour_jitter")
    _within(hue, 0, 0.5, "hue of colour_jitter")
    return _library().albumentations.ColorJitter(
        brightness=(1 - brightness, 1 + brightness),
        contrast=(1 - contrast, 1 + contrast),
        saturation=(1 - saturation, 1 + saturation),
        hue=(-hue, hue),
        p=_within(p, 0, 1, "p of colour_jitter"),
    )


@transform("hue", "appearance")
def hue(limit: float = 20.0, p: float = 1.0) -> Any:
    """Hue turned by up to ``limit`` degrees of the colour circle to each side."""
    _within(limit, 0, 180, "limit of hue")
    # The library counts the circle in 180 steps.
    return _library().albumentations.HueSaturationValue(
        hue_shift_limit=(-limit / 2, limit / 2),
        sat_shift_limit=(0, 0),
        val_shift_limit=(0, 0),
        p=_within(p, 0, 1, "p of hue"),
    )


@transform("blur", "appearance")
def blur(sigma: float = 1.0, p: float = 0.5) -> Any:
    """Gaussian blur with a standard deviation of up to ``sigma`` pixels."""
    _within(sigma, 0.1, 100, "sigma of blur")
    return _library().albumentations.GaussianBlur(
        blur_limit=0, sigma_limit=(0.1, float(sigma)), p=_within(p, 0, 1, "p of blur")
    )


@transform("noise", "appearance")
def noise(sd: float = 0.05, p: float = 0.5) -> Any:
    """Gaussian noise with a standard deviation of up to ``sd`` of the full range, each channel on its own."""
    _within(sd, 0, 1, "sd of noise")
    return _library().albumentations.GaussNoise(
        std_range=(0.0, float(sd)), noise_scale_factor=1, p=_within(p, 0, 1, "p of noise")
    )


@transform("grey", "appearance")
def grey(p: float = 0.2) -> Any:
    """The image without its colours, with probability ``p``."""
    return _library().albumentations.ToGray(p=_within(p, 0, 1, "p of grey"))
