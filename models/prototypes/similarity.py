"""How alike patches and prototypes are, as maps over all places of an image.

Everything here is computed in single precision at least, also under autocast: in half precision the expansion
|x|^2 - 2 <x, p> + |p|^2 is off by more than the distances that matter. Maps lie in memory place by place (channels
last), which is how the product comes out and how the best place is found fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-12


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, those in half precision made single."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def columns(latent: Tensor, part: int) -> Tensor:
    """All patches of ``part`` x ``part`` places: (B, E, h, w) to (B, E k^2, h - k + 1, w - k + 1)."""
    if part == 1:
        return latent
    height, width = latent.shape[-2] - part + 1, latent.shape[-1] - part + 1
    shifted = [latent[:, :, i : i + height, j : j + width] for i in range(part) for j in range(part)]
    return torch.stack(shifted, 2).flatten(1, 2)


def products(patches: Tensor, prototypes: Tensor) -> Tensor:
    """<x, p> of patches (B, E, h, w) and prototypes (P, E), in the precision that they have: (B, P, h, w).

    On processors as a convolution of maps that lie channels last, several times as fast as the matrix product on some.
    Elsewhere as the matrix product, for graphics cards convolve single precision in ten bits unless told otherwise.
    """
    if patches.device.type == "cpu" and patches.dtype == torch.float32:
        patches = patches.contiguous(memory_format=torch.channels_last)
        return functional.conv2d(patches, prototypes[:, :, None, None])
    rows = patches.flatten(2).transpose(1, 2)
    return (rows @ prototypes.T).transpose(1, 2).unflatten(2, patches.shape[-2:])


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
        return products(columns(latent, prototypes.shape[-1]), prototypes.flatten(1))


def norm_maps(latent: Tensor, part: int) -> Tensor:
    """|x|^2 of every patch of ``part`` x ``part`` places: (B, E, h, w) to (B, 1, h - k + 1, w - k + 1)."""
    (latent,) = at_least_float32(latent)
    squares = latent.square().sum(1, keepdim=True)
    return squares if part == 1 else columns(squares, part).sum(1, keepdim=True)


def distance_maps(latent: Tensor, prototypes: Tensor, exact: bool = False) -> Tensor:
    """|x - p|^2 of every patch and prototype, at least 0; shapes as in :func:`product_maps`.

    One norm map of the patches serves all prototypes (the released ProtoPNet convolves the squares with one filter of
    ones per prototype).

    Args:
        latent: (B, E, h, w).
        prototypes: (P, E, k, k).
        exact: compute in double precision and round the result. A difference of numbers around |x|^2 in single
            precision is off by about 1e-7 |x|^2, which is 1e-5 for a hundred channels: far more than nothing where a
            prototype meets the patch it was taken from, and as much as log-L2's epsilon. Apple's graphics chips have
            no double precision; there it stays single.
    """
    latent, prototypes = at_least_float32(latent, prototypes)
    part = prototypes.shape[-1]
    with torch.autocast(latent.device.type, enabled=False):
        patches, prototypes = columns(latent, part), prototypes.flatten(1)
        if exact and latent.device.type != "mps":
            return _exact_distances(patches.double(), prototypes.double()).to(latent.dtype)
        own = prototypes.square().sum(1)[:, None, None]
        return (norm_maps(latent, part) - 2 * products(patches, prototypes) + own).clamp_min(0)


def _exact_distances(patches: Tensor, prototypes: Tensor) -> Tensor:
    """|x - p|^2 of patches (B, E, h, w) and prototypes (P, E) in double precision: (B, P, h, w).

    As one product: <(x, |x|^2, 1), (-2 p, 1, |p|^2)>. Each further step on the maps would cost as much as in single
    precision twice.
    """
    rows = patches.flatten(2).transpose(1, 2)
    left = torch.cat([rows, rows.square().sum(2, keepdim=True), torch.ones_like(rows[:, :, :1])], 2)
    right = torch.cat(
        [-2 * prototypes, torch.ones_like(prototypes[:, :1]), prototypes.square().sum(1, keepdim=True)], 1
    )
    return (left @ right.T).clamp_min(0).transpose(1, 2).unflatten(2, patches.shape[-2:])


def unit_patches(latent: Tensor, part: int) -> Tensor:
    """:func:`columns` brought to length 1; those of length 0 stay 0."""
    (latent,) = at_least_float32(latent)
    with torch.autocast(latent.device.type, enabled=False):
        return functional.normalize(columns(latent, part), dim=1, eps=TINY)


def unit_rows(prototypes: Tensor) -> Tensor:
    """(P, E, k, k) to (P, E k^2) of length 1."""
    (prototypes,) = at_least_float32(prototypes)
    with torch.autocast(prototypes.device.type, enabled=False):
        return functional.normalize(prototypes.flatten(1), dim=1, eps=TINY)


def cosine_maps(latent: Tensor, prototypes: Tensor) -> Tensor:
    """<x, p> / (|x| |p|) in [-1, 1]; 0 for a patch or prototype of length 0; shapes as in :func:`product_maps`."""
    with torch.autocast(latent.device.type, enabled=False):
        return products(unit_patches(latent, prototypes.shape[-1]), unit_rows(prototypes))


def log_l2(distance: Tensor, epsilon: float = 1e-4) -> Tensor:
    """log((d + 1) / (d + epsilon)) of squared distances (Chen et al., NeurIPS 2019); log(1 / epsilon) at most."""
    return torch.log((distance + 1) / (distance + epsilon))


def exp_l2(distance: Tensor) -> Tensor:
    """exp(-|x - p|) of squared distances, in (0, 1] (Nauta et al., CVPR 2021: the distance, not its square)."""
    return torch.exp(-torch.sqrt(distance + 1e-14))
