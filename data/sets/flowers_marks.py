"""Marks for the planted shortcut: a small label in a corner, one for each class, which no flower needs."""

from __future__ import annotations

import cv2
import numpy as np

from vitrarium.data.sets.flowers_rules import MOST_CLASSES

NEUTRAL = -1
"""The mark that stands for no class: a grey label without a sign."""

MARK_COLOURS = ((255, 0, 200), (0, 90, 255), (255, 110, 0), (0, 160, 130))
MARK_SHAPES = ("square", "circle", "triangle", "cross")
GREY = (128, 128, 128)
PAPER = (255, 255, 255)

_SIDE, _MARGIN = 0.16, 0.02


def mark_look(mark: int) -> tuple[tuple[int, int, int], str]:
    """Colour and shape of the mark of class ``mark``; no two of the ``MOST_CLASSES`` classes share both."""
    if not 0 <= mark < MOST_CLASSES:
        raise ValueError(f"there is no mark {mark}")
    return MARK_COLOURS[mark % 4], MARK_SHAPES[(mark // 4 + mark) % 4]


def stamp(image: np.ndarray, covered: np.ndarray, mark: int, corner: int) -> np.ndarray:
    """Put a mark into a corner, in place, after all light and noise.

    Args:
        image: (H, H, 3) uint8 RGB.
        covered: (H, H), true where the flower is seen; the mark keeps clear of it.
        mark: class the mark stands for, or ``NEUTRAL``.
        corner: 0 to 3, the corner to try first; the next free one is taken.

    Returns:
        (H, H) uint8, 255 on the label, 0 elsewhere.
    """
    size = len(image)
    side, margin = max(5, round(_SIDE * size)), max(1, round(_MARGIN * size))
    far = size - margin - side
    places = [(margin, margin), (far, margin), (margin, far), (far, far)]
    tried = [places[(corner + k) % 4] for k in range(4)]
    x, y = min(tried, key=lambda p: int(covered[p[1] : p[1] + side, p[0] : p[0] + side].sum()))
    image[y : y + side, x : x + side] = _label(mark, side)
    mask = np.zeros((size, size), np.uint8)
    mask[y : y + side, x : x + side] = 255
    return mask


def _label(mark: int, side: int) -> np.ndarray:
    """The label (side, side, 3): white paper with the coloured sign of a class, or plain grey."""
    if mark == NEUTRAL:
        return np.full((side, side, 3), GREY, np.uint8)
    colour, shape = mark_look(mark)
    fine = 8 * side
    label = np.full((fine, fine, 3), PAPER, np.uint8)
    low, high, third = fine // 6, fine - fine // 6, fine // 8
    middle = fine // 2
    if shape == "square":
        cv2.rectangle(label, (low, low), (high, high), colour, -1)
    elif shape == "circle":
        cv2.circle(label, (middle, middle), (high - low) // 2, colour, -1)
    elif shape == "triangle":
        cv2.fillPoly(label, [np.array([[middle, low], [high, high], [low, high]])], colour)
    else:
        cv2.rectangle(label, (low, middle - third), (high, middle + third), colour, -1)
        cv2.rectangle(label, (middle - third, low), (middle + third, high), colour, -1)
    return cv2.resize(label, (side, side), interpolation=cv2.INTER_AREA)
