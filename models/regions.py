"""Boxes in an image as places of a unit map."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.corrections import Box
from vitrarium.models.types import Evidence, Features


class Places(NamedTuple):
    """The places of the unit maps of an image.

    Attributes:
        size: h' and w' of the unit maps.
        grid: h and w of the map that the evidence looks at; larger than ``size`` where a unit covers k x k places of it
            and has no place where it would stick out.
    """

    size: tuple[int, int]
    grid: tuple[int, int]

    @staticmethod
    def of(evidence: Evidence, features: Features) -> Places | None:
        """Of what a model has seen; None for evidence without maps."""
        if evidence.maps is None:
            return None
        height, width = evidence.maps.shape[-2:]
        return Places((height, width), (features.map.shape[-2], features.map.shape[-1]))

    def centres(self) -> tuple[Tensor, Tensor]:
        """Where the places have their middle in the image: rows (h',) and columns (w',), float64 in (0, 1).

        Place i of h' along a side of h has it at (i + 1/2 + (h - h') / 2) / h.
        """
        rows, columns = (
            (torch.arange(count, dtype=torch.float64) + 0.5 + (cells - count) / 2) / cells
            for count, cells in zip(self.size, self.grid, strict=True)
        )
        return rows, columns

    def allowed(self, banned: Iterable[Box]) -> Tensor:
        """(h', w') float32, 0 where a place has its middle in one of the boxes, else 1.

        The rule is about places of the map, not about pixels: a place outside a box still sees into it, as far as its
        receptive field goes.

        Raises:
            UserError: a box so small that no place has its middle in it.
        """
        rows, columns = self.centres()
        region = torch.ones(self.size)
        for left, top, right, bottom in banned:
            inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
            if not bool(inside.any()):
                (down, across), (height, width) = self.grid, self.size
                raise UserError(
                    f"the box {left:g},{top:g},{right:g},{bottom:g} holds the middle of none of the {height} x {width} "
                    "places where units look, so it would ban nothing",
                    f"give a larger box: a place is {1 / across:.2g} wide and {1 / down:.2g} high",
                )
            region[inside] = 0.0
        return region
