"""A readout with hidden layers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout, per_unit
from vitrarium.models.types import Evidence


@READOUTS.register("mlp")
class MLP(Readout):
    """Fully connected layers with ReLU between them.

    Contributions are gradient x input of the logit: a first-order account, flagged as not additive.

    Args:
        layer: the evidence layer it reads.
        classes: C.
        hidden: widths of the hidden layers.
    """

    def __init__(self, layer: EvidenceLayer, classes: int, hidden: tuple[int, ...] = (64,)) -> None:
        super().__init__()
        widths = [layer.vector_size, *hidden]
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            steps += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*steps, nn.Linear(widths[-1], classes))
        self.read(layer)

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Vector (..., E) to logits (..., C)."""
        return self.layers(vector)

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """Gradient x input per unit; the bias field holds what they leave of the logit."""
        with torch.enable_grad():
            vector = evidence.vector.detach().clone().requires_grad_()
            logits = self.score(vector, evidence)
            chosen = (logits.mean(0) if logits.dim() == 3 else logits).gather(1, classes[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(chosen.sum(), vector)
        entries = gradient * vector.detach()
        entries = entries.sum(0) if entries.dim() == 3 else entries
        units, remainder = per_unit(entries, self.unit_of, self.unit_count)
        return Contributions(units, remainder, chosen.detach() - units.sum(1) - remainder, additive=False)
