"""A small model whose units are annotated concepts without a probability, as the axes of concept whitening are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vitrarium.models.backbones import build_backbone
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.intervention import Intervention
from vitrarium.models.readouts.base import READOUTS
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable


class FakeAxes(EvidenceLayer):
    """The channels as axes: the first K named after the concepts."""

    gives = frozenset({"vector", "maps", "axes"})
    maps_average_to_activations = True
    reduction = "mean"

    def __init__(self, channels, concepts):
        super().__init__()
        self.set_units(UnitTable.with_free(concepts, "axis", channels))

    def forward(self, features):
        pooled = features.map.mean((2, 3))
        return Evidence(pooled, pooled, maps=features.map)

    def assemble(self, activations, evidence):
        return activations

    def intervene(self, evidence: Evidence, do: Intervention) -> Evidence:
        activations = do.apply(evidence.activations)
        return replace(evidence, activations=activations, vector=activations)


@pytest.fixture
def make_axes(concepts):
    """A model with C >= K channels, of which K are axes."""

    def make(channels=10, seed=0, classes=3):
        torch.manual_seed(seed)
        backbone = build_backbone({"name": "convnet", "widths": (8, channels)})
        layer = FakeAxes(channels, concepts)
        head = READOUTS.build("linear", layer=layer, classes=classes)
        names = tuple(f"class {c}" for c in range(classes))
        model = TransparentClassifier(backbone, layer, head, names, concepts)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(8)
        return model.eval()

    return make
