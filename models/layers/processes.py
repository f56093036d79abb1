"""Sums over all processes that train together, inside a layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    """Every process gets the sum; the gradient of the sum of all their losses flows back to each share."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        shared: Tensor = _Sum.apply(gradients[0])  # type: ignore[no-untyped-call]
        return shared


def several() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(own: Tensor) -> Tensor:
    """The sum of a tensor over all processes, differentiable any number of times; the tensor itself under one.

    As in synchronised batch normalisation, backward gives the gradient of the *sum* of the processes' losses, so
    averaging parameter gradients over processes gives that of the mean loss.
    """
    if not several():
        return own
    total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
    return total
