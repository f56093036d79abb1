"""Whether the place a unit looks at keeps its distance from the parts of the object."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.parts.base import UnitMetric
from vitrarium.eval.metrics.parts.places import STRETCHED
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout


@METRICS.register("location_instability")
class LocationInstability(UnitMetric):
    """How much the distance between a unit's place and a part varies from image to image (Zhang et al., CVPR 2018).

    A unit that stands for a part is always as far from it, and from the other parts in much the same pose:

        d = |place of the part - strongest pixel of the unit's stretched map| / diagonal of the image
        instability = standard deviation of d over images, mean over parts, mean over units

    The place of a part is its keypoint, or the middle of its mask. Of each part the images count in which it is
    visible; a map that is the same everywhere has no place, and its image is left out. A part seen in fewer than two
    images is left out, as is a unit without any part. 0 is perfect; the scale is that of the image, so models whose
    maps are equally fine can be compared. The standard deviation divides by the number of images.

    Args:
        classes: C.
        concepts: unused.
        units: the M units.
        parts: Q.
        images: "own" or "top", see :class:`~vitrarium.eval.metrics.parts.base.UnitMetric`.
        top: images that judge a unit by activation.
    """

    category = "stability"
    higher_is_better = False

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, units: UnitLayout | None = None, parts: int = 0,
        images: Literal["own", "top"] = "own", top: int = 50,
    ) -> None:  # fmt: skip
        # Of each part: the distance, its square, and 1.
        super().__init__(classes, concepts, units, parts, images, top, 3 * parts)

    @property
    def choices(self) -> dict[str, Any]:
        """What is measured, and where parts are."""
        return {
            **super().choices, "map": STRETCHED, "unit_place": "the strongest pixel",
            "part_place": "the keypoint, or the middle of the mask", "flat_map": "left out",
            "scale": "diagonal of the image",
        }  # fmt: skip

    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """Distances, squares and counts: (n, 3 Q); 0 where a part is not visible or a map is flat."""
        peaks = sight.peaks(which, units).double()
        height, width = sight.marks.size
        away = (sight.marks.places()[which].double() - peaks[:, None]).norm(dim=2) / (height**2 + width**2) ** 0.5
        counts = sight.marks.seen[which] & ~torch.isnan(peaks[:, :1])
        away = away.masked_fill(~counts, 0.0)
        return torch.cat([away, away.square(), counts.double()], 1)

    def of_rows(self, sums: Tensor) -> Tensor:
        """The mean over parts of each unit."""
        distance, square, count = sums.chunk(3, 1)
        mean = distance / count.clamp_min(1)
        deviation = (square / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
        return deviation.masked_fill(count < 2, float("nan")).nanmean(1)
