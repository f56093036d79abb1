"""The images that some quantities are largest on, kept while all images pass by once."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

NOTHING = float("-inf")

FEW = 12
"""Up to this many best images are taken one after the other, more by sorting."""


class Entered(NamedTuple):
    """What images of a batch have entered, (e,) int64 each.

    Attributes:
        which: the quantity.
        slot: its place among the best.
        row: position of the image in the batch.
        column: position of the quantity among those that were offered.
    """

    which: Tensor
    slot: Tensor
    row: Tensor
    column: Tensor


class Strongest:
    """For each of U quantities the k images with the largest values, largest first, in memory that does not grow.

    Ties go to the image with the lower index, so the answer does not depend on the order or the size of the batches.
    What else is to be known of an image (where in it, a map) lies in :attr:`extra` and is moved along; who offers
    images writes it for those that have entered, and computes it for no others.

    Args:
        size: U.
        count: k.
        device: of all tensors.
        dtype: of the values.
        extra: tensors (U, k, ...) by name.

    Attributes:
        value: (U, k), -inf where there are fewer than k images.
        index: (U, k) int64, position of the image in its split; -1 where there is none.
        label: (U, k) int64, class of the image; -1 where there is none.
        extra: (U, k, ...) by name.
    """

    def __init__(
        self, size: int, count: int, device: torch.device, dtype: torch.dtype, extra: dict[str, Tensor] | None = None
    ) -> None:
        self.count = count
        self.value = torch.full((size, count), NOTHING, device=device, dtype=dtype)
        self.index = torch.full((size, count), -1, device=device)
        self.label = torch.full((size, count), -1, device=device)
        self.extra = extra or {}

    def take(self, values: Tensor, index: Tensor, label: Tensor, which: Tensor | None = None) -> Entered:
        """Let images compete.

        Args:
            values: (n, B); -inf = the image is none for this quantity.
            index: (B,) int64, positions of the images.
            label: (B,) int64, their classes.
            which: (n,) int64, the quantities that ``values`` are of; None = all.
        """
        count = self.count
        which = torch.arange(len(self.value), device=values.device) if which is None else which
        values = values.to(self.value.dtype)
        # Only quantities for which an image of this batch may enter are ordered anew.
        mine = ((values >= self.value[which, -1:]) & (values > NOTHING)).any(1).nonzero().squeeze(1)
        if not len(mine):
            return Entered(mine, mine, mine, mine)
        values, entering = values[mine], which[mine]
        best, rows = _best_rows(values, index, count)
        values = torch.cat([self.value[entering], best], 1)
        images = torch.cat([self.index[entering], index[rows]], 1)
        labels = torch.cat([self.label[entering], label[rows]], 1)
        order = _order(values, images)[:, :count]
        new = (order >= count) & (values.gather(1, order) > NOTHING)
        line, slot = new.nonzero().unbind(1)
        row = rows[line, order[line, slot] - count]
        self.value[entering] = values.gather(1, order)
        # An image that is not allowed ranks last, and may not leave its name there.
        nobody = self.value[entering] == NOTHING
        self.index[entering] = images.gather(1, order).masked_fill(nobody, -1)
        self.label[entering] = labels.gather(1, order).masked_fill(nobody, -1)
        for kept in self.extra.values():
            kept[entering] = _picked(kept[entering], order.clamp_max(count - 1))
        return Entered(entering[line], slot, row, mine[line])

    def merge(self) -> Tensor | None:
        """Put together what all processes have seen; all have the same then.

        Returns:
            (U,) the rank of the process that had seen the best image; None where there is one process.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        value, index, label = (torch.cat(from_all(t), 1) for t in (self.value, self.index, self.label))
        order = _order(value, index)[:, : self.count]
        self.value, self.index, self.label = (t.gather(1, order) for t in (value, index, label))
        self.extra = {name: _picked(torch.cat(from_all(kept), 1), order) for name, kept in self.extra.items()}
        return order[:, 0] // self.count


def _picked(kept: Tensor, order: Tensor) -> Tensor:
    """``kept`` (n, k, ...) in the order (n, k') of its second dimension."""
    shape = (*order.shape, *kept.shape[2:])
    return kept.gather(1, order.reshape(*order.shape, *[1] * (kept.dim() - 2)).expand(shape))


def _best_rows(values: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best n = min(count, B) of B images for values (P, B): values and rows, (P, n); ties as promised."""
    by_image = index.argsort(stable=True)
    values = values[:, by_image]
    if count > FEW:
        ordered = values.sort(dim=1, descending=True, stable=True)
        return ordered.values[:, :count], by_image[ordered.indices[:, :count]]
    # A maximum names the first of equal ones; taking a few in turn is much faster than sorting.
    best, rows = [], []
    for _ in range(min(count, values.shape[1])):
        value, row = values.max(1, keepdim=True)
        values.scatter_(1, row, NOTHING)
        best.append(value)
        rows.append(row)
    return torch.cat(best, 1), by_image[torch.cat(rows, 1)]


def _order(values: Tensor, images: Tensor) -> Tensor:
    """(P, n) columns by falling value, equal ones by rising image."""
    by_image = images.argsort(dim=1, stable=True)
    by_value = values.gather(1, by_image).argsort(dim=1, descending=True, stable=True)
    return by_image.gather(1, by_value)


def from_all(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, in the order of their ranks, on the device of this one."""
    # NCCL speaks of graphics memory only, and at the border of a stage the model lies in main memory.
    sent = tensor.cuda() if dist.get_backend() == "nccl" else tensor
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(received, sent.contiguous())
    return [one.to(tensor.device) for one in received]
