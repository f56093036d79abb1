"""Pooled features as evidence: the black box, seen through the same windows as everybody else."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.evidence.pooling import pool
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable


@EVIDENCE.register("features")
class PooledFeatures(EvidenceLayer):
    """One unit per channel, averaged over space. Units have no name, no truth and no probability.

    Args:
        channels: D of the backbone's map.
    """

    gives: frozenset[str] = frozenset({"vector", "maps"})
    maps_average_to_activations = True
    reads_mean = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.set_units(UnitTable.anonymous("channel", channels))

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to activations = vector = (B, D)."""
        pooled = features.map.mean((2, 3))
        return Evidence(pooled, pooled, maps=features.map)

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations."""
        return activations

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """Average over the region only."""
        assert evidence.maps is not None
        pooled = pool(evidence.maps, region)
        return replace(evidence, activations=pooled, vector=pooled)
