"""What a batch shows of the units of a model: maps, activations, and the annotated parts of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrarium.data.batch import Batch
from vitrarium.eval.metrics.parts.annotation import Marks
from vitrarium.eval.metrics.parts.places import peaks
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.types import Evidence

USED = 1e-5
"""A unit whose weights are all at most this large says nothing (the releases of PIP-Net: Nauta et al., CVPR 2023)."""


@dataclass
class UnitLayout:
    """The M units as metrics see them.

    Attributes:
        owners: (M, C) bool, the classes that a unit belongs to; all of them = it is shared.
        used: (M,) bool, living units that the readout listens to.
    """

    owners: Tensor
    used: Tensor

    @property
    def shared(self) -> Tensor:
        """(M,) bool."""
        return self.owners.all(1)

    def __len__(self) -> int:
        return len(self.used)

    @staticmethod
    def of(model: TransparentClassifier) -> UnitLayout:
        """The units of a model, on the CPU.

        Prototypes and part filters say which classes they belong to, and a readout may say for which classes a unit can
        speak (a tree); all other units are shared.
        """
        layer, classes = model.evidence, len(model.class_names)
        owners = torch.ones(len(layer.alive), classes, dtype=torch.bool)
        if layer.gives & {"prototypes", "filters"}:
            owners = layer.unit_owners().cpu()  # type: ignore[operator]
        chosen = model.readout.owners()
        if chosen is not None:
            owners = owners & chosen.cpu()
        return UnitLayout(owners, used_units(model) & owners.any(1))


def used_units(model: TransparentClassifier) -> Tensor:
    """(M,) bool on the CPU: living units with a weight above ``USED``, where the readout has weights."""
    alive, weight = model.evidence.alive.cpu(), model.readout.effective_weight
    if weight is None:
        return alive
    unit_of = model.evidence.unit_of.cpu()
    heard = (weight.detach().abs().amax(0) > USED).cpu() & (unit_of >= 0)
    named = torch.zeros_like(alive)
    named[unit_of[heard]] = True
    return alive & named


@dataclass
class Sighting:
    """B images, looked at by M units.

    Attributes:
        maps: (B, M, h, w).
        activations: (B, M).
        label: (B,) int64.
        index: (B,) int64, position in the split.
        marks: the annotated parts.
        segments: (B, H, W) bool, what an explanation should point at: the union of the part masks, or else the human
            map above 1/2; empty for images without; None where the data has neither.
    """

    maps: Tensor
    activations: Tensor
    label: Tensor
    index: Tensor
    marks: Marks
    segments: Tensor | None = None
    _peaks: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of(evidence: Evidence, batch: Batch, names: Sequence[str] = (), marks: Marks | None = None) -> Sighting | None:
        """What units say of a batch; None where they have no maps, or the data no parts."""
        marks = marks or Marks.of(batch, names)
        if evidence.maps is None or marks is None:
            return None
        index = torch.arange(len(batch)) if batch.index is None else batch.index
        at = evidence.maps.device
        return Sighting(
            evidence.maps.detach(), evidence.activations.detach(), batch.label.to(at), index.to(at), marks,
            segments_of(batch),
        )  # fmt: skip

    def peaks(self, rows: Tensor, units: Tensor) -> Tensor:
        """(n, 2) float32 row and column of the strongest pixel of some maps; each is looked for once.

        Args:
            rows: (n,) int64, which image.
            units: (n,) int64, which unit.
        """
        if self._peaks is None:
            # Below every pixel, and no NaN: nobody has looked.
            self._peaks = self.maps.new_full((*self.maps.shape[:2], 2), -1.0, dtype=torch.float32)
        new = (self._peaks[rows, units, 0] == -1).nonzero()[:, 0]
        if len(new):
            r, u = rows[new], units[new]
            self._peaks[r, u] = peaks(self.maps[r, u], self.marks.size)
        return self._peaks[rows, units]


def segments_of(batch: Batch) -> Tensor | None:
    """(B, H, W) bool; see :class:`Sighting`."""
    if batch.part_masks is not None and batch.part_masks.shape[1]:
        return batch.part_masks.any(1)
    return None if batch.human_map is None else batch.human_map[:, 0] > 0.5
