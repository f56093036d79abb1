"""The contract of evidence layers and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.configs.registry import Registry
from vitrarium.data.corrections import Corrections
from vitrarium.models.intervention import Intervention
from vitrarium.models.naming import with_names
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

EVIDENCE = Registry(
    "evidence",
    [
        "vitrarium.models.evidence.features",
        "vitrarium.models.evidence.concepts",
        "vitrarium.models.evidence.prototypes",
        "vitrarium.models.evidence.concept_prototypes",
        "vitrarium.models.evidence.softmax_channels",
        "vitrarium.models.evidence.prototype_pool",
        "vitrarium.models.evidence.deformable_prototypes",
        "vitrarium.models.evidence.whitened_axes",
        "vitrarium.models.evidence.part_filters",
        "vitrarium.models.evidence.self_learnt_concepts",
    ],
)


class EvidenceLayer(nn.Module, ABC):
    """Turns features into named units.

    A subclass is built by name; beside its own options its constructor may ask for any of ``channels`` (D),
    ``concepts`` (the data's concept set or None), ``classes`` (C) and ``backbone``. It calls :meth:`set_units` once,
    and implements :meth:`forward` and :meth:`assemble`.

    Attributes:
        needs: what it asks of the backbone ("map", "carry") and the data ("concepts").
        gives: what readouts, terms and policies may count on: "vector", "maps", "scores", "probabilities"; "prototypes"
            (units are looked for in patches), "owned" (they belong to classes), "gates" (activations are in [0, 1]),
            "shares" (at each place the maps of all units sum to 1).
        maps_average_to_activations: the mean of a unit's map is its activation, so a value set on the unit shifts the
            map with it.
        reads_mean: the map reaches the activations through its mean over space alone, so that a pooled map (B, D, 1, 1)
            gives the same ones; features of a frozen backbone are kept pooled for such a layer.
        vector_size: E, the width of ``Evidence.vector``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"map"})
    gives: frozenset[str] = frozenset({"vector"})
    maps_average_to_activations: bool = False
    reads_mean: bool = False
    vector_size: int
    alive: Tensor
    absent: Tensor
    present: Tensor

    def set_units(self, units: UnitTable, unit_of: Tensor | None = None) -> None:
        """File the unit table; its tensors become buffers, so they are saved and move with the layer.

        Args:
            units: the M units.
            unit_of: (E,) owner of each vector entry; default: the vector is the activations.
        """
        self._units = units
        self.register_buffer("alive", units.alive)
        self.register_buffer("absent", units.absent)
        self.register_buffer("present", units.present)
        owner = torch.arange(len(units)) if unit_of is None else unit_of
        self.register_buffer("_unit_of", owner, persistent=False)
        self.vector_size = len(owner)

    @property
    def unit_of(self) -> Tensor:
        """(E,) int64: the unit each entry of the vector belongs to, -1 for what is no unit's (a residual).

        A layer that learns it overrides this, so ask when it is needed and keep no copy.
        """
        owner: Tensor = self._unit_of  # type: ignore[assignment]
        return owner

    @property
    def units(self) -> UnitTable:
        """The unit table with the present state of its buffers."""
        return replace(self._units, alive=self.alive, absent=self.absent, present=self.present)

    def call_units(self, names: Sequence[str]) -> None:
        """Give the M units other names; those of annotated ones stay. A model folder keeps them.

        Raises:
            UserError: see :func:`~vitrarium.models.naming.with_names`.
        """
        self._units = with_names(self._units, names)

    def read_corrections(self, do: Mapping[str, Any]) -> Corrections:
        """Corrections by name, understood, and checked as far as that can be done without an image.

        Raises:
            UserError: what :meth:`UnitTable.read` refuses, a ban where units have no maps.
        """
        given = self.units.read(do, "gates" in self.gives)
        if given.confines and "maps" not in self.gives:
            raise UserError(f"the {self._units.kind}s have no maps, so no place can be banned", "set units instead")
        return given

    @abstractmethod
    def forward(self, features: Features) -> Evidence:
        """Features (B, D, h, w) to evidence."""

    @abstractmethod
    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector (B, E) or (S, B, E) that belongs to ``activations`` (B, M), all else as in ``evidence``."""

    def intervene(self, evidence: Evidence, do: Intervention) -> Evidence:
        """The evidence under an intervention: a pure function, nothing is patched.

        ``do.region`` is applied first (:meth:`confine`), then the values. Layers whose units inform each other (a
        covariance, say) override this.
        """
        if do.region is not None:
            evidence = self.confine(evidence, do.region)
        activations = do.apply(evidence.activations)
        maps = evidence.maps
        if maps is not None and self.maps_average_to_activations:
            # A value on a map is a shift that makes the reduced activation equal it: under a mean, the same everywhere.
            mask = do.widened(activations.shape[1]).mask
            shift = torch.where(mask, activations - evidence.activations, torch.zeros_like(activations))
            maps = maps + shift[:, :, None, None]
        changed = replace(evidence, activations=activations, maps=maps)
        return replace(changed, vector=self.assemble(activations, changed))

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """The evidence when units may only look at ``region`` (B, M or 1, h, w); layers with maps override it."""
        raise UserError(f"{type(self).__name__} has no maps, so a region cannot be banned", "set values instead")

    def decode_units(self, units: Tensor, size: tuple[int, int]) -> Tensor | None:
        """What each unit stands for as an image, from a layer that can draw it; None elsewhere.

        Args:
            units: (n,) int64, their positions.
            size: (H, W) of the images.

        Returns:
            (n, 3, H, W) in [0, 1].
        """
        return None

    def deployed(self) -> EvidenceLayer:
        """A plain layer that gives the same evidence in evaluation, for :func:`vitrarium.models.deploy.deploy`.

        Called on a copy that may be taken apart; layers inside have been asked before. A layer that is constrained
        while it learns overrides it. Default: itself.
        """
        return self

    def export_problem(self, format: str) -> str | None:
        """Why the layer cannot be exported to ``format`` ("onnx", "torch"), in words; None if it can.

        A layer that draws random numbers in evaluation, or uses an operation that the format does not have, says so
        here, and the export is refused before anything is written.
        """
        return None

    def certify(self, evidence: Evidence, bound: float) -> Tensor | None:
        """(B, M) L2 radius in pixels inside which each unit cannot change, given the backbone's Lipschitz bound.

        None where the layer has no useful bound.
        """
        return None
