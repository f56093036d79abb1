"""Prototypes compared with each other: by class, in pairs, as subspaces, without large intermediates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-12


def by_class(rows: Tensor, owner: Tensor, living: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Rows sorted into one matrix per class, whatever their order.

    Args:
        rows: (P, D).
        owner: (P,) int64 class of each row; -1 (shared) rows are left out.
        living: (P,) bool; others are left out.
        classes: C.

    Returns:
        (C, n, D) with n the largest number of rows of a class (at least 1), padded with rows of 0; (C, n) bool, which
        rows are none of the padding.
    """
    kept = torch.nonzero(living & (owner >= 0))[:, 0]
    one_hot = functional.one_hot(owner[kept], classes)
    place = (one_hot.cumsum(0) - one_hot).gather(1, owner[kept][:, None])[:, 0]
    width = max(int(one_hot.sum(0).max()) if len(kept) else 0, 1)
    slot = owner[kept] * width + place
    sorted_rows = rows.new_zeros(classes * width, rows.shape[1]).index_copy(0, slot, rows[kept])
    filled = torch.zeros(classes * width, dtype=torch.bool, device=rows.device)
    filled[slot] = True
    return sorted_rows.view(classes, width, -1), filled.view(classes, width)


def subspace_distances(basis: Tensor) -> Tensor:
    """|P_i - P_j|_F of all pairs of classes, with P_c = B_c^T B_c.

    No P is built and no difference of two: |P_i - P_j|^2 = s_ii + s_jj - 2 s_ij with s_ij = |B_i B_j^T|^2, which are
    sums of blocks of one Gram matrix. The diagonal is 0 and without gradient, and so is a pair of equal subspaces,
    where the root has no slope.

    Args:
        basis: (C, n, D), rows of 0 do not count.

    Returns:
        (C, C).
    """
    classes, rows, _ = basis.shape
    flat = basis.flatten(0, 1)
    blocks = (flat @ flat.T).view(classes, rows, classes, rows)
    alike = torch.einsum("iajb,iajb->ij", blocks, blocks)
    own = alike.diagonal()
    squared = own[:, None] + own[None] - 2 * alike
    # What is left of equal subspaces is rounding, of either sign.
    apart = squared > 8 * torch.finfo(squared.dtype).eps * (own[:, None] + own[None])
    apart = apart & ~torch.eye(classes, dtype=torch.bool, device=basis.device)
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


@torch.no_grad()
def pair_distances(rows: Tensor) -> Tensor:
    """|p_i - p_j| of all pairs of rows (P, D): (P, P) in float32, 0 on the diagonal.

    By the expansion |p_i|^2 + |p_j|^2 - 2 <p_i, p_j> in float64, so that near pairs keep their digits; a P x P x D
    tensor is never made.
    """
    exact = rows.double()
    length = exact.square().sum(1)
    squared = torch.addmm(length[None], exact, exact.T, alpha=-2).add_(length[:, None]).clamp_min_(0)
    squared.fill_diagonal_(0)
    return squared.sqrt_().to(torch.float32)


@torch.no_grad()
def mean_pair_distance(rows: Tensor) -> float:
    """Mean over all pairs i, j (i = j among them, as ProtoPNet logs it after every epoch) of |p_i - p_j|.

    Args:
        rows: (P, D); NaN without rows.
    """
    return float(pair_distances(rows).mean(dtype=torch.float64)) if len(rows) else float("nan")
