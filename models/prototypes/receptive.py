"""Which pixels a place of the similarity map can see: the true receptive field, found by trying."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.layer import PrototypeLayer

AT_ONCE = 32
"""Images in a batch."""


class ReceptiveField(NamedTuple):
    """The pixels that each place of a map sees: rows top to bottom - 1, columns left to right - 1.

    Attributes:
        top: (h',) int64.
        bottom: (h',) int64, exclusive.
        left: (w',) int64.
        right: (w',) int64, exclusive.
        size: height and width of the image in pixels.
    """

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor
    size: tuple[int, int]

    def boxes(self, places: Tensor) -> Tensor:
        """Of places (n, 2) int64, row and column, the fields (n, 4) in [0, 1]: left, top, right, bottom."""
        row, column = places.cpu().unbind(1)
        height, width = self.size
        edges = (self.left[column] / width, self.top[row] / height, self.right[column] / width)
        return torch.stack([*edges, self.bottom[row] / height], 1).float()


_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], ReceptiveField]] = WeakKeyDictionary()


def receptive_field(model: TransparentClassifier, size: int | tuple[int, int]) -> ReceptiveField:
    """The receptive field of every place of the similarity map, for any backbone.

    An image is not a number (NaN) from some column on: places of the map that become NaN see that column or one to the
    right of it. NaN goes through convolutions, norms, poolings and activations whatever the weights are, so the field
    is the one that the architecture allows, and exact; what mixes all places (attention, group norm, squeeze and
    excitation) sees the whole image, which is true. Fields are searched by halving on a copy in main memory, because
    some convolutions on graphics cards work on tiles and spread NaN over them. Evidence may look at k x k places of the
    latent map; these are joined. Evidence whose parts move may look anywhere: its field is the whole image.

    Args:
        model: its evidence is a :class:`PrototypeLayer`.
        size: height and width of the image in pixels.

    Returns:
        The field; computed once per model and size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    layer = model.evidence
    if not isinstance(layer, PrototypeLayer):
        raise UserError(f"{type(layer).__name__} has no similarity maps", "choose evidence with prototypes")
    known = _KNOWN.setdefault(model, {})
    key = (height, width, layer.part, str(model.backbone), str(layer))
    if key not in known:
        copied = copy.deepcopy(nn.ModuleList([model.backbone, layer])).cpu().float()
        with evaluating(copied):
            backbone, embedding = copied
            known[key] = _joined(
                _of_latent(lambda x: embedding.embed(backbone(x)), height, width, model.backbone.in_channels),  # type: ignore[operator]
                layer.window,
            )
            if layer.wanders:
                known[key] = _whole(known[key])
    return known[key]


def _of_latent(run: Callable[[Tensor], Tensor], height: int, width: int, channels: int) -> ReceptiveField:
    """The field of every place of the latent map that ``run`` gives (n, E, h, w) for images."""
    image = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))

    def blind(edge: int, axis: int, flipped: bool) -> Tensor:
        changed = image.clone()
        side = slice(None, edge + 1) if flipped else slice(edge, None)
        changed[(slice(None), side) if axis == 1 else (slice(None), slice(None), side)] = float("nan")
        return changed

    def reached(edges: list[int], axis: int, flipped: bool) -> Tensor:
        """(edges, places) bool: which places along ``axis`` see anything on the blind side of each edge."""
        seen = []
        for start in range(0, len(edges), AT_ONCE):
            images = torch.stack([blind(edge, axis, flipped) for edge in edges[start : start + AT_ONCE]])
            # A NaN anywhere across the map, in any channel: a field is a product of rows and columns.
            seen.append(run(images).isnan().any(1).any(2 if axis == 1 else 1))
        return torch.cat(seen)

    bottom = _last(lambda edges: reached(edges, 1, False), height) + 1
    right = _last(lambda edges: reached(edges, 2, False), width) + 1
    top = height - 1 - _last(lambda edges: reached([height - 1 - e for e in edges], 1, True), height)
    left = width - 1 - _last(lambda edges: reached([width - 1 - e for e in edges], 2, True), width)
    return ReceptiveField(top, bottom, left, right, (height, width))


def _last(reached: Callable[[list[int]], Tensor], length: int) -> Tensor:
    """(places,) the last edge in 0 .. length - 1 that each place reaches, all places halving at once.

    Raises:
        UserError: a place that sees no pixel at all.
    """
    ends = reached([0, length - 1])
    if not bool(ends[0].all()):
        raise UserError(
            "the receptive field cannot be measured: numbers that are none do not come through this backbone",
            "a layer of it replaces NaN (torch.nan_to_num, for one); take that out",
        )
    low = torch.where(ends[1], length - 1, 0)
    high = torch.full_like(low, length - 1)
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        edges = sorted(set(middle[low < high].tolist()))
        seen = reached(edges)
        here = seen[torch.searchsorted(torch.tensor(edges), middle).clamp_max(len(edges) - 1), torch.arange(len(low))]
        open_ = low < high
        low, high = torch.where(open_ & here, middle, low), torch.where(open_ & ~here, middle - 1, high)
    return low


def _whole(field: ReceptiveField) -> ReceptiveField:
    """The field of as many places that all see the whole image."""
    height, width = field.size
    rows, columns = torch.zeros_like(field.top), torch.zeros_like(field.left)
    return ReceptiveField(rows, rows + height, columns, columns + width, field.size)


def _joined(field: ReceptiveField, part: int) -> ReceptiveField:
    """The field of ``part`` x ``part`` neighbouring places, by the first of them."""
    rows, columns = len(field.top) - part + 1, len(field.left) - part + 1
    return ReceptiveField(
        field.top.unfold(0, part, 1)[:rows].amin(1),
        field.bottom.unfold(0, part, 1)[:rows].amax(1),
        field.left.unfold(0, part, 1)[:columns].amin(1),
        field.right.unfold(0, part, 1)[:columns].amax(1),
        field.size,
    )
