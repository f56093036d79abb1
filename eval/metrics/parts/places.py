"""Where in the image a unit looks: its map stretched to the image, and the strongest pixel of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

PAPER_SIZE = 224
"""Side of the images for which the papers give boxes and patches in pixels."""

STRETCHED = "cubic interpolation of the map to the size of the image"

_FLOATS_AT_ONCE = 4_000_000


@lru_cache(maxsize=64)
def stretching(places: int, pixels: int, device: torch.device) -> Tensor:
    """The matrix (pixels, places) of cubic interpolation (Keys, IEEE TASSP 1981, a = -3/4) along one side of an image.

    Cells are centred on the pixels they cover and repeated beyond the border. Interpolation of a map is one product
    from either side, R A C^T, which is much cheaper than interpolating map by map.
    """
    identity = torch.eye(places, dtype=torch.float64)[None, None]
    matrix = functional.interpolate(identity, (pixels, places), mode="bicubic", align_corners=False)[0, 0]
    return matrix.to(device, torch.float32)


def stretched(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, h, w) as large as the image (H, W): (n, H, W) float32."""
    rows = stretching(maps.shape[1], size[0], maps.device)
    columns = stretching(maps.shape[2], size[1], maps.device)
    return rows @ (maps.float() @ columns.T)


def in_chunks(count: int, size: tuple[int, int]) -> Iterator[slice]:
    """Slices of ``count`` maps, so few at a time that their stretched forms take 16 MB."""
    step = max(1, _FLOATS_AT_ONCE // (size[0] * size[1]))
    for start in range(0, count, step):
        yield slice(start, start + step)


def flat(maps: Tensor) -> Tensor:
    """(n,) bool: maps (n, h, w) that are the same everywhere, and so point nowhere."""
    values = maps.flatten(1)
    return ~(values.amax(1) > values.amin(1))


def peaks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The strongest pixel of each stretched map, the first in reading order among equals.

    Args:
        maps: (n, h, w).
        size: (H, W) of the image.

    Returns:
        (n, 2) float32 row and column; NaN for a flat map.
    """
    found = maps.new_full((len(maps), 2), float("nan"), dtype=torch.float32)
    for chunk in in_chunks(len(maps), size):
        best = stretched(maps[chunk], size).flatten(1).argmax(1)
        found[chunk] = torch.stack([best // size[1], best % size[1]], 1).float()
    return found.masked_fill(flat(maps)[:, None], float("nan"))


def strongest_places(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre, in pixels, of the strongest place of each map itself; arguments and result as in :func:`peaks`.

    Place i of h covers the pixels from i H / h to (i + 1) H / h; pixel 0 is centred on 0.
    """
    height, width = maps.shape[1:]
    best = maps.flatten(1).argmax(1)
    cells = torch.stack([best // width, best % width], 1).float()
    steps = torch.tensor([size[0] / height, size[1] / width], device=maps.device)
    return ((cells + 0.5) * steps - 0.5).masked_fill(flat(maps)[:, None], float("nan"))


def segment_shares(maps: Tensor, segments: Tensor, which: Tensor, top: float) -> Tensor:
    """How much of each map falls on the segment of its image.

    With the stretched map minus the weakest cell, at least 0: the share of its sum inside (energy); the share of its
    ``top`` strongest pixels inside; whether the strongest pixel is inside (pointing game: Zhang et al., ECCV 2016). A
    flat map has none of the three.

    Args:
        maps: (n, h, w).
        segments: (B, H, W) bool.
        which: (n,) int64, the image of each map.
        top: share of the pixels, in (0, 1]; at least one is taken.

    Returns:
        (n, 3) in [0, 1].
    """
    size = (segments.shape[1], segments.shape[2])
    count = max(1, round(top * size[0] * size[1]))
    found = maps.new_zeros(len(maps), 3, dtype=torch.float32)
    for chunk in in_chunks(len(maps), size):
        weakest = maps[chunk].float().amin((1, 2), keepdim=True)
        large = (stretched(maps[chunk], size) - weakest).clamp_min(0).flatten(1)
        inside = segments[which[chunk]].flatten(1)
        found[chunk, 0] = large.masked_fill(~inside, 0.0).sum(1) / large.sum(1).clamp_min(1e-30)
        found[chunk, 1] = inside.gather(1, large.topk(count, 1).indices).float().mean(1)
        found[chunk, 2] = inside.gather(1, large.argmax(1, keepdim=True))[:, 0].float()
    return found.masked_fill(flat(maps)[:, None], 0.0)


def region_overlaps(maps: Tensor, masks: Tensor, which: Tensor, level: float) -> Tensor:
    """How much the region of each map is like each mask of its image, as intersection over union.

    The region is where the stretched map minus the weakest cell is at least ``level`` of its largest pixel. A flat map
    has no region.

    Args:
        maps: (n, h, w).
        masks: (B, Q, H, W) bool.
        which: (n,) int64, the image of each map.
        level: in (0, 1).

    Returns:
        (n, Q) in [0, 1].
    """
    size = (masks.shape[2], masks.shape[3])
    flattened = masks.flatten(2).float()
    areas = flattened.sum(2)
    found = maps.new_zeros(len(maps), masks.shape[1], dtype=torch.float32)
    # The masks of its image are laid out beside each map.
    for chunk in in_chunks(len(maps), ((masks.shape[1] + 1) * size[0], size[1])):
        weakest = maps[chunk].float().amin((1, 2), keepdim=True)
        large = (stretched(maps[chunk], size) - weakest).flatten(1)
        region = (large >= level * large.amax(1, keepdim=True)).float()
        both = torch.einsum("np,nqp->nq", region, flattened[which[chunk]])
        either = region.sum(1, keepdim=True) + areas[which[chunk]] - both
        found[chunk] = both / either.clamp_min(1)
    return found.masked_fill(flat(maps)[:, None], 0.0)
