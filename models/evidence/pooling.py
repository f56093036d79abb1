"""Spatial pooling that evidence layers share."""

from __future__ import annotations

from torch import Tensor


def pool(maps: Tensor, region: Tensor | None = None) -> Tensor:
    """Average (B, M, h, w) over space, or over ``region`` (B, M or 1, h, w) in [0, 1] (0 where it is empty)."""
    if region is None:
        return maps.mean((2, 3))
    region = region.to(maps)
    area = region.sum((2, 3)).clamp_min(1e-6)
    return (maps * region).sum((2, 3)) / area
