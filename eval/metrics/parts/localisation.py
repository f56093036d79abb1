"""Whether a unit looks at the object at all."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.parts.base import UnitMetric
from vitrarium.eval.metrics.parts.places import STRETCHED, segment_shares
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout

Way = Literal["energy", "top", "pointing"]
WAYS: dict[Way, str] = {
    "energy": "share of the map inside, counted from its weakest cell",
    "top": "share of the strongest pixels inside",
    "pointing": "whether the strongest pixel is inside",
}


@METRICS.register("part_localisation")
class PartLocalisation(UnitMetric):
    """How much of a unit's map falls on the segment of an image, over its images, then over units.

    The segment is the union of the part masks, or the human map above 1/2 where there are none. Three ways (``way``),
    see :func:`~vitrarium.eval.metrics.parts.places.segment_shares`: the first two are the relevance analysis of CaBRNet
    (Xu-Darme et al., 2023), the last is the pointing game (Zhang et al., ECCV 2016). Images without a segment are left
    out. Held against the share of the image that the segments cover, a number says how much better than chance a unit
    points.

    Args:
        classes: C.
        concepts: unused.
        units: the M units.
        parts: Q.
        way: "energy", "top" or "pointing".
        images: "own" or "top", see :class:`~vitrarium.eval.metrics.parts.base.UnitMetric`.
        top: images that judge a unit by activation.
        pixels: share of the strongest pixels that "top" takes.
    """

    fields = ("maps", "activations", "label", "part_masks or human_map")

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, units: UnitLayout | None = None, parts: int = 0,
        way: Way = "energy", images: Literal["own", "top"] = "own", top: int = 50,
        pixels: float = 0.05,
    ) -> None:  # fmt: skip
        # Of each image: the three shares, what a map without any aim would have, and 1.
        super().__init__(classes, concepts, units, parts, images, top, 5)
        if way not in WAYS:
            raise UserError(f"part_localisation cannot be measured by '{way}'", closest(way, WAYS))
        if not 0 < pixels <= 1:
            raise UserError(f"part_localisation with pixels={pixels}", "give a share in (0, 1]")
        self.way, self.pixels = way, pixels

    @property
    def choices(self) -> dict[str, Any]:
        """What is counted, and what chance would give."""
        covered = self.ratio(self.totals(), 3).nanmean()
        return {
            **super().choices, "map": STRETCHED, "counted_pixels": WAYS[self.way], "top_pixels": self.pixels,
            "by_chance": round(float(covered), 6),
        }  # fmt: skip

    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """(n, 5); all 0 for an image without a segment."""
        if sight.segments is None:
            return torch.zeros(len(which), 5, dtype=torch.float64)
        shares = segment_shares(sight.maps[which, units], sight.segments, which, self.pixels)
        covered = sight.segments.float().mean((1, 2))[which]
        rows = torch.cat([shares, covered[:, None], torch.ones_like(covered)[:, None]], 1)
        return rows.masked_fill(covered[:, None] == 0, 0.0).double()

    def of_rows(self, sums: Tensor) -> Tensor:
        """The mean of each unit."""
        return self.ratio(sums, list(WAYS).index(self.way))

    def ratio(self, sums: Tensor, column: int) -> Tensor:
        """(M,) mean of a column over the images that were counted."""
        counted = sums[:, 4]
        return torch.where(counted > 0, sums[:, column] / counted.clamp_min(1), float("nan"))
