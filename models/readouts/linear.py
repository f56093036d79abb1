"""The linear readout."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout, per_unit
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
        self.unit_names = layer.units.names
        self.linear = nn.Linear(layer.vector_size, classes, bias=bias)
        self.register_buffer("unit_of", layer.unit_of.clone(), persistent=False)

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Vector (..., E) to logits (..., C)."""
        return self.linear(vector)

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """Exact: units + remainder + bias = logit."""
        sampled = evidence.vector.dim() == 3
        vector = evidence.vector.mean(0) if sampled else evidence.vector
        units, remainder = per_unit(self.linear.weight[classes] * vector, self.unit_of, len(self.unit_names))
        bias = remainder.new_zeros(len(remainder)) if self.linear.bias is None else self.linear.bias[classes]
        return Contributions(units, remainder, bias, additive=not sampled)

    def rules(self) -> list[dict[str, Any]]:
        """Per class the weight of each unit whose vector entry is its activation."""
        weight = self.linear.weight.detach().cpu()
        owners = self.unit_of.tolist()
        return [
            {
                "class": c,
                "weights": {self.unit_names[m]: float(weight[c, e]) for e, m in enumerate(owners) if m >= 0},
            }
            for c in range(weight.shape[0])
        ]
