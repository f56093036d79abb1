"""A plugin for Vitrarium: the evidence layer ``generalised_mean``."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

SMALLEST = 1e-6


@EVIDENCE.register("generalised_mean")
class GeneralisedMean(EvidenceLayer):
    """One unit per channel: (mean of x^p over the places)^(1/p); p = 1 is the mean, a large p nearly the maximum.

    Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019.

    Args:
        channels: D of the backbone's map; handed in when the model is built.
        p: the exponent, at least 1. Values below 1e-6 count as 1e-6, so that the power is defined.
    """

    gives = frozenset({"vector", "maps"})

    def __init__(self, channels: int, p: float = 3.0) -> None:
        super().__init__()
        if p < 1:
            raise UserError(f"generalised_mean with p={p}", "give a number of at least 1")
        self.p = p
        self.set_units(UnitTable.anonymous("channel", channels))

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to activations = vector = (B, D)."""
        activations = self.pooled(features.map)
        return Evidence(activations, activations, maps=features.map)

    def pooled(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D)."""
        return maps.clamp_min(SMALLEST).pow(self.p).mean((2, 3)).pow(1 / self.p)

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The readout consumes the activations themselves."""
        return activations

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """Places outside the region fall silent (0)."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        activations = self.pooled(evidence.maps * region)
        return replace(evidence, activations=activations, vector=activations)
