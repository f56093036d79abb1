"""Three small members that stand for the hard cases which later families bring; when the real one moves in, its probe
goes.

They are registered like anybody's plugin, train through the ordinary recipe, resume, and take ``do``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Term


# 1. Sampled evidence whose units inform each other when one is set.
@EVIDENCE.register("probe_gaussian")
class Gaussian(EvidenceLayer):
    needs = frozenset({"map", "concepts"})
    gives = frozenset({"vector", "scores", "probabilities"})

    def __init__(self, channels, concepts, samples: int = 8):
        super().__init__()
        self.head = nn.Linear(channels, len(concepts))
        self.factor = nn.Parameter(torch.eye(len(concepts)))
        self.register_buffer("noise", torch.randn(samples, 1, len(concepts)))
        self.set_units(UnitTable.of_concepts(concepts))

    def forward(self, features):
        mean = self.head(features.map.mean((2, 3)))
        evidence = Evidence(mean.sigmoid(), mean[None], scores=mean, probabilities=mean.sigmoid())
        return replace(evidence, vector=self.assemble(evidence.activations, evidence))

    def assemble(self, activations, evidence):
        return (torch.logit(activations, 1e-4) + self.noise @ self.factor.T).sigmoid()

    def intervene(self, evidence, do):
        covariance = self.factor @ self.factor.T + 0.1 * torch.eye(len(self.factor)).to(self.factor)
        known = do.mask.to(evidence.scores)
        wanted = torch.logit(do.values.to(evidence.scores), 0.05) * known
        inside = known[:, :, None] * covariance * known[:, None, :] + torch.diag_embed(1 - known)
        gain = torch.linalg.solve(inside, ((wanted - evidence.scores) * known)[..., None])[..., 0]
        scores = evidence.scores + (gain * known) @ covariance
        activations = do.apply(scores.sigmoid())
        return replace(evidence, activations=activations, vector=self.assemble(activations, evidence))

    def export_problem(self, format):
        return "corrections solve a linear system, which ONNX cannot" if format == "onnx" else None


# 2. Units with a certified radius.
@EVIDENCE.register("probe_certified")
class Certified(EvidenceLayer):
    def __init__(self, channels, centres: int = 4):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(centres, channels))
        self.set_units(UnitTable.anonymous("centre", centres))

    def forward(self, features):
        # ONNX has no torch.cdist.
        distance = (features.map.mean((2, 3))[:, None] - self.centres).norm(dim=-1)
        return Evidence(-distance, -distance)

    def assemble(self, activations, evidence):
        return activations

    def certify(self, evidence, bound):
        # |a - b| of two distances changes by at most 2 x the feature's move: half the gap to the runner-up is safe.
        top = evidence.activations.topk(2).values
        return ((top[:, :1] - top[:, 1:]) / (2 * bound)).expand_as(evidence.activations)


# 3. A term with running state that needs the gradient of a gradient.
@TERMS.register("probe_flat")
class Flat(Term):
    needs = frozenset({"input_gradient"})

    def __init__(self, source):
        super().__init__(source)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, step):
        norm = step.input_gradient().flatten(1).norm(dim=1)
        self.scale.lerp_(norm.mean().detach(), 0.1)
        return shared_mean((norm / self.scale).sum(), torch.tensor(float(len(norm))))
