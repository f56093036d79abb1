"""Whether the region a unit responds in is one part of the object."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.parts.agreement import largest, part_shares
from vitrarium.eval.metrics.parts.base import UnitMetric
from vitrarium.eval.metrics.parts.places import STRETCHED, region_overlaps
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout


@METRICS.register("part_interpretability")
class PartInterpretability(UnitMetric):
    """Share of images in which the region of a unit is the mask of one and the same part (Zhang et al., CVPR 2018).

    The region is all pixels where the unit's stretched map, counted from its weakest cell, is at least ``level`` of its
    strongest pixel. A part counts in an image if region and mask have an intersection over union above ``overlap``. Of
    each part the share of the images in which it is visible; the largest share is the unit's, and the metric is the
    mean over units.

    The paper cuts the region at the 0.5 % quantile of a unit's activations over all images (Bau et al., CVPR 2017) and
    enlarges it to receptive fields. Here each image has its own threshold: nothing needs to be seen twice, and a unit
    is judged by the shape of its map whatever its strength. A map that is the same everywhere has no region, and counts
    as no part. Data with keypoints alone have no masks, and the metric no value.

    Args:
        classes: C.
        concepts: unused.
        units: the M units.
        parts: Q.
        images: "own" or "top", see :class:`~vitrarium.eval.metrics.parts.base.UnitMetric`.
        top: images that judge a unit by activation.
        level: of the strongest pixel, in (0, 1).
        overlap: intersection over union that is to be exceeded, in [0, 1).
    """

    fields = ("maps", "activations", "label", "part_masks")

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, units: UnitLayout | None = None, parts: int = 0,
        images: Literal["own", "top"] = "own", top: int = 50, level: float = 0.5, overlap: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(classes, concepts, units, parts, images, top, 2 * parts)
        if not 0 < level < 1 or not 0 <= overlap < 1:
            raise UserError(
                f"part_interpretability with level={level}, overlap={overlap}",
                "give a level in (0, 1) and an overlap in [0, 1)",
            )
        self.level, self.overlap = level, overlap

    @property
    def choices(self) -> dict[str, Any]:
        """The region and the rule."""
        return {
            **super().choices, "map": STRETCHED, "flat_map": "no part",
            "region": f"pixels with {self.level:g} of the strongest one in the image, counted from the weakest cell",
            "counts": f"intersection over union above {self.overlap:g}",
        }  # fmt: skip

    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """Parts that are the region, parts visible: (n, 2 Q); all 0 without masks."""
        masks = sight.marks.masks
        if masks is None:
            return torch.zeros(len(which), 2 * self.parts, dtype=torch.float64)
        found = region_overlaps(sight.maps[which, units], masks, which, self.level) > self.overlap
        return torch.cat([found, sight.marks.seen[which]], 1).double()

    def of_rows(self, sums: Tensor) -> Tensor:
        """The largest share of each unit."""
        return largest(part_shares(sums))
