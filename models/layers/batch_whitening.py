"""Whitening by a batch's own statistics as one step of automatic differentiation, with few matrix products.

With y = R W (x - mu), W S W^T = I, S the covariance of m rows x with eps added, and g the gradient of y, both methods
have a gradient of one form (rows are vectors, so matrices stand on their right):

    dx = (g - mean g) R W - y R Q' W / m,    Q' = Q + (eps / c) <Q, W W^T> W^-T W^-1

where Q is symmetric and made of M = R^T (sum g^T y) R alone: for S = V diag(s^2) V^T (ZCA) and N = V^T M V it is
V [(N_ij s_j + N_ji s_i) / (s_i + s_j)] V^T, without differences of eigenvalues in a denominator; for S = L L^T
(Cholesky) the lower triangle of M, mirrored. The second part of Q' is that eps is a share of the mean variance, which
depends on x. Going back costs three products as large as the map; all else is c x c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.layers.inverse_root import Method, cholesky_parts, eigh_parts, inverse_root
from vitrarium.models.layers.processes import several, summed

FLOOR = 1e-10
"""Variance added everywhere, so that a map that is constant in all channels stays finite (and becomes 0)."""


class Whitened(NamedTuple):
    """A whitened map and what it was whitened by.

    Attributes:
        map: (B, C, h, w).
        mean: (groups, c), without graph.
        covariance: (groups, c, c), without eps and without graph.
    """

    map: Tensor
    mean: Tensor
    covariance: Tensor


def whiten(
    map: Tensor,
    groups: int = 1,
    method: Method = "eigh",
    eps: float = 1e-5,
    iterations: int = 10,
    rotation: Tensor | None = None,
    count: int | None = None,
) -> Whitened:
    """Whiten a map by its own mean and covariance over images and places, of all processes.

    Derivatives of any order are right; the first of "eigh" and "cholesky" is from the formula and cheap.

    Args:
        map: (B, C, h, w), float32 or float64.
        groups: the channels in so many equal parts, each whitened on its own.
        method: see :func:`~vitrarium.models.layers.inverse_root.inverse_root`.
        eps: added to the variances, as a share of their mean in the group.
        iterations: of "iternorm".
        rotation: (groups, c, c) R, applied after whitening in the same matrix product; no gradient reaches it.
        count: values of a channel over all processes, B h w of each; None = count them.

    Raises:
        UserError: no more values than channels of a group, so that no covariance can be had; a map that is not finite.
    """
    count = rows_everywhere(map) if count is None else count
    width = map.shape[1] // groups
    if count <= width:
        raise UserError(
            f"the batch has {count} values for each of {width} channels: too few for their covariance",
            "cut where maps are larger (backbone.cut), raise train.batch_size or data.size, "
            "or whiten in more parts (model.evidence.groups)",
        )
    rotation = None if rotation is None else rotation.detach().to(map)
    if method == "iternorm":
        return _composed(map, rotation, groups, method, eps, iterations, count)
    return Whitened(*_Whiten.apply(map, rotation, groups, method, eps, count))  # type: ignore[no-untyped-call]


def rows_everywhere(map: Tensor) -> int:
    """How many values each channel of a map (B, C, h, w) has, over all processes."""
    own = map.shape[0] * map.shape[2] * map.shape[3]
    return int(summed(torch.tensor(float(own), device=map.device))) if several() else own


def flat_by_group(map: Tensor, groups: int) -> Tensor:
    """(B, C, h, w) to (groups, B h w, C / groups); no copy with channels last in memory."""
    batch, channels, height, width = map.shape
    rows = map.permute(0, 2, 3, 1).reshape(batch * height * width, groups, channels // groups)
    return rows.transpose(0, 1)


def map_of_flat(flat: Tensor, like: Tensor) -> Tensor:
    """Inverse of :func:`flat_by_group`, with the shape (B, C, h, w) and the order in memory of another map."""
    batch, channels, height, width = like.shape
    map = flat.transpose(0, 1).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return map.contiguous() if like.is_contiguous() else map


def regular(covariance: Tensor, eps: float) -> Tensor:
    """The covariance (..., c, c) with ``eps`` times the mean variance (and a tiny floor) added to the diagonal."""
    variance = torch.diagonal(covariance, dim1=-2, dim2=-1).mean(-1)[..., None]
    return covariance + torch.diag_embed((eps * variance + FLOOR).expand(covariance.shape[:-1]))


class _Gram(torch.autograd.Function):
    """X^T X of (..., m, c); one matrix product backward, where autograd takes two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mT @ x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        product: Tensor = x @ (gradients[0] + gradients[0].mT)
        return product


