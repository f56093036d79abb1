"""The contract of policies: what to ask a person next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.configs.registry import Registry
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable

POLICIES = Registry("policy", ["vitrarium.eval.interventions.policies"])


@dataclass
class Context:
    """What a policy may look at; never the truth.

    Attributes:
        model: to ask "what if" with ``model.answer(evidence, do)``.
        evidence: of N images, after the answers given so far.
        logits: (N, C) of the model for that evidence.
        units: the unit table; its G groups are what can be asked.
        asked: (N, G) bool, groups asked so far.
        costs: (G,) float64, price of a question.
        generator: source of the policy's chance; seeded by (seed, trial).
    """

    model: TransparentClassifier
    evidence: Evidence
    logits: Tensor
    units: UnitTable
    asked: Tensor
    costs: Tensor
    generator: torch.Generator


class Policy(ABC):
    """Decides for each image which group of units to ask about next.

    A subclass is built as ``POLICIES.build({name, **options})`` and implements :meth:`score`.

    Attributes:
        needs: what it asks of the unit table, as for :meth:`UnitTable.require` (truth is always needed).
        static: True: groups are ranked once, from the evidence before any answer. False: they are scored again after
            each answer, on the evidence as it is then.
        stochastic: whether two trials differ.
    """

    needs: ClassVar[dict[str, str]] = {}
    static: bool = True
    stochastic: bool = False

    @abstractmethod
    def score(self, context: Context) -> Tensor:
        """(N, G) the larger, the sooner it is asked; scores of groups already asked do not matter."""

    def rank(self, context: Context) -> Tensor:
        """(N, G) int64: the groups in the order in which each image asks them; equal scores keep the groups' order."""
        return self.score(context).argsort(dim=1, descending=True, stable=True)

    def require(self, units: UnitTable) -> None:
        """Refuse units that cannot be corrected or cannot be ranked by this policy."""
        units.require(truth="concept", **self.needs)
        units.require_values()

    @property
    def choices(self) -> dict[str, Any]:
        """Every choice that decides the order."""
        return {"ranked": "once" if self.static else "after each answer"}
