"""Small models with known weights, and images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models.backbones.base import Backbone, Cut
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.readouts.base import READOUTS
from vitrarium.models.types import Features

CLASSES = ("rose", "daisy", "tulip")
CONCEPTS = ConceptSet(
    (
        ConceptGroup("petal_colour", (0, 1, 2), ("red", "white", "blue"), True),
        ConceptGroup("thorns", (3,), ("yes",), False),
        ConceptGroup("leaf", (4, 5), ("round", "long"), True),
    )
)


class Stub(Backbone):
    """One convolution: 4 x 4 maps of 6 channels from 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise_by((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.cuts, self.cut = {"top": Cut(6, 4)}, "top"
        self.body = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, x: Tensor) -> Features:
        return Features(self.body(self.standardise(x)).relu())


@pytest.fixture
def model() -> Callable[..., TransparentClassifier]:
    """Build a classifier from names of parts; weights depend on the seed only."""

    def build(
        evidence: Any = "concepts", readout: Any = "linear", seed: int = 0, classes: tuple[str, ...] = CLASSES
    ) -> TransparentClassifier:
        torch.manual_seed(seed)
        layer = EVIDENCE.build(evidence, channels=6, concepts=CONCEPTS)
        if torch.isnan(layer.absent).any() and layer.units.truth == "concept":
            layer.absent.fill_(-2.0)
            layer.present.fill_(3.0)
        head = READOUTS.build(readout, layer=layer, classes=len(classes))
        return TransparentClassifier(Stub(), layer, head, classes, CONCEPTS, Preprocessing(16)).eval()

    return build


@pytest.fixture
def image() -> np.ndarray:
    """(16, 16, 3) uint8."""
    return np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
