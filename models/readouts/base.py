"""The contract of readouts and their registry."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vitrarium.configs.registry import Registry
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.refit import RefitProblem
from vitrarium.models.types import Evidence

READOUTS = Registry(
    "readout",
    [
        "vitrarium.models.readouts.linear",
        "vitrarium.models.readouts.mlp",
        "vitrarium.models.readouts.class_connected",
        "vitrarium.models.readouts.nonnegative",
        "vitrarium.models.readouts.soft_tree",
        "vitrarium.models.readouts.network",
        "vitrarium.models.readouts.input_dependent",
    ],
)


class Contributions(NamedTuple):
    """How much each unit speaks for one class.

    Attributes:
        units: (B, M).
        remainder: (B,) what is no unit's (a residual).
        bias: (B,) the constant of the class.
        additive: True when units.sum(1) + remainder + bias is exactly the logit.
    """

    units: Tensor
    remainder: Tensor
    bias: Tensor
    additive: bool


class Readout(nn.Module, ABC):
    """Turns evidence into logits.

    A subclass is built by name; beside its own options its constructor may ask for any of ``layer`` (the evidence
    layer), ``classes`` (C), ``concepts`` and ``backbone``. It calls :meth:`read` with the layer.

    Attributes:
        needs: what it asks of the evidence ("vector", "similarities", "carry").
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vector"})

    def read(self, layer: EvidenceLayer) -> None:
        """Remember the evidence layer without making it, and its weights, a part of the readout."""
        self.__dict__["_layer"] = layer

    @property
    def unit_of(self) -> Tensor:
        """(E,) int64: the unit each entry of the vector belongs to, as the layer has it now."""
        layer: EvidenceLayer = self._layer  # type: ignore[assignment]
        return layer.unit_of

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Names of the M units, as the layer calls them now: people may name units later."""
        layer: EvidenceLayer = self._layer  # type: ignore[assignment]
        return layer.units.names

    @property
    def unit_count(self) -> int:
        """M."""
        layer: EvidenceLayer = self._layer  # type: ignore[assignment]
        return len(layer.alive)

    @abstractmethod
    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Vector (..., E) to logits (..., C)."""

    def forward(self, evidence: Evidence) -> Tensor:
        """Logits (B, C); for sampled evidence the log of the mean probability over the samples."""
        logits = self.score(evidence.vector, evidence)
        if logits.dim() == 3:
            return torch.logsumexp(logits.log_softmax(-1), 0) - math.log(logits.shape[0])
        return logits

    @abstractmethod
    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """Contributions of the units to the logit of ``classes`` (B,)."""

    def deployed(self) -> Readout:
        """A plain readout that gives the same logits in evaluation; see :meth:`EvidenceLayer.deployed`."""
        return self

    def export_problem(self, format: str) -> str | None:
        """Why the readout cannot be exported to ``format``; see :meth:`EvidenceLayer.export_problem`."""
        return None

    @property
    def effective_weight(self) -> Tensor | None:
        """(C, E) the weights W as they count where scores are W v, for measures of sparsity; None elsewhere."""
        return None

    def drop_entries(self, entries: Tensor) -> None:
        """Forget what was learnt of some entries of the vector, (E,) bool, where there is a weight for each."""

    def refit_problem(self) -> RefitProblem | None:
        """What a convex refit on fixed evidence may change, where scores are W v + b; None elsewhere."""
        return None

    def take_refit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the weights (C, E) and biases (C,) that a refit of :meth:`refit_problem` has found."""
        from vitrarium.configs.errors import UserError

        raise UserError(f"{type(self).__name__} cannot be refitted: it is not linear", "choose a linear readout")

    def owners(self) -> Tensor | None:
        """(M, C) bool: for which classes each unit can speak, where the readout decides that; else None.

        Projection takes a prototype from images of these classes only.
        """
        return None

    def relevances(self, evidence: Evidence) -> Tensor | None:
        """(B, C, M) how much each unit counts for each class in each image, where that depends on the image; else None.

        Where it is given, relevance times activation is the contribution.
        """
        return None

    def path_length(self, evidence: Evidence) -> Tensor | None:
        """(B,) how many questions are asked on the way to each answer, of readouts that ask one by one; else None."""
        return None

    def names_elsewhere(self) -> dict[str, str]:
        """The names of weights of this readout, and those they have in a model whose backbone is not cut."""
        return {}

    def rules(self) -> list[dict[str, Any]]:
        """What the readout has learnt, in words, where it can be said (sparse weights, tree paths)."""
        return []


def per_unit(entries: Tensor, unit_of: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Sum the contributions of vector entries (B, E) to their units.

    Returns:
        (B, M) per unit and (B,) of the entries that are no unit's.
    """
    owned = unit_of >= 0
    summed = entries.new_zeros(entries.shape[0], units)
    summed = summed.index_add(1, unit_of[owned], entries[:, owned])
    return summed, entries[:, ~owned].sum(1)
