"""Small models, concept sets and batches for the tests of measurement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.models.backbones.base import Backbone, Cut
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.readouts.base import READOUTS
from vitrarium.models.types import Features


class Tiny(Backbone):
    """One convolution with a normalisation and dropout; counts how often it runs."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.standardise_by((0.5,) * 3, (0.25,) * 3)
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.5)
        self.cuts, self.cut = {"last": Cut(channels, 2)}, "last"
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return Features(self.drop(self.norm(self.conv(self.standardise(x))).relu()))


@pytest.fixture
def concepts() -> ConceptSet:
    """Eight concepts in four groups: of three and of two values, a yes/no, two yes/no that are asked together."""
    return ConceptSet(
        (
            ConceptGroup("shape", (0, 1, 2), ("round", "oval", "other"), True, 1.0),
            ConceptGroup("dots", (3,), ("yes",), False, 2.0),
            ConceptGroup("size", (4, 5), ("small", "big"), True, 0.5),
            ConceptGroup("rim", (6, 7), ("dark", "wavy"), False, 3.0),
        )
    )


@pytest.fixture
def make_model(concepts):
    def make(evidence="concepts", readout="linear", classes=3, with_concepts=concepts, seed=0, sharp=8.0):
        torch.manual_seed(seed)
        backbone = Tiny()
        layer = EVIDENCE.build(evidence, channels=backbone.channels, concepts=with_concepts)
        head = READOUTS.build(readout, layer=layer, classes=classes)
        names = tuple(f"class {c}" for c in range(classes))
        model = TransparentClassifier(backbone, layer, head, names, with_concepts)
        with torch.no_grad():
            for parameter in (*layer.parameters(), *head.parameters()):
                parameter.mul_(sharp)
        return model.eval()

    return make


@pytest.fixture
def make_truth(concepts):
    def make(images, seed=0, missing=0.0):
        """(N, K) truth: one-hot in categorical groups, some groups (or single concepts) unknown."""
        rng = np.random.default_rng(seed)
        truth = np.zeros((images, len(concepts)), np.float32)
        for group in concepts.groups:
            if group.categorical:
                truth[np.arange(images), rng.choice(group.members, images)] = 1
            else:
                truth[:, list(group.members)] = rng.integers(0, 2, (images, len(group.members)))
            gone = rng.random(images) < missing
            truth[np.ix_(gone, list(group.members))] = np.nan
        return torch.from_numpy(truth)

    return make


@pytest.fixture
def make_batches(make_truth):
    def make(images=50, batch=16, seed=0, missing=0.0, classes=3, with_concepts=True, shuffled=False, contrast=1.0):
        generator = torch.Generator().manual_seed(seed)
        pixels = (torch.rand(images, 3, 8, 8, generator=generator) - 0.5) * contrast + 0.5
        pixels = (pixels * torch.rand(images, 3, 1, 1, generator=generator)).clamp(0, 1)
        labels = torch.randint(classes, (images,), generator=generator)
        truth = make_truth(images, seed, missing)
        order = torch.randperm(images, generator=generator) if shuffled else torch.arange(images)
        return [
            Batch(pixels[rows], labels[rows], truth[rows] if with_concepts else None, index=rows)
            for rows in order.split(batch)
        ]

    return make
