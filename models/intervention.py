"""Interventions: what a person (or a training recipe) sets, as pure tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError

if TYPE_CHECKING:
    from vitrarium.data.corrections import Corrections
    from vitrarium.models.regions import Places
    from vitrarium.models.units import UnitTable


@dataclass
class Intervention:
    """Which units are set, to what, and where.

    Attributes:
        mask: (B, M) bool, True where a unit is set.
        values: (B, M) the activation it is set to; ignored where ``mask`` is False.
        region: (B, M, h, w) or (B, 1, h, w) float in [0, 1] at the resolution of the unit maps: the part of the
            image a unit may look at (0 = banned), or None.

    On a unit with a map, a value means an additive shift of the map that makes the reduced activation equal it.
    ``mask`` and ``values`` may be narrower than M: units beyond them are left alone.
    """

    mask: Tensor
    values: Tensor
    region: Tensor | None = None

    def apply(self, activations: Tensor) -> Tensor:
        """``activations`` (B, M) with the set units replaced."""
        whole = self.widened(activations.shape[1])
        return torch.where(whole.mask, whole.values.to(activations), activations)

    def widened(self, units: int) -> Intervention:
        """The same intervention on a table of ``units``, those beyond its own left alone."""
        missing = units - self.mask.shape[1]
        if missing <= 0:
            return self
        pad = torch.nn.functional.pad
        return Intervention(pad(self.mask, (0, missing)), pad(self.values, (0, missing)), self.region)

    def to(self, device: torch.device | str) -> Intervention:
        """The intervention on another device."""
        region = None if self.region is None else self.region.to(device)
        return Intervention(self.mask.to(device), self.values.to(device), region)

    def __getitem__(self, rows: Any) -> Intervention:
        return Intervention(self.mask[rows], self.values[rows], None if self.region is None else self.region[rows])


def set_units(units: UnitTable, truth: Tensor, mask: Tensor) -> Intervention:
    """The intervention that gives units the values which stand for a known truth.

    Args:
        units: the unit table; its ``absent`` and ``present`` values translate truth into activations:
            value = absent + truth (present - absent).
        truth: (B, M) in [0, 1]; NaN = nobody knows, such a unit is left alone.
        mask: (B, M) bool, the units to correct.
    """
    known = ~torch.isnan(truth)
    absent, present = units.absent.to(truth), units.present.to(truth)
    values = absent + truth.nan_to_num(0.0) * (present - absent)
    # What is wholly absent or present needs only that one value; the other may be unknown.
    values = torch.where(truth == 0, absent, torch.where(truth == 1, present, values))
    return Intervention(mask & known, values)


def from_corrections(
    units: UnitTable, given: Corrections, batch: int = 1, places: Places | None = None
) -> Intervention:
    """What :meth:`EvidenceLayer.read_corrections` has understood, as an intervention on every row of a batch.

    Args:
        units: the unit table.
        given: what is set and banned.
        batch: B.
        places: where units look; needed where a place is banned.

    Raises:
        UserError: a ban without ``places``, a box that bans nothing.
    """
    count = len(units)
    truth = torch.full((1, count), float("nan"))
    for unit, value in given.values.items():
        truth[0, unit] = value
    made = set_units(units, truth.to(units.absent.device), ~torch.isnan(truth).to(units.absent.device))
    for unit, score in given.scores.items():
        made.mask[0, unit], made.values[0, unit] = True, score
    region = _region(units, given, places)
    return Intervention(
        made.mask.expand(batch, -1),
        made.values.expand(batch, -1),
        None if region is None else region.to(made.values).expand(batch, -1, -1, -1),
    )


def _region(units: UnitTable, given: Corrections, places: Places | None) -> Tensor | None:
    """(1, 1 or M, h', w') where units may look, 0 = banned; None if they may look everywhere."""
    if not given.confines:
        return None
    if places is None:
        raise UserError(
            "a place is banned, and where units look is known only when the model has seen an image",
            "give places=Places.of(evidence, features), or let predict do it",
        )
    region = places.allowed(given.everywhere)[None, None]
    if given.bans:
        region = region.repeat(1, len(units), 1, 1)
        for unit, boxes in given.bans.items():
            region[0, unit] *= places.allowed(boxes)
    return region
