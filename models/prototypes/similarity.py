"""How alike patches and prototypes are, as maps over all places of an image.

Everything here is computed in single precision at least, also under autocast: in half precision the expansion
|x|^2 - 2 <x, p> + |p|^2 is off by more than the distances that matter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-12


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, those in half precision made single."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def product_maps(latent: Tensor, prototypes: Tensor) -> Tensor:
    """<x, p> of every patch and prototype.

    Args:
        latent: (B, E, h, w).
        prototypes: (P, E, k, k).

    Returns:
        (B, P, h - k + 1, w - k + 1).
    """
    latent, prototypes = at_least_float32(latent, prototypes)
    with torch.autocast(latent.device.type, enabled=False):
        if prototypes.shape[-1] > 1:
            return functional.conv2d(latent, prototypes)
        products = prototypes.flatten(1) @ latent.flatten(2)
        return products.unflatten(2, latent.shape[-2:])


def norm_maps(latent: Tensor, part: int) -> Tensor:
    """|x|^2 of every patch of ``part`` x ``part`` places: (B, E, h, w) to (B, 1, h - k + 1, w - k + 1)."""
    (latent,) = at_least_float32(latent)
    squares = latent.square().sum(1, keepdim=True)
    return functional.avg_pool2d(squares, part, 1) * part**2 if part > 1 else squares


def distance_maps(latent: Tensor, prototypes: Tensor) -> Tensor:
    """|x - p|^2 of every patch and prototype, at least 0; shapes as in :func:`product_maps`.

    One norm map of the patches serves all prototypes (the released ProtoPNet convolves the squares with one filter of
    ones per prototype).
    """
    latent, prototypes = at_least_float32(latent, prototypes)
    with torch.autocast(latent.device.type, enabled=False):
        own = prototypes.flatten(1).square().sum(1)[:, None, None]
        return (norm_maps(latent, prototypes.shape[-1]) - 2 * product_maps(latent, prototypes) + own).clamp_min(0)


def cosine_maps(latent: Tensor, prototypes: Tensor) -> Tensor:
    """<x, p> / (|x| |p|) in [-1, 1]; 0 for a patch or prototype of length 0; shapes as in :func:`product_maps`."""
    latent, prototypes = at_least_float32(latent, prototypes)
    with torch.autocast(latent.device.type, enabled=False):
        unit = functional.normalize(prototypes.flatten(1), dim=1, eps=TINY).view_as(prototypes)
        if prototypes.shape[-1] == 1:
            return product_maps(functional.normalize(latent, dim=1, eps=TINY), unit)
        length = norm_maps(latent, prototypes.shape[-1]).clamp_min(TINY**2).sqrt()
        return product_maps(latent, unit) / length


def log_l2(distance: Tensor, epsilon: float = 1e-4) -> Tensor:
    """log((d + 1) / (d + epsilon)) of squared distances (Chen et al., NeurIPS 2019); log(1 + 1/epsilon) at most."""
    return torch.log((distance + 1) / (distance + epsilon))


def exp_l2(distance: Tensor) -> Tensor:
    """exp(-|x - p|) of squared distances, in (0, 1] (Nauta et al., CVPR 2021: the distance, not its square)."""
    return torch.exp(-torch.sqrt(distance + 1e-14))
