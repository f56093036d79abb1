"""A linear readout whose weights depend on the image."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout
from vitrarium.models.types import Evidence


@READOUTS.register("input_dependent")
class InputDependent(Readout):
    """Relevance times concept (SENN: Alvarez-Melis & Jaakkola, NeurIPS 2018).

        logit_c(x) = sum over units m of theta_cm(x) h_m(x) + b_c

    The relevances theta (B, C, M) come from the pooled features phi by a small network, V relu(W phi + w) + v. Of one
    image the readout is linear: contributions theta_cm h_m are exact and add up. What they say of the next image is
    another matter: the term ``robustness`` asks theta to change slowly, and the metric ``relevance_stability`` measures
    whether it does. A unit that a person sets changes h alone; the relevances stay those of the image.

    Args:
        layer: evidence with the pooled features in its context and one vector entry per unit.
        classes: C.
        channels: D of the pooled features.
        hidden: width of the hidden layer; 0 = none, the relevances are linear in the features.
        bias: whether each class has a constant b_c.

    Raises:
        UserError: a width below 0, evidence whose vector is not its units.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vector", "pooled"})

    def __init__(
        self, layer: EvidenceLayer, classes: int, channels: int, hidden: int = 64, bias: bool = True
    ) -> None:  # fmt: skip
        super().__init__()
        units = len(layer.alive)
        if hidden < 0:
            raise UserError(f"input_dependent with hidden={hidden}", "give a width of 0 (no hidden layer) or more")
        if not torch.equal(layer.unit_of.cpu(), torch.arange(units)):
            raise UserError(
                f"input_dependent gives each unit one relevance, and the vector of {type(layer).__name__} is not its "
                "units",
                "choose evidence whose vector is its activations, such as self_learnt_concepts",
            )
        self.classes = classes
        width = hidden or channels
        self.hidden = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.relevance = nn.Linear(width, classes * units)
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None
        self.read(layer)

    def relevances(self, evidence: Evidence) -> Tensor:
        """(B, C, M) theta."""
        return self.relevance(self.hidden(evidence.context["features"])).unflatten(1, (self.classes, -1))  # type: ignore[no-any-return]

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Vector (..., B, M) to logits (..., B, C)."""
        logits = (self.relevances(evidence) @ vector[..., None]).squeeze(-1)
        return logits if self.bias is None else logits + self.bias

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """theta_cm h_m; exact: units + bias = logit."""
        rows = torch.arange(len(classes), device=classes.device)
        units = self.relevances(evidence)[rows, classes] * evidence.vector
        nothing = units.new_zeros(len(units))
        return Contributions(units, nothing, nothing if self.bias is None else self.bias[classes], additive=True)

    @torch.no_grad()
    def drop_entries(self, entries: Tensor) -> None:
        """Set the relevances of some units, (M,) bool, to 0 for every image."""
        self.relevance.weight.unflatten(0, (self.classes, -1))[:, entries] = 0
        self.relevance.bias.unflatten(0, (self.classes, -1))[:, entries] = 0
