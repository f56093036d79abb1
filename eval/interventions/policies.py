"""The policies of the house: random, and most uncertain first."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.eval.interventions.base import POLICIES, Context, Policy
from vitrarium.models.units import UnitTable

ORDERS = ("per_sample", "one_for_all")
REDUCTIONS = ("max", "mean")


@POLICIES.register("random")
class Random(Policy):
    """Groups in random order.

    Args:
        order: "per_sample" draws an order for each image; "one_for_all" one order per trial that all images share, so
            that the spread over trials tells how much the order matters.
    """

    stochastic = True

    def __init__(self, order: Literal["per_sample", "one_for_all"] = "per_sample") -> None:
        if order not in ORDERS:
            raise UserError(f"policy 'random' has no order '{order}'", closest(order, ORDERS))
        self.order = order

    def score(self, context: Context) -> Tensor:
        """Uniform random numbers (N, G)."""
        images, groups = context.asked.shape
        rows = images if self.order == "per_sample" else 1
        # Double precision: ties are as good as impossible, so all orders are equally likely.
        scores = torch.rand(rows, groups, generator=context.generator, dtype=torch.float64)
        return scores.expand(images, groups)

    @property
    def choices(self) -> dict[str, Any]:
        """As for all policies, and who shares an order."""
        return {**super().choices, "order": self.order}


@POLICIES.register("uncertainty")
class Uncertainty(Policy):
    """The group the model is least sure of first (Shin et al., A Closer Look at the Intervention Procedure, ICML 2023).

    The score of a categorical group is the entropy of its members' probabilities, -sum p ln p; that of any other unit
    is the binary entropy -p ln p - (1 - p) ln(1 - p), in nats.

    Args:
        group: how a group of several yes/no units is scored from theirs: "max" or "mean".
        recompute: score again after each answer. Where answers leave the probabilities of other units alone, as in a
            plain bottleneck, this changes nothing and costs more.
    """

    needs: ClassVar[dict[str, str]] = {"probability": "native"}

    def __init__(self, group: Literal["max", "mean"] = "max", recompute: bool = False) -> None:
        if group not in REDUCTIONS:
            raise UserError(f"policy 'uncertainty' cannot reduce a group by '{group}'", closest(group, REDUCTIONS))
        self.group, self.static = group, not recompute

    def score(self, context: Context) -> Tensor:
        """Entropies (N, G) float64."""
        probabilities = context.evidence.probabilities
        if probabilities is None:
            raise UserError("this evidence holds no probabilities", "choose another policy, such as 'random'")
        return group_entropy(probabilities, context.units, self.group)

    @property
    def choices(self) -> dict[str, Any]:
        """As for all policies, and the score of a group."""
        return {**super().choices, "score": "entropy in nats", "group": self.group}


def group_entropy(probabilities: Tensor, units: UnitTable, reduce: str = "max") -> Tensor:
    """Entropy of each group, in nats.

    Args:
        probabilities: (N, M).
        units: the M units in G groups.
        reduce: "max" or "mean" over the members of a group that is not categorical.

    Returns:
        (N, G) float64.
    """
    p = probabilities.double()
    inside = torch.special.entr(p)
    group_of = units.group_of.to(p.device)
    categorical = torch.tensor([g.categorical for g in units.groups], device=p.device)
    shape = (len(p), len(units.groups))
    joint = p.new_zeros(shape).index_add(1, group_of, inside)
    binary = inside + torch.special.entr(1 - p)
    how = {"max": "amax", "mean": "mean"}[reduce]
    single = p.new_zeros(shape).scatter_reduce(1, group_of.expand_as(p), binary, how, include_self=False)
    return torch.where(categorical, joint, single)
