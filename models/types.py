"""What flows through the anatomy: features, evidence, output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Features:
    """What a backbone gives.

    Attributes:
        map: (B, D, h, w).
        carry: other tensors alive across the cut (a residual shortcut, say), for the readout ``network``.
    """

    map: Tensor
    carry: tuple[Tensor, ...] = ()


@dataclass
class Evidence:
    """What an evidence layer gives: named units, what they say, and what the readout may consume.

    Attributes:
        activations: (B, M) what a person may read and set, one number per unit.
        vector: (B, E) what the readout consumes; (S, B, E) for sampled evidence.
        maps: (B, M, h, w) where the units respond, or None.
        scores: (B, M) what concept losses are computed on (log-odds; softmax scores in categorical groups),
            or None where units have no native probability. Where some units are free, of the others alone.
        probabilities: (B, M) in [0, 1], or None where units have none; as ``scores``, without free units.
        context: what else a readout may see (a residual, relevances, a carry), by name.
        state: what the layer needs to recompute after an intervention, by name.
    """

    activations: Tensor
    vector: Tensor
    maps: Tensor | None = None
    scores: Tensor | None = None
    probabilities: Tensor | None = None
    context: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.activations.shape[0]

    def map_tensors(self, function: Any) -> Evidence:
        """The evidence with ``function(tensor, batch dimension)`` applied to each of its tensors."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value, value.dim() - 2 if item.name == "vector" else 0)
            elif isinstance(value, dict):
                changed[item.name] = {k: function(v, 0) for k, v in value.items()}
        return replace(self, **changed)

    def __getitem__(self, rows: Any) -> Evidence:
        """The evidence of some rows of the batch (a slice or an index tensor)."""
        return self.map_tensors(lambda t, dim: t[rows] if dim == 0 else t[:, rows])

    def detach(self) -> Evidence:
        """The evidence without its graph."""
        return self.map_tensors(lambda t, dim: t.detach())

    def without_maps(self) -> Evidence:
        """The evidence without its maps, for caching over a whole data set."""
        return replace(self, maps=None)

    @staticmethod
    def cat(parts: Sequence[Evidence]) -> Evidence:
        """Concatenate along the batch."""
        first = parts[0]
        joined: dict[str, Any] = {}
        for item in fields(first):
            value = getattr(first, item.name)
            if isinstance(value, Tensor):
                dim = value.dim() - 2 if item.name == "vector" else 0
                joined[item.name] = torch.cat([getattr(p, item.name) for p in parts], dim)
            elif isinstance(value, dict):
                joined[item.name] = {k: torch.cat([getattr(p, item.name)[k] for p in parts]) for k in value}
        return replace(first, **joined)


@dataclass
class Output:
    """What a classifier answers.

    Attributes:
        logits: (B, C).
        evidence: after the intervention, if there was one.
        features: what the backbone gave, or None when the answer came from cached evidence.
    """

    logits: Tensor
    evidence: Evidence
    features: Features | None = None
