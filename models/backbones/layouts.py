"""How networks arrange their maps in memory, and the one arrangement of the house: (B, D, h, w)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError

# Maps of convolutions without padding are up to this factor off the image's aspect: of 128 x 256 pixels the last maps
# of Inception have 2 x 6 places.
ASPECT_TOLERANCE = 1.6


class Layout(NamedTuple):
    """How a tensor holds a map.

    Attributes:
        kind: "first" is (B, D, h, w), "last" is (B, h, w, D), "tokens" is (B, prefix + h w, D), row by row.
        prefix: tokens in front that belong to no place (class and register tokens).
    """

    kind: Literal["first", "last", "tokens"] = "first"
    prefix: int = 0

    def read(self, value: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The map (B, D, h, w) and a tuple with the prefix tokens (B, prefix, D), empty where there are none.

        Args:
            value: what the network computed.
            size: height and width of anything with the aspect of the map, the image say.
        """
        if self.kind == "first":
            return value, ()
        if self.kind == "last":
            return value.permute(0, 3, 1, 2), ()
        places = grid(value.shape[1] - self.prefix, size)
        if places is None:
            raise UserError(
                f"{value.shape[1] - self.prefix} tokens make no grid of the aspect {size[0]} : {size[1]}",
                "use square images",
            )
        map = value[:, self.prefix :].transpose(1, 2).unflatten(2, places)
        return map, (value[:, : self.prefix],) if self.prefix else ()

    def write(self, map: Tensor, extra: Sequence[Tensor] = ()) -> Tensor:
        """The inverse of :meth:`read`."""
        if self.kind == "first":
            return map
        if self.kind == "last":
            return map.permute(0, 2, 3, 1)
        return torch.cat([*extra, map.flatten(2).transpose(1, 2)], 1)


def grid(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of ``tokens`` places with the aspect of ``size`` (height, width); None if there are none."""
    if tokens < 1:
        return None
    height = max(1, round(math.sqrt(tokens * size[0] / size[1])))
    width = tokens // height
    fits = height * width == tokens and height == max(1, round(width * size[0] / size[1]))
    return (height, width) if fits else None


def detect(shape: Sequence[int], size: Sequence[int], usual: Layout) -> Layout | None:
    """The layout of a tensor by its shape; None if it holds no map.

    Args:
        shape: of what a network computed from images of ``size``.
        size: height and width of the images.
        usual: the layout of the network's final map, taken where shapes leave a choice.
    """
    if len(shape) == 3:
        for prefix in dict.fromkeys((usual.prefix, 0)):
            if grid(shape[1] - prefix, size) is not None:
                return Layout("tokens", prefix)
        return None
    if len(shape) != 4 or 0 in shape:
        return None
    aspect = math.log(size[1] / size[0])
    first = abs(math.log(shape[3] / shape[2]) - aspect)
    last = abs(math.log(shape[2] / shape[1]) - aspect)
    if shape[2] == shape[3] == 1:
        # Pooled to one place: that has no aspect.
        return Layout("first")
    if min(first, last) > math.log(ASPECT_TOLERANCE):
        return None
    if first == last:
        return Layout("last" if usual.kind == "last" else "first")
    return Layout("first") if first < last else Layout("last")
