"""The rest of the network as readout, for evidence that is a layer inside."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrarium.models.backbones.base import Backbone
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout
from vitrarium.models.types import Evidence


@READOUTS.register("network")
class Network(Readout):
    """The layers of the backbone above its cut, the mean over space, and a linear layer.

    Units inside a network have no exact share in the logit. Contributions are those of the first order: of each axis
    its map times the gradient of the logit, summed over space; they are flagged as not additive, and what is missing to
    the logit is the remainder.

    Args:
        layer: evidence that passes its map on.
        classes: C.
        backbone: cut inside the network.

    Raises:
        UserError: a backbone that ends where the network ends.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"maps", "passes"})

    def __init__(self, layer: EvidenceLayer, classes: int, backbone: Backbone) -> None:
        super().__init__()
        self.tail, channels = backbone.tail()
        self.linear = nn.Linear(channels, classes)
        self.read(layer)

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Logits (B, C) from the map and the carry in the evidence's context; ``vector`` is not looked at."""
        return self._above(evidence.context["map"], evidence)

    def _above(self, map: Tensor, evidence: Evidence) -> Tensor:
        carry = [evidence.context[f"carry{n}"] for n in range(len(evidence.context) - 1)]
        logits: Tensor = self.linear(self.tail(map, *carry).mean((2, 3)))
        return logits

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """Gradient times map for each axis; not additive."""
        with torch.enable_grad():
            map = evidence.context["map"].detach().requires_grad_()
            chosen = self._above(map, evidence).gather(1, classes[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(chosen.sum(), map)
        units = (gradient * map).sum((2, 3)).detach()
        bias = self.linear.bias.detach()[classes]
        return Contributions(units, chosen.detach() - units.sum(1) - bias, bias, additive=False)

    def names_elsewhere(self) -> dict[str, str]:
        """Weights of the layers above, under the names they have in a model whose backbone is not cut."""
        return {f"readout.tail.{name}": f"backbone.{name}" for name in self.tail.state_dict()}
