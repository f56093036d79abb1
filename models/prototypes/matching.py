"""Similarity maps together with their best places, for training: one pass forward, and next to nothing backward.

A maximum over places has a gradient at one place of each image and prototype. Automatic differentiation of maps and
maximum does not know that: it fills a gradient as large as the maps with zeros and multiplies it twice by everything.
:func:`best_matches` looks the places up instead, so that going backward costs a sum of B x P rows.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.models.prototypes.similarity import at_least_float32, exp_l2, log_l2, products

Kind = Literal["product", "log_l2", "exp_l2"]

AT_ONCE = 2**18
"""Numbers of the maps that are worked on at a time and thread: what stays near the processor (1 MB)."""


class Matches(NamedTuple):
    """What patches and prototypes have in common.

    Attributes:
        maps: (B, P, h, w) similarities.
        best: (B, P) the products <x, p> or squared distances |x - p|^2 of the best place: largest product, smallest
            distance; among equal ones the first, row by row.
    """

    maps: Tensor
    best: Tensor


def best_matches(patches: Tensor, prototypes: Tensor, kind: Kind, epsilon: float = 1e-4) -> Matches:
    """Similarity maps, and the best place of each image and prototype.

    Derivatives of any order are right. If only ``best`` gets a gradient, the first is cheap; otherwise the maps are
    computed again from the formula and differentiated as usual.

    Args:
        patches: (B, E, h, w); made single if they are in half precision.
        prototypes: (P, E); likewise.
        kind: "product" (maps of <x, p>), or "log_l2" or "exp_l2" (maps of these functions of the squared distance).
        epsilon: of "log_l2".
    """
    patches, prototypes = at_least_float32(patches, prototypes)
    with torch.autocast(patches.device.type, enabled=False):
        return Matches(*_Match.apply(patches, prototypes, kind, epsilon))


class _Match(torch.autograd.Function):
    """Maps and best values; see :func:`best_matches`."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, prototypes: Tensor, kind: Kind, epsilon: float) -> tuple[Tensor, Tensor]:
        size, places = patches.shape[-2:], patches.shape[-2] * patches.shape[-1]
        distances = kind != "product"
        maps = products(patches, prototypes * (-2 if distances else 1)).permute(0, 2, 3, 1).contiguous().flatten(1, 2)
        norms = patches.square().sum(1).flatten(1)[:, :, None] if distances else None
        own = prototypes.square().sum(1)
        best, place = maps.new_empty(len(maps), len(own)), maps.new_empty(len(maps), len(own), dtype=torch.int64)
        left = torch.arange(places, 0, -1, device=maps.device, dtype=maps.dtype)[:, None]
        # Piece by piece everything that is done to a map is done before it leaves the cache.
        step = max(1, AT_ONCE * torch.get_num_threads() // max(1, places * len(own)))
        for start in range(0, len(maps), step):
            piece = maps[start : start + step]
            if norms is not None:
                piece.add_(norms[start : start + step]).add_(own).clamp_min_(0)
            best[start : start + step], place[start : start + step] = _best_places(piece, distances, left)
            _respond(piece, kind, epsilon)
        ctx.kind, ctx.epsilon = kind, epsilon
        # As they came, so that a derivative of the gradient finds its way to them.
        ctx.save_for_backward(patches, prototypes, place, best)
        ctx.set_materialize_grads(False)
        return maps.unflatten(1, size).permute(0, 3, 1, 2), best

    @staticmethod
    def backward(ctx: Any, of_maps: Tensor | None, of_best: Tensor | None) -> tuple[Tensor | None, ...]:
        if of_maps is None and of_best is None:
            return None, None, None, None
        patches, prototypes, place, best = ctx.saved_tensors
        if of_maps is not None or torch.is_grad_enabled():
            given, needed = (of_maps, of_best), ctx.needs_input_grad[:2]
            first, second = _from_formula(patches, prototypes, place, ctx.kind, ctx.epsilon, given, needed)
        else:
            assert of_best is not None
            if ctx.kind != "product":
                # A distance that has come out as 0 is rounding, and what differs then is no direction to go: times the
                # slope of a root at 0 it would be a gradient of thousands.
                of_best = of_best.masked_fill(best <= 0, 0.0)
            first, second = _from_places(patches, prototypes, place, of_best, ctx.kind != "product")
        return first, second, None, None


def _best_places(maps: Tensor, smallest: bool, left: Tensor) -> tuple[Tensor, Tensor]:
    """Best value and its first place (B, P) of maps (B, places, P); ``left`` (places, 1) counts down to 1."""
    best = maps.amin(1) if smallest else maps.amax(1)
    # As numbers, because comparing into bool and looking for an index take several times as long. Nothing is equal
    # where the best is not a number: any place is as good then.
    marks = torch.eq(maps, best[:, None], out=torch.empty_like(maps))
    place = len(left) - marks.mul_(left).amax(1)
    return best, place.clamp_max_(len(left) - 1).long()


def _respond(maps: Tensor, kind: Kind, epsilon: float) -> None:
    """Turn distances into similarities, in place."""
    if kind == "log_l2":
        below = maps + epsilon
        maps.add_(1).div_(below).log_()
    elif kind == "exp_l2":
        maps.add_(1e-14).sqrt_().neg_().exp_()


def _from_places(
    patches: Tensor, prototypes: Tensor, place: Tensor, gradient: Tensor, distances: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of patches (B, E, h, w) and prototypes (P, E) from that of the best values (B, P).

    With j the best place of image b and prototype p, a product passes on g p to x_j and g x_j to p, a squared distance
    2 g (x_j - p) and 2 g (p - x_j).
    """
    images = len(patches)
    rows = patches.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    places = len(rows) // images
    where = place + torch.arange(images, device=place.device)[:, None] * places
    to_prototypes = _weighted_sums(rows, where.T, gradient.T)
    # The same sum seen from the patches: pairs in the order of their place, a bag of prototypes for each.
    where = where.flatten()
    order = where.argsort()
    ends = torch.bincount(where, minlength=len(rows)).cumsum(0)
    begins = functional.pad(ends[:-1], (1, 0))
    which = torch.arange(len(prototypes), device=place.device).repeat(images)[order]
    to_patches = _weighted_sums(prototypes, which, gradient.flatten()[order], begins)
    if distances:
        to_prototypes = 2 * (gradient.sum(0)[:, None] * prototypes - to_prototypes)
        weight = gradient.new_zeros(len(rows)).scatter_add_(0, where, gradient.flatten())
        to_patches = 2 * (weight[:, None] * rows - to_patches)
    return to_patches.view(images, *patches.shape[-2:], -1).permute(0, 3, 1, 2), to_prototypes


def _weighted_sums(table: Tensor, which: Tensor, weight: Tensor, begins: Tensor | None = None) -> Tensor:
    """Weighted sums of rows of ``table``: of each row of ``which`` (n, m), or of its stretches from ``begins`` on."""
    return functional.embedding_bag(
        which.contiguous(), table, begins, mode="sum", per_sample_weights=weight.contiguous()
    )


def _from_formula(
    patches: Tensor,
    prototypes: Tensor,
    place: Tensor,
    kind: Kind,
    epsilon: float,
    given: tuple[Tensor | None, Tensor | None],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by automatic differentiation of the formula, with a graph of their own if one is wanted."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [patches, prototypes] if further else [t.detach().requires_grad_() for t in (patches, prototypes)]
        raw = products(*inputs)
        if kind != "product":
            own = inputs[1].square().sum(1)[:, None, None]
            raw = (inputs[0].square().sum(1, keepdim=True) - 2 * raw + own).clamp_min(0)
        maps = raw if kind == "product" else log_l2(raw, epsilon) if kind == "log_l2" else exp_l2(raw)
        best = raw.flatten(2).gather(2, place[:, :, None]).squeeze(2)
    pairs = [(out, gradient) for out, gradient in zip((maps, best), given, strict=True) if gradient is not None]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [gradient for _, gradient in pairs], create_graph=further
        )
    )
    first, second = (next(found) if need else None for need in needed)
    return first, second
