"""The linear readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout, per_unit
from vitrarium.models.readouts.refit import RefitProblem
from vitrarium.models.types import Evidence


@READOUTS.register("linear")
class Linear(Readout):
    """logits = W v + b; the contribution of a unit to class c is the sum of W[c, e] v[e] over its entries e.

    For sampled evidence the contributions are those of the mean vector and not additive (the log of a mean
    probability is not linear).

    Args:
        layer: the evidence layer it reads.
        classes: C.
        bias: whether each class has a constant.
    """

    def __init__(self, layer: EvidenceLayer, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.vector_size, classes, bias=bias)
        self.read(layer)

    @property
    def effective_weight(self) -> Tensor:
        """(C, E) W."""
        return self.linear.weight

    @torch.no_grad()
    def drop_entries(self, entries: Tensor) -> None:
        """Set the weights of some entries of the vector, (E,) bool, to 0."""
        self.linear.weight[:, entries] = 0

    def refit_problem(self) -> RefitProblem:
        """All weights may go anywhere."""
        weight = self.linear.weight.detach()
        bias = None if self.linear.bias is None else self.linear.bias.detach()
        infinite = torch.full_like(weight, float("inf"))
        return RefitProblem(weight, bias, torch.ones_like(weight, dtype=torch.bool), -infinite, infinite)

    @torch.no_grad()
    def take_refit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set weights (C, E) and biases (C,)."""
        self.linear.weight.copy_(weight)
        if bias is not None:
            self.linear.bias.copy_(bias)

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Vector (..., E) to logits (..., C)."""
        return self.linear(vector)

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """Exact: units + remainder + bias = logit."""
        sampled = evidence.vector.dim() == 3
        vector = evidence.vector.mean(0) if sampled else evidence.vector
        units, remainder = per_unit(self.linear.weight[classes] * vector, self.unit_of, self.unit_count)
        bias = remainder.new_zeros(len(remainder)) if self.linear.bias is None else self.linear.bias[classes]
        return Contributions(units, remainder, bias, additive=not sampled)

    def rules(self) -> list[dict[str, Any]]:
        """Per class the weight of each unit whose vector entry is its activation (the sum, where it fills several)."""
        weight, owners = self.linear.weight.detach().cpu(), self.unit_of.cpu()
        total, _ = per_unit(weight, owners, self.unit_count)
        used, names = owners[owners >= 0].unique().tolist(), self.unit_names
        return [{"class": c, "weights": {names[m]: float(row[m]) for m in used}} for c, row in enumerate(total)]
