"""Whether a unit looks at one and the same part: consistency and purity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.parts.annotation import RULES, merged_sides
from vitrarium.eval.metrics.parts.base import UnitMetric
from vitrarium.eval.metrics.parts.places import PAPER_SIZE, STRETCHED, strongest_places
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout


def half_box(side: float, size: tuple[int, int]) -> Tensor:
    """(2,) half of a box of ``side`` pixels at 224 in an image of another size (H, W)."""
    return torch.tensor([side / 2 * length / PAPER_SIZE for length in size])


def part_shares(sums: Tensor) -> Tensor:
    """Images with a part inside and with it visible (M, 2 Q) to the share of each part (M, Q), NaN if never seen."""
    inside, seen = sums.chunk(2, 1)
    return torch.where(seen > 0, inside / seen.clamp_min(1), torch.full_like(seen, float("nan")))


def largest(shares: Tensor) -> Tensor:
    """(M, Q) to the largest of each row, (M,); NaN if all are."""
    best = shares.nan_to_num(-1.0).amax(1)
    return best.masked_fill(best < 0, float("nan"))


@METRICS.register("consistency")
class Consistency(UnitMetric):
    """Share of units that look at the same part in most images (Huang et al., ICCV 2023).

    Around the strongest pixel of a unit's stretched map lies a box of +-36 pixels (at 224); a part counts if it is
    inside. Over the images of the unit, and for each part over those of them in which it is visible, that is averaged;
    a unit whose largest mean is at least ``threshold`` is consistent.

    Args:
        classes: C.
        concepts: unused.
        units: the M units.
        parts: Q.
        images: "own" as in the paper, where every prototype belongs to a class; "top" for all units alike.
        top: images that judge a unit by activation.
        box: side of the box in pixels at 224.
        threshold: of the largest mean, in (0, 1].
    """

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, units: UnitLayout | None = None, parts: int = 0,
        images: Literal["own", "top"] = "own", top: int = 50, box: float = 72, threshold: float = 0.8,
    ) -> None:  # fmt: skip
        super().__init__(classes, concepts, units, parts, images, top, 2 * parts)
        if not 0 < threshold <= 1 or not box > 0:
            raise UserError(f"consistency with threshold={threshold}, box={box}", "0 < threshold <= 1 and box > 0")
        self.threshold, self.box = threshold, box

    @property
    def choices(self) -> dict[str, Any]:
        """The box, the rule and the threshold."""
        box = f"{self.box:g} px at {PAPER_SIZE} around the strongest pixel, cut at the border"
        return {
            **super().choices, "map": STRETCHED, "box": box, "inside": RULES, "threshold": self.threshold,
            "flat_map": "no part",
        }  # fmt: skip

    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """Parts inside, parts visible: (n, 2 Q)."""
        half = half_box(self.box, sight.marks.size)
        inside = sight.marks.inside(which, sight.peaks(which, units), half)
        return torch.cat([inside, sight.marks.seen[which]], 1).double()

    def of_rows(self, sums: Tensor) -> Tensor:
        """1 for a consistent unit, 0 for another."""
        best = largest(part_shares(sums))
        return torch.where(torch.isnan(best), best, (best >= self.threshold).to(best))


@METRICS.register("purity")
class Purity(UnitMetric):
    """How purely a unit stands for one part (PIP-Net: Nauta et al., CVPR 2023).

    In each of the ``top`` images that activate a unit most, a patch of 32 pixels (at 224) lies around the strongest
    place of its map. Of each part: the share of these images in which it is in the patch, among those in which it is
    visible. The purity of a unit is the largest share; the metric is the mean over units.

    Args:
        classes: C.
        concepts: unused.
        units: the M units.
        parts: Q.
        part_names: of the Q parts, by which left and right ones are merged.
        top: images of each unit.
        patch: side of the patch in pixels at 224.
        merge: take parts that differ in "left" and "right" alone as one, as the paper does: it is visible, or in the
            patch, where one of the two is.
    """

    groups: Tensor

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, units: UnitLayout | None = None, parts: int = 0,
        part_names: Sequence[str] = (), top: int = 10, patch: float = 32, merge: bool = True,
    ) -> None:  # fmt: skip
        groups = merged_sides(part_names if merge else (), parts)
        super().__init__(classes, concepts, units, parts, "top", top, 2 * groups.shape[1])
        if not patch > 0:
            raise UserError(f"purity with patch={patch}", "give the side of a patch in pixels at 224")
        self.patch = patch
        self.register_buffer("groups", groups, persistent=False)

    @property
    def choices(self) -> dict[str, Any]:
        """The patch, the rule and what was merged; the spread over units."""
        values = self.each()
        judged = values[~values.isnan()]
        patch = f"{self.patch:g} px at {PAPER_SIZE} around the strongest place of the map, moved into the image"
        return {
            **super().choices, "patch": patch, "inside": RULES, "flat_map": "no part",
            "parts": self.groups.shape[1], "merged": int(self.parts - self.groups.shape[1]),
            "sd": round(float(judged.std(correction=0)), 6) if len(judged) else None,
        }  # fmt: skip

    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """Parts in the patch, parts visible: (n, 2 G)."""
        size, half = sight.marks.size, half_box(self.patch, sight.marks.size)
        centres = strongest_places(sight.maps[which, units], size)
        limit = torch.tensor(size, device=centres.device)
        # A patch that would stick out is moved inside; NaN stays.
        low, high = half.to(centres) - 0.5, limit - 0.5 - half.to(centres)
        inside = sight.marks.inside(which, torch.minimum(torch.maximum(centres, low), high), half)
        groups = self.groups.to(inside.device, torch.float32)
        merged = [part.float() @ groups > 0 for part in (inside, sight.marks.seen[which])]
        return torch.cat(merged, 1).double()

    def of_rows(self, sums: Tensor) -> Tensor:
        """The largest share of each unit."""
        return largest(part_shares(sums))
