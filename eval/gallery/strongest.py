"""The images that units answer to most, found in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.regions import Places
from vitrarium.models.strongest import Strongest


@dataclass
class Answers:
    """For each of U units the k images that it is most active on.

    Attributes:
        best: their activations, positions, classes, and ``extra["map"]`` (U, k, h', w') where units have maps.
        grid: h and w of the map that units look at, or None.
        images: how many images were looked at.
        mean: (U,) mean activation over all of them.
        low: (U,) the smallest.
        high: (U,) the largest.
    """

    best: Strongest
    grid: tuple[int, int] | None
    images: int
    mean: Tensor
    low: Tensor
    high: Tensor

    @property
    def constant(self) -> Tensor:
        """(U,) bool: units that say the same of every image, so that none is one they answer to."""
        return ~(self.high - self.low > 1e-6 * self.high.abs().clamp_min(1e-6))


def strongest_images(model: TransparentClassifier, batches: Iterable[Batch], units: Tensor, count: int) -> Answers:
    """Look at all images once, in evaluation mode; memory does not grow with their number.

    Args:
        model: any classifier.
        batches: clean images; without ``index`` they are counted from 0.
        units: (U,) int64, the units to look at.
        count: k.

    Raises:
        UserError: no images, activations that are not numbers.
    """
    device = model.evidence.alive.device
    units = units.to(device)
    best = Strongest(len(units), count, device, torch.float32)
    total = torch.zeros(len(units), dtype=torch.float64, device=device)
    low, high = best.value.new_full((len(units),), float("inf")), best.value.new_full((len(units),), float("-inf"))
    seen, grid = 0, None
    with evaluating(model):
        for batch in batches:
            index = torch.arange(seen, seen + len(batch)) if batch.index is None else batch.index
            seen, batch = seen + len(batch), batch.to(device)
            features = model.look(batch)
            evidence = model.observe(features)
            values = evidence.activations[:, units].float().T
            if bool(values.isnan().any()):
                raise UserError(
                    "activations are not numbers: a weight of the model is not finite",
                    "go back to a checkpoint before training diverged, or lower train.lr",
                )
            total += values.sum(1, dtype=torch.float64)
            low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
            places, maps = Places.of(evidence, features), evidence.maps
            if maps is not None and places is not None and "map" not in best.extra:
                grid, best.extra["map"] = places.grid, best.value.new_zeros(len(units), count, *places.size)
            entered = best.take(values, index.to(device), batch.label)
            if maps is not None:
                best.extra["map"][entered.which, entered.slot] = maps[entered.row, units[entered.column]].float()
    if not seen:
        raise UserError("there are no images to show", "choose another split")
    return Answers(best, grid, seen, (total / seen).float(), low, high)
