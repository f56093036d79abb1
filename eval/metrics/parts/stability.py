"""Whether a unit still looks at the same parts when the image is a little noisy."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.parts.agreement import half_box
from vitrarium.eval.metrics.parts.annotation import RULES
from vitrarium.eval.metrics.parts.base import UnitMetric
from vitrarium.eval.metrics.parts.places import PAPER_SIZE, STRETCHED
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout
from vitrarium.models.prototypes.measures import noise_of
from vitrarium.models.types import Output

SD, BOUND = 0.2, 0.25


def noisy(images: Tensor, index: Tensor, std: Tensor, seed: int = 0) -> Tensor:
    """Images with noise as Huang et al. (ICCV 2023) add it to the normalised image: N(0, 0.2), cut at +-0.25.

    In pixels that is ``std`` times as much. As in the release, nothing is clipped afterwards. The noise of an image
    depends on its position in the split and the seed alone, not on the batch that it comes in.

    Args:
        images: (B, C, H, W).
        index: (B,) int64, position in the split.
        std: (C,) by which the backbone divides pixels.
        seed: of the noise, at least 0.
    """
    noise = noise_of(images, index, seed) * SD
    return images + noise.clamp(-BOUND, BOUND) * std.to(images)[:, None, None]


@METRICS.register("stability")
class Stability(UnitMetric):
    """Share of images in which a unit looks at the same parts with and without noise (Huang et al., ICCV 2023).

    Which parts is decided as by :class:`~vitrarium.eval.metrics.parts.agreement.Consistency`; the vectors of all parts
    must be equal (a unit that looks at no part both times is equal, as in the paper). Averaged over the images of a
    unit, then over units. It is updated with what the same units say of the same images under :func:`noisy`.

    Args:
        classes: C.
        concepts: unused.
        units: the M units.
        parts: Q.
        images: "own" or "top", see :class:`~vitrarium.eval.metrics.parts.base.UnitMetric`.
        top: images that judge a unit by activation (without noise).
        box: side of the box in pixels at 224.
        seed: of the noise; recorded, the noise comes from outside.
    """

    fields = ("maps", "activations", "label", "part_masks or keypoints", "maps under noise")
    category = "stability"

    def __init__(
        self, classes: int, concepts: ConceptSet | None = None, units: UnitLayout | None = None, parts: int = 0,
        images: Literal["own", "top"] = "own", top: int = 50, box: float = 72, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(classes, concepts, units, parts, images, top, 2)
        self.box, self.seed = box, seed
        self._noisy: Sighting | None = None

    @property
    def choices(self) -> dict[str, Any]:
        """Noise, box and rule."""
        return {
            **super().choices, "noise": f"N(0, {SD:g}) cut at +-{BOUND:g}, times the backbone's std", "seed": self.seed,
            "map": STRETCHED, "box": f"{self.box:g} px at {PAPER_SIZE} around the strongest pixel, cut at the border",
            "inside": RULES, "no_part_twice": "equal",
        }  # fmt: skip

    def update_output(self, output: Output, batch: Any) -> bool:
        """Nothing can be added without the answer to noisy images: always False; use :meth:`update`."""
        return False

    def update(self, sight: Sighting, under_noise: Sighting) -> None:  # type: ignore[override]
        """Add a batch: what units say of the images, and of the noisy ones."""
        self._noisy = under_noise
        super().update(sight)
        self._noisy = None

    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """Whether the parts are the same, and 1: (n, 2)."""
        assert self._noisy is not None
        half = half_box(self.box, sight.marks.size)
        before = sight.marks.inside(which, sight.peaks(which, units), half)
        after = sight.marks.inside(which, self._noisy.peaks(which, units), half)
        same = (before == after).all(1)
        return torch.stack([same, torch.ones_like(same)], 1).double()

    def of_rows(self, sums: Tensor) -> Tensor:
        """The share of each unit."""
        return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp_min(1), float("nan"))
