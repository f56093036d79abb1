"""The tools a flower is drawn with: chance, colours, and a brush that paints pixels and part numbers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np

T = TypeVar("T")
Colour = tuple[float, float, float]

NOTHING = 0
"""Part number of all that belongs to no part of the flower."""


class Dice:
    """Random choices from numbers drawn beforehand: the n-th question always meets the n-th number.

    One part of a picture has one set of dice, so that what one part asks never changes another part.

    Args:
        numbers: (N,) uniform in [0, 1).
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self._next = iter(numbers.tolist()).__next__

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._next()

    def chance(self, probability: float) -> bool:
        """Yes with the given probability."""
        return self._next() < probability

    def sign(self) -> float:
        """Minus one or one."""
        return -1.0 if self._next() < 0.5 else 1.0

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self._next() * len(options))]

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._next() * (high - low + 1))

    def blend(self, one: Colour, other: Colour) -> Colour:
        """A colour between two."""
        return mix(one, other, self._next())


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """The colour ``share`` of the way from one to the other; channels are 0 to 255."""
    a, b, c = one
    d, e, f = other
    return a + (d - a) * share, b + (e - b) * share, c + (f - c) * share


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or brighter (factor > 1) colour."""
    r, g, b = colour
    return min(255.0, r * factor), min(255.0, g * factor), min(255.0, b * factor)


class Brush:
    """Paints shapes on a square canvas and remembers which part each pixel shows.

    What is painted later hides what was painted before, in the picture and in the part numbers alike.

    Args:
        canvas: (S, S, 3) uint8 RGB, painted in place.

    Attributes:
        parts: (S, S) uint8, number of the part seen at each pixel, ``NOTHING`` elsewhere.
    """

    _BITS = 4  # fractions of a pixel in the fixed-point coordinates of cv2

    def __init__(self, canvas: np.ndarray) -> None:
        self.canvas = canvas
        self.parts = np.zeros(canvas.shape[:2], np.uint8)
        self.side = canvas.shape[0]
        self._unit = self.side * (1 << self._BITS)

    def fill(self, outline: np.ndarray, colour: Colour, part: int | None = NOTHING) -> None:
        """Fill a polygon.

        Args:
            outline: (n, 2) x and y as shares of the side of the picture, from its top left corner.
            colour: RGB, 0 to 255.
            part: part number, or None for a detail on top of a part that stays what it is.
        """
        # A pixel's centre is its whole coordinate to cv2, half a pixel from its corner to us.
        points = [(outline * self._unit - (1 << (self._BITS - 1))).astype(np.int32)]
        cv2.fillPoly(self.canvas, points, colour, shift=self._BITS)
        if part is not None:
            cv2.fillPoly(self.parts, points, part, shift=self._BITS)

    def line(self, path: np.ndarray, colour: Colour, width: float, closed: bool = False) -> None:
        """Draw a line along ``path`` (n, 2), ``width`` as a share of the side; a detail, it marks no part."""
        points = [(path * self._unit - (1 << (self._BITS - 1))).astype(np.int32)]
        cv2.polylines(self.canvas, points, closed, colour, max(1, round(width * self.side)), cv2.LINE_8, self._BITS)

    def dot(self, x: float, y: float, radius: float, colour: Colour, part: int | None = None) -> None:
        """Fill a circle; all lengths are shares of the side."""
        half = 1 << (self._BITS - 1)
        centre = (int(x * self._unit) - half, int(y * self._unit) - half)
        size = max(1, int(radius * self._unit))
        cv2.circle(self.canvas, centre, size, colour, -1, cv2.LINE_8, self._BITS)
        if part is not None:
            cv2.circle(self.parts, centre, size, part, -1, cv2.LINE_8, self._BITS)


def ellipse(x: float, y: float, along: float, across: float, angle: float = 0.0, points: int = 20) -> np.ndarray:
    """Outline (points, 2) of an ellipse with half axes ``along`` and ``across``, turned by ``angle`` radians."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return place(np.stack([along * np.cos(turn), across * np.sin(turn)], axis=1), x, y, angle)


def place(outline: np.ndarray, x: float, y: float, angle: float) -> np.ndarray:
    """Turn an outline by ``angle`` radians about the origin and move the origin to (x, y)."""
    c, s = np.cos(angle), np.sin(angle)
    return outline @ np.array([[c, s], [-s, c]]) + (x, y)
