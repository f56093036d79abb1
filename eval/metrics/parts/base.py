"""What metrics of units share: each image adds a row of numbers to each unit that is judged by it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import Metric
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout
from vitrarium.eval.records import Category
from vitrarium.models.types import Output

IMAGES = ("own", "top")


class UnitMetric(Metric):
    """A metric that judges each unit by some images and averages over the units in use.

    By which images: with ``images="own"`` a unit that belongs to classes is judged by all images of these; one that is
    shared has no class and is judged by the ``top`` images that activate it most, as all units are with
    ``images="top"``. Each image adds a row of J numbers; the rows of the classes are summed as they come, those of the
    most active images are kept with activation and index, so that a better image can take the place of a worse one.
    The state has a fixed size, and several processes agree exactly with one: ties go to the image that comes first in
    the split.

    Args:
        classes: C.
        concepts: unused; every streaming metric is offered them.
        units: the M units.
        parts: number Q of parts.
        images: "own" or "top".
        top: how many images judge a unit that is judged by its most active ones.
        width: J.
    """

    fields: ClassVar[tuple[str, ...]] = ("maps", "activations", "label", "part_masks or keypoints")
    category: ClassVar[Category] = "alignment"
    higher_is_better = True
    sums: Tensor
    best: Tensor

    def __init__(
        self, classes: int, concepts: ConceptSet | None, units: UnitLayout | None, parts: int, images: str, top: int,
        width: int,
    ) -> None:  # fmt: skip
        super().__init__(classes, concepts)
        if units is None or parts < 1:
            raise UserError(
                f"metric '{type(self).__name__}' needs units with maps and a data set with keypoints or part masks",
                "choose a model and a data set that have them",
            )
        if images not in IMAGES:
            raise UserError(f"a metric of units cannot be judged by images '{images}'", closest(images, IMAGES))
        if top < 1:
            raise UserError(f"top={top}", "judge a unit by at least 1 image")
        self.units, self.parts, self.images, self.top = units, parts, images, top
        self.topped = units.used & (units.shared if images == "own" else torch.ones_like(units.used))
        self.owned = units.used & ~self.topped
        self.add_state("sums", torch.zeros(len(units), width, dtype=torch.float64), dist_reduce_fx="sum")
        # Activation and index of an image, then its row.
        empty = torch.zeros(len(units), top if bool(self.topped.any()) else 0, 2 + width, dtype=torch.float64)
        empty[:, :, 0] = float("-inf")
        self.add_state("best", empty, dist_reduce_fx=merge_best)

    @property
    def choices(self) -> dict[str, Any]:
        """By which images a unit is judged, and which units count."""
        top = f"the {self.top} that activate a unit most"
        chosen = {"own": f"those of a unit's own classes; for shared units {top}", "top": top}[self.images]
        return {"images": chosen, "units": "alive and used by the readout", "counted": int(self.units.used.sum())}

    @abstractmethod
    def rows(self, sight: Sighting, which: Tensor, units: Tensor) -> Tensor:
        """What images add to units: (n, J) for the pairs of image ``which`` (n,) and unit ``units`` (n,)."""

    @abstractmethod
    def of_rows(self, sums: Tensor) -> Tensor:
        """Summed rows (M, J) to the value of each unit (M,), NaN where nothing was judged."""

    def update_output(self, output: Output, batch: Batch) -> bool:
        """Add a batch; False where the model has no maps or the data no parts."""
        sight = Sighting.of(output.evidence, batch)
        if sight is None:
            return False
        self.update(sight)
        return True

    def update(self, sight: Sighting) -> None:
        """Add what a batch shows."""
        at = sight.maps.device
        judged = self.units.owners.to(at)[:, sight.label].T & self.owned.to(at)
        which, units = judged.nonzero(as_tuple=True)
        if len(which):
            rows = self.rows(sight, which, units).to(self.sums)
            self.sums = self.sums.index_add(0, units.to(self.sums.device), rows)
        if self.best.shape[1]:
            self._update_best(sight)

    def _update_best(self, sight: Sighting) -> None:
        """Let the images of a batch take the places of less active ones."""
        count, home = len(sight.label), self.best.device
        activation, index = sight.activations.to(home, torch.float64), sight.index.to(home, torch.float64)
        worst = self.best[:, -1]
        better = activation > worst[:, 0]
        better |= (activation == worst[:, 0]) & (index[:, None] < worst[:, 1])
        which, units = (better & self.topped.to(home)).nonzero(as_tuple=True)
        if not len(which):
            return
        new = self.best.new_zeros(len(self.best), count, self.best.shape[2])
        new[:, :, 0] = float("-inf")
        new[units, which, 0], new[units, which, 1] = activation[which, units], index[which]
        at = sight.maps.device
        new[units, which, 2:] = self.rows(sight, which.to(at), units.to(at)).to(new)
        self.best = keep_best(torch.cat([self.best, new], 1), self.top)

    def totals(self) -> Tensor:
        """(M, J) float64: the rows of the images that each unit is judged by, summed; 0 for a unit out of use."""
        kept = (self.best[:, :, 0] > float("-inf"))[:, :, None]
        best = self.best[:, :, 2:].masked_fill(~kept, 0.0).sum(1)
        return torch.where(self.topped.to(best.device)[:, None], best, self.sums)

    def each(self) -> Tensor:
        """(M,) float64 the value of each unit; NaN for one that is not in use or was not judged."""
        values = self.of_rows(self.totals())
        return values.masked_fill(~self.units.used.to(values.device), float("nan"))

    def compute(self) -> Tensor:
        """The mean over the units that were judged."""
        return self.each().nanmean()


def keep_best(rows: Tensor, count: int) -> Tensor:
    """Of rows that begin with activation and index the most active, equal ones in the order of the index.

    Args:
        rows: (M, n, 2 + J).
        count: at most n.

    Returns:
        (M, count, 2 + J).
    """
    by_index = rows[:, :, 1].argsort(dim=1, stable=True)
    activation = rows[:, :, 0].gather(1, by_index)
    order = by_index.gather(1, activation.argsort(dim=1, descending=True, stable=True))[:, :count]
    return rows.gather(1, order[:, :, None].expand(-1, -1, rows.shape[2]))


def merge_best(states: Tensor) -> Tensor:
    """The states (W, M, k, 2 + J) of W processes as one."""
    return keep_best(states.transpose(0, 1).flatten(1, 2), states.shape[2])
