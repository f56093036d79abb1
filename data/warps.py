"""Our own albumentations transforms: keypoints keep their rows, and what leaves the image becomes invisible at once.

The library's own padding and affine transforms multiply keypoints under reflecting borders. Here keypoints are rows
(x, y, 0, angle, scale, visible), as the library hands them on, with one column more. Positions are in pixels; the
centre of the first pixel is (0, 0).

Importing this module imports albumentations, which takes a second: only :mod:`vitrarium.data.transforms` does so, when
a transform is built.
"""

from __future__ import annotations

import os

# Without this the import asks the network for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import math
from typing import Any

import albumentations
import cv2
import numpy as np

X, Y, VISIBLE, COLUMNS = 0, 1, 5, 6


def hide_outside(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Keypoints (P, 6) with ``visible`` 0 for those that lie on no pixel of the image."""
    x, y = points[:, X], points[:, Y]
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    points[:, VISIBLE] *= inside
    return points


class Shift(albumentations.DualTransform):  # type: ignore[misc]
    """A crop of the original size out of the image padded by reflection: a shift by whole pixels.

    Args:
        pixels: largest shift to each side.
        p: probability.
    """

    def __init__(self, pixels: int, p: float) -> None:
        super().__init__(p=p)
        self.pixels = pixels

    def get_params(self) -> dict[str, Any]:
        """Draw where the crop begins in the padded image."""
        return {
            "left": self.py_random.randint(0, 2 * self.pixels),
            "top": self.py_random.randint(0, 2 * self.pixels),
        }

    def apply(self, img: np.ndarray, left: int, top: int, **params: Any) -> np.ndarray:
        """Pad and crop (H, W, C)."""
        height, width, pad = img.shape[0], img.shape[1], self.pixels
        padded = cv2.copyMakeBorder(img, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
        return padded.reshape(height + 2 * pad, width + 2 * pad, -1)[top : top + height, left : left + width]

    def apply_to_keypoints(self, keypoints: np.ndarray, left: int, top: int, **params: Any) -> np.ndarray:
        """Move (P, 6) along."""
        height, width = params["shape"][:2]
        moved = keypoints.copy()
        moved[:, X] += self.pixels - left
        moved[:, Y] += self.pixels - top
        return hide_outside(moved, height, width)


class Warp(albumentations.DualTransform):  # type: ignore[misc]
    """A random affine map about the image centre, bilinear, with reflecting borders.

    All ranges are symmetric or given as (low, high); each parameter is drawn uniformly, scale and aspect in the
    logarithm.

    Args:
        rotate: largest angle to each side in degrees.
        scale: (low, high) factor of the size of what is seen.
        shear: largest shear angle to each side in degrees, for each axis.
        translate: largest shift to each side as a share of the image's side.
        aspect: largest factor by which width is stretched against height, or the other way round.
        inside: choose the shift so that only pixels of the image are seen (a crop); ``translate`` is ignored.
        p: probability.
    """

    def __init__(
        self,
        rotate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        translate: float = 0.0,
        aspect: float = 1.0,
        inside: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.rotate, self.scale, self.shear, self.translate = rotate, scale, shear, translate
        self.aspect, self.inside = aspect, inside

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the matrix (2, 3) that takes a position in the image to its new position."""
        height, width = params["shape"][:2]
        draw = self.py_random.uniform
        angle = math.radians(draw(-self.rotate, self.rotate))
        across, along = (math.tan(math.radians(draw(-self.shear, self.shear))) for _ in range(2))
        size = math.exp(draw(math.log(self.scale[0]), math.log(self.scale[1])))
        stretch = math.exp(draw(-math.log(self.aspect), math.log(self.aspect)) / 2)
        zoom = np.diag([size * stretch, size / stretch])
        if self.inside:
            zoom = np.maximum(zoom, np.eye(2))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = turn @ np.array([[1, across], [along, 1]]) @ zoom
        room = (np.diag(zoom) - 1) / 2 if self.inside else np.full(2, self.translate)
        shift = np.array([draw(-r, r) for r in room]) * (width, height)
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        return {"matrix": np.column_stack([linear, centre + shift - linear @ centre])}

    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Warp (H, W, 3) or (H, W)."""
        size = img.shape[1], img.shape[0]
        return cv2.warpAffine(img, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    def apply_to_mask(self, mask: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Warp (H, W, P) plane by plane: OpenCV rounds differently for other numbers of channels."""
        planes = [self.apply(np.ascontiguousarray(mask[..., p]), matrix) for p in range(mask.shape[2])]
        return np.stack(planes, axis=2)

    def apply_to_keypoints(self, keypoints: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Move (P, 6) along."""
        height, width = params["shape"][:2]
        moved = keypoints.copy()
        moved[:, [X, Y]] = keypoints[:, [X, Y]] @ matrix[:, :2].T + matrix[:, 2]
        return hide_outside(moved, height, width)