def _moments(flat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centred rows (groups, m, c), mean (groups, c) and covariance (groups, c, c) of rows, over all processes."""
    first = summed(flat.sum(1)) / count
    centred = flat - first[:, None]
    # The first mean is rounded to the precision of the values themselves. What it left behind is taken off as well, so
    # that constants come out as 0 however large they are.
    left = summed(centred.sum(1)) / count
    centred = centred - left[:, None]
    covariance: Tensor = summed(_Gram.apply(centred)) / count  # type: ignore[no-untyped-call]
    return centred, first + left, covariance


def _composed(
    map: Tensor, rotation: Tensor | None, groups: int, method: Method, eps: float, iterations: int, count: int
) -> Whitened:
    """Whitening by automatic differentiation of its parts."""
    centred, mean, covariance = _moments(flat_by_group(map, groups), count)
    matrix = inverse_root(regular(covariance, eps), method, iterations)
    matrix = matrix if rotation is None else rotation @ matrix
    return Whitened(map_of_flat(centred @ matrix.mT, map), mean.detach(), covariance.detach())


class _Whiten(torch.autograd.Function):
    """:func:`_composed` for "eigh" and "cholesky", with its first derivative from the formula above."""

    @staticmethod
    def forward(
        ctx: Any, map: Tensor, rotation: Tensor | None, groups: int, method: Method, eps: float, count: int
    ) -> Whitened:
        centred, mean, covariance = _moments(flat_by_group(map, groups), count)
        matrix, parts = _METHODS[method][0](regular(covariance, eps), rotation)
        result = map_of_flat(centred @ matrix.mT, map)
        # The map itself is kept for second derivatives only.
        ctx.save_for_backward(map, rotation, result, matrix, *parts)
        ctx.options = groups, method, eps, count
        ctx.mark_non_differentiable(mean, covariance)
        return Whitened(result, mean, covariance)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        map, rotation, result, matrix, *parts = ctx.saved_tensors
        groups, method, eps, count = ctx.options
        if torch.is_grad_enabled():
            again = _composed(map, rotation, groups, method, eps, 0, count).map
            (exact,) = torch.autograd.grad(again, map, gradients[0], create_graph=True)
            return exact, None, None, None, None, None
        gradient, whitened = flat_by_group(gradients[0], groups), flat_by_group(result, groups)
        both = summed(torch.cat([gradient.mT @ whitened, gradient.sum(1, keepdim=True)], 1))
        back = _METHODS[method][1](both[:, :-1], rotation, eps, parts).div_(-count)
        found = torch.baddbmm(both[:, -1:] @ matrix, gradient, matrix, beta=-1 / count)
        return map_of_flat(found.baddbmm_(whitened, back), map), None, None, None, None, None


def _eigh(covariance: Tensor, rotation: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """R W for ZCA, and R V, V, s."""
    vectors, roots = eigh_parts(covariance)
    left = vectors if rotation is None else rotation @ vectors
    return (left / roots[:, None]) @ vectors.mT, (left, vectors, roots)


def _eigh_back(gram: Tensor, rotation: Tensor | None, eps: float, parts: list[Tensor]) -> Tensor:
    """R Q' W for ZCA. With V, N: W^-T W^-1 is diag(s^2)."""
    left, vectors, roots = parts
    inner = left.mT @ gram @ left
    weighted = inner * roots[:, None]
    mixed = (weighted + weighted.mT) / (roots[:, :, None] + roots[:, None])
    diagonal = torch.diagonal(mixed, dim1=-2, dim2=-1)
    share = eps * (diagonal / roots.square()).mean(-1, keepdim=True)
    diagonal.add_(share * roots.square())
    product: Tensor = left @ (mixed / roots[:, None]) @ vectors.mT
    return product


def _cholesky(covariance: Tensor, rotation: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """R W for Cholesky, and W, L."""
    inverse, factor = cholesky_parts(covariance)
    return inverse if rotation is None else rotation @ inverse, (inverse, factor)


def _cholesky_back(gram: Tensor, rotation: Tensor | None, eps: float, parts: list[Tensor]) -> Tensor:
    """R Q' W for Cholesky. W^-T W^-1 W is L^T."""
    inverse, factor = parts
    inner = gram if rotation is None else rotation.mT @ gram @ rotation
    product = (inner.tril() + inner.tril(-1).mT) @ inverse
    share = eps * (product * inverse).sum((1, 2), keepdim=True) / inverse.shape[-1]
    product = torch.addcmul(product, share, factor.mT)
    return product if rotation is None else rotation @ product


_METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "eigh": (_eigh, _eigh_back),
    "cholesky": (_cholesky, _cholesky_back),
}
