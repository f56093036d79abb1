"""The linear readout of units that belong to classes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import READOUTS
from vitrarium.models.readouts.linear import Linear
from vitrarium.models.readouts.refit import RefitProblem


@READOUTS.register("class_connected")
class ClassConnected(Linear):
    """logits = W v without a bias; a unit starts with weight ``own`` to its own class and ``other`` to the others.

    ProtoPNet (Chen et al., NeurIPS 2019) starts with 1 and -0.5 and later drives the others to 0 by an L1 penalty (term
    ``readout_l1``), so that a class is explained by its own prototypes.

    Args:
        layer: the evidence layer it reads; its units are owned by classes.
        classes: C.
        own: first weight to the class that owns a unit.
        other: first weight to all other classes.

    Attributes:
        mine: (C, E) bool buffer, True where an entry of the vector belongs to the class.
        lower: (C, E) buffer, least weight that a refit may give; -inf unless somebody demands a prototype.
        upper: (C, E) buffer, largest weight that a refit may give; inf unless somebody forbids a prototype.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vector", "owned"})
    mine: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(self, layer: EvidenceLayer, classes: int, own: float = 1.0, other: float = -0.5) -> None:
        super().__init__(layer, classes, bias=False)
        owner: Tensor | None = getattr(layer, "class_of_entry", None)
        if owner is None:
            raise UserError(
                f"{type(layer).__name__} does not say which class its units belong to",
                "choose evidence with units owned by classes, or the readout 'linear'",
            )
        self.register_buffer("mine", owner[None] == torch.arange(classes)[:, None])
        for name, bound in (("lower", float("-inf")), ("upper", float("inf"))):
            self.register_buffer(name, torch.full(self.mine.shape, bound))
        with torch.no_grad():
            self.linear.weight.copy_(torch.where(self.mine, own, other))

    def refit_problem(self) -> RefitProblem:
        """Weights to own units are not penalised, and all stay within their bounds."""
        return replace(super().refit_problem(), penalised=~self.mine, lower=self.lower, upper=self.upper)
