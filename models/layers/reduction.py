"""How an axis's map becomes one number, which places that number comes from, and how to give it another value."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest

REDUCTIONS = ("mean", "max", "positive_mean", "pool_max")
"""Mean over places; largest place; mean over the positive places; mean of the largest places of windows of 3 x 3."""

WINDOW, SLACK = 3, 1e-4


def reduce_map(maps: Tensor, how: str) -> Tensor:
    """One number for each map: what the axes say of an image, (B, M).

    "positive_mean" divides by the number of positive places plus 1e-4, and is 0 where there is none. "pool_max" is a
    max-pool of 3 x 3, stride 3, then the mean of the pooled (the default of Chen, Bei & Rudin, Nature Machine
    Intelligence 2020); windows at the right and lower edge may be narrower, so that every place counts, and a map
    smaller than 3 x 3 is one window: its maximum.

    Args:
        maps: (B, M, h, w).
        how: one of :data:`REDUCTIONS`.

    Raises:
        UserError: an unknown reduction.
    """
    if how == "mean":
        return maps.mean((2, 3))
    if how == "max":
        # max, not amax: the gradient goes to one place, also among equal ones.
        return maps.flatten(2).max(2).values
    if how == "positive_mean":
        count = (maps > 0).sum((2, 3))
        return functional.relu(maps).sum((2, 3)) / (count + SLACK)
    if how == "pool_max":
        return functional.max_pool2d(maps, WINDOW, WINDOW, ceil_mode=True).mean((2, 3))
    raise _unknown(how)


def winners(maps: Tensor, how: str) -> Tensor:
    """The weight of each place in the reduction: ``reduce_map(maps) == (winners(maps) * maps).sum((2, 3))``.

    It is the derivative of the reduction with respect to the map. Among equal largest places the first wins.

    Args:
        maps: (B, M, h, w).
        how: one of :data:`REDUCTIONS`.

    Returns:
        (B, M, h, w), 0 or more, without graph.

    Raises:
        UserError: an unknown reduction.
    """
    maps = maps.detach()
    if how == "mean":
        return torch.full_like(maps, 1 / (maps.shape[2] * maps.shape[3]))
    if how == "positive_mean":
        positive = maps > 0
        return positive / (positive.sum((2, 3), keepdim=True) + SLACK).to(maps.dtype)
    if how == "max":
        places = maps.flatten(2).argmax(2, keepdim=True)
    elif how == "pool_max":
        places = functional.max_pool2d(maps, WINDOW, WINDOW, ceil_mode=True, return_indices=True)[1].flatten(2)
    else:
        raise _unknown(how)
    weights = maps.new_zeros(*maps.shape[:2], maps.shape[2] * maps.shape[3])
    return weights.scatter_(2, places, 1 / places.shape[2]).view(maps.shape)


def shift_to(maps: Tensor, how: str, values: Tensor) -> Tensor:
    """What to add to every place of a map so that its reduction has a value: ``reduce_map(maps + shift) == values``.

    A positive mean can be reached with several numbers of positive places: the smallest shift is taken. It cannot be
    negative: for a value of 0 or less, the smallest shift is taken after which no place is positive.

    Args:
        maps: (B, M, h, w).
        how: one of :data:`REDUCTIONS`.
        values: (B, M), finite.

    Returns:
        (B, M) the shifts.

    Raises:
        UserError: an unknown reduction.
    """
    if how != "positive_mean":
        return values - reduce_map(maps, how)
    sorted_maps = maps.flatten(2).sort(2, descending=True).values
    # With the n largest places positive, sum + n shift = value (n + slack), and the next place is to stay below 0.
    count = torch.arange(1, sorted_maps.shape[2] + 1, device=maps.device, dtype=torch.float64)
    exact = (values.double()[:, :, None] * (count + SLACK) - sorted_maps.double().cumsum(2)) / count
    above = -sorted_maps
    below = functional.pad(above[:, :, 1:], (0, 1), value=torch.inf)
    tolerance = 1e-6 * (1 + exact.abs())
    shift = torch.minimum(exact.to(maps.dtype), below)
    wrong = torch.maximum(exact - below - tolerance, above - exact - tolerance)
    cost = torch.where((wrong <= 0) & (shift > above), shift.abs().double(), 1e30 * (1 + wrong.clamp_min(0)))
    best = shift.gather(2, cost.argmin(2, keepdim=True)).squeeze(2)
    return torch.where(values > 0, best, above[:, :, 0].clamp_max(0))


def alignment_gradients(
    whitened: Tensor, axes: Tensor, member: Tensor, how: str, released: bool = False, rotated: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What turns axes towards their concepts: the gradient of the sum over its images of an axis's activation.

    The activation of axis j is the reduction of r_j^T x over places, and its gradient with respect to r_j is x at the
    places that won *in the map of axis j*, so sums_j = sum over images n of member_nj sum over places of
    winners_nj x_n. It is to be maximised. The code released with the paper takes for component c the winners of
    rotated channel c instead, whatever the concept.

    Args:
        whitened: (B, C, h, w) whitened and not rotated.
        axes: (B, k, h, w) the rotated maps of the k axes.
        member: (B, k) weight of each image in each concept, 0 where it has nothing of it.
        how: one of :data:`REDUCTIONS`.
        released: as the released code does.
        rotated: (B, C, h, w) the whole rotated map, for ``released``.

    Returns:
        (k, C) sums, and (k,) the sums of the weights, both without graph.

    Raises:
        UserError: an unknown reduction.
        ValueError: ``released`` without ``rotated``.
    """
    whitened, member = whitened.detach(), member.to(whitened)
    if released:
        if rotated is None:
            raise ValueError("released gradients need the whole rotated map")
        own = (winners(rotated, how) * whitened).sum((2, 3))
        return member.T @ own, member.sum(0)
    weights = winners(axes, how).to(whitened) * member[:, :, None, None]
    rows = weights.permute(0, 2, 3, 1).flatten(0, 2)
    return rows.T @ whitened.permute(0, 2, 3, 1).flatten(0, 2), member.sum(0)


def _unknown(how: str) -> UserError:
    return UserError(f"a map cannot be reduced by '{how}'", closest(how, REDUCTIONS))
