"""From attributes and chance to a finished picture with its part masks and keypoints."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vitrarium.data.sets.flowers_brush import Brush, Dice
from vitrarium.data.sets.flowers_plant import Anchors, draw_plant, pose
from vitrarium.data.sets.flowers_rules import PARTS
from vitrarium.data.sets.flowers_scenery import background, draw_before, draw_behind

SEEN = 0.35
"""A pixel belongs to the part that covers most of it, if that is at least this share of the pixel."""


@dataclass
class Picture:
    """A drawn flower.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        masks: (5, size, size) uint8, 255 where a part of ``PARTS`` is seen; no pixel belongs to two parts.
        keypoints: (5, 3) float32: column and row of the pixel at the part's point, and 1 if the part is seen there;
            zeros for parts that the flower does not have.
    """

    image: np.ndarray
    masks: np.ndarray
    keypoints: np.ndarray


def draw_flower(look: dict[str, str], rng: np.random.Generator, size: int, difficulty: float) -> Picture:
    """Draw one flower.

    Everything but the attributes comes from ``rng``, and each part of the picture has its own share of it: the same
    generator state with another value of one attribute gives the same scene with only that attribute changed, and
    with another ``size`` the same scene at another resolution.

    Args:
        look: attribute to value.
        rng: source of all chance.
        size: height and width in pixels.
        difficulty: from 0 (centred, unhidden, in even light) to 1.
    """
    dice = [Dice(row) for row in rng.random((9, 256))]
    scene = background(dice[0], rng, difficulty)
    grain = rng.standard_normal((size, size, 1), np.float32)
    fine = oversampling(size)
    side = size * fine
    canvas = cv2.resize(np.clip(scene, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    brush = Brush(canvas)
    stand = pose(dice[1], difficulty)
    draw_behind(brush, stand, dice[2], difficulty)
    anchors = draw_plant(brush, look, stand, dice[3:7])
    draw_before(brush, stand, dice[7], difficulty)
    masks = _masks(brush.parts, size)
    image = cv2.resize(brush.canvas, (size, size), interpolation=cv2.INTER_AREA)
    return Picture(_light(image, grain, dice[8], difficulty), masks, _keypoints(anchors, masks))


def oversampling(size: int) -> int:
    """How many times finer than the picture the canvas is, along each side."""
    return max(2, -(-160 // size))


def _masks(parts: np.ndarray, size: int) -> np.ndarray:
    """Visible pixels of each part (5, size, size) uint8."""
    cover = np.stack(
        [
            cv2.resize(np.where(parts == k + 1, 255, 0).astype(np.uint8), (size, size), interpolation=cv2.INTER_AREA)
            for k in range(len(PARTS))
        ]
    )
    best = cover.argmax(axis=0)
    return np.where((np.arange(len(PARTS))[:, None, None] == best) & (cover >= 255 * SEEN), 255, 0).astype(np.uint8)


def _light(image: np.ndarray, grain: np.ndarray, dice: Dice, difficulty: float) -> np.ndarray:
    """Brightness, tint, a gradient of light, a little blur and grain."""
    d, size = difficulty, len(image)
    gain = np.exp(dice.between(-0.36, 0.22) * d)
    warm, magenta = dice.between(-0.16, 0.16) * d, dice.between(-0.06, 0.06) * d
    tint = gain * np.array([1 + warm, 1 - magenta, 1 - warm], np.float32)
    across, down = dice.between(-0.3, 0.3) * d, dice.between(-0.3, 0.3) * d
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    field = 1 + across * ramp[None, :, None] + down * ramp[:, None, None]
    lit = image.astype(np.float32) * (field * tint)
    blur = 1.5 * d * dice.between(0, 1) ** 2 * size / 64
    if blur > 0.25:
        lit = cv2.GaussianBlur(lit, (0, 0), blur)
    lit += dice.between(1, 2 + 4 * d) * grain
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)


def _keypoints(anchors: Anchors, masks: np.ndarray) -> np.ndarray:
    """The first visible anchor of each part, else its first one marked unseen."""
    size = masks.shape[1]
    found = np.zeros((len(PARTS), 3), np.float32)
    for part, points in anchors.points.items():
        pixels = [(min(max(int(x * size), 0), size - 1), min(max(int(y * size), 0), size - 1)) for x, y in points]
        seen = [(x, y) for x, y in pixels if masks[part - 1, y, x]]
        found[part - 1] = (*seen[0], 1) if seen else (*pixels[0], 0)
    return found
