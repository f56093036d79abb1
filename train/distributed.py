"""Means over what all processes hold."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shared_mean(total: Tensor, count: Tensor) -> Tensor:
    """``total / count`` such that averaging the gradients of all processes gives that of the global mean.

    Each process holds its own sum and count. Distributed training averages gradients over the W processes, so each
    must return W * own sum / global count. With one process this is the plain mean; 0 when nothing was counted.

    Args:
        total: scalar sum over this process's entries, with graph.
        count: scalar number (or weight) of entries of this process.
    """
    everywhere = count.detach().clone().to(total.dtype)
    world = world_size()
    if world > 1:
        dist.all_reduce(everywhere)
    return total * world / everywhere.clamp_min(torch.finfo(total.dtype).tiny) if everywhere > 0 else total * 0.0


def shared_sum(total: Tensor) -> Tensor:
    """The sum over all processes, for losses that are not linear in it.

    As in :func:`shared_mean`, the gradient of this process's share is multiplied by the W processes, so that averaging
    the gradients of all of them gives that of the loss of the global sum, which each computes alike.

    Args:
        total: (...) this process's sum, with graph.
    """
    world = world_size()
    if world == 1:
        return total
    everywhere = total.detach().clone()
    dist.all_reduce(everywhere)
    return everywhere + (total - total.detach()) * world


def shared_max(own: Tensor) -> Tensor:
    """The largest of what all processes hold, entry by entry, without graph."""
    top = own.detach().clone()
    if world_size() > 1:
        dist.all_reduce(top, dist.ReduceOp.MAX)
    return top
