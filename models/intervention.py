"""Interventions: what a person (or a training recipe) sets, as pure tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
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
    """

    mask: Tensor
    values: Tensor
    region: Tensor | None = None

    def apply(self, activations: Tensor) -> Tensor:
        """``activations`` (B, M) with the set units replaced."""
        return torch.where(self.mask, self.values.to(activations), activations)

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
    return Intervention(mask & known, values)


def from_answers(units: UnitTable, answers: Mapping[int, float], batch: int = 1) -> Intervention:
    """The intervention of answers by unit position (see :meth:`UnitTable.answer`), for every row of a batch."""
    truth = torch.full((batch, len(units)), float("nan"))
    for unit, value in answers.items():
        truth[:, unit] = value
    return set_units(units, truth, ~torch.isnan(truth))
