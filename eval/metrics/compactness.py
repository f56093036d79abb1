"""How much a person has to read to know why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.eval.collect import chunks, moved
from vitrarium.eval.metrics.base import METRICS, Measure
from vitrarium.models.classifier import TransparentClassifier, count_parameters
from vitrarium.models.modes import evaluating
from vitrarium.models.readouts.base import Contributions
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable

COUNTED = ("statements", "units")


def explanation_sizes(
    contributions: Contributions, units: UnitTable, share: float = 0.9, count: str = "statements"
) -> Tensor:
    """How many statements make up most of a decision, one number per image.

    The smallest n such that the n largest |contribution| to the class reach ``share`` of sum_m |unit m| + |remainder|.
    Where they cannot, because the remainder (which nobody can read) holds more than the rest, all statements count.

    Args:
        contributions: to the logit of the predicted class, (B, M).
        units: the M units.
        share: of the total absolute contribution, in (0, 1].
        count: "statements" takes a categorical group as one statement ("granule_type is round": exactly one member is
            true) with the sum of its members' contributions; "units" counts each unit.

    Returns:
        (B,) float64.
    """
    values = contributions.units.double()
    alive = units.alive.cpu()
    if count == "statements":
        owner = statement_of(units)
        values = values.new_zeros(len(values), int(owner.max()) + 1).index_add(1, owner, values)
        alive = torch.zeros(values.shape[1], dtype=torch.float32).index_add(0, owner, alive.float()) > 0
    sizes = values.abs().sort(1, descending=True).values
    total = sizes.sum(1) + contributions.remainder.double().abs()
    # One part in a billion less, so that rounding does not ask for one statement more.
    missing = sizes.cumsum(1) < (share * total * (1 - 1e-9))[:, None]
    return torch.where(total > 0, (missing.sum(1) + 1).clamp_max(int(alive.sum())), 0).double()


def statement_of(units: UnitTable) -> Tensor:
    """(M,) int64: members of a categorical group share a statement, every other unit is one of its own."""
    owner, statements = [], 0
    for group in units.groups:
        for position, _ in enumerate(group.members):
            owner.append(statements + (0 if group.categorical else position))
        statements += 1 if group.categorical else len(group.members)
    return torch.tensor(owner, dtype=torch.int64)


@METRICS.register("explanation_size")
class ExplanationSize(Measure):
    """Mean number of statements behind a decision; for a black box the statements are its channels.

    Args:
        share: of the total absolute contribution that must be covered, in (0, 1].
        count: "statements" (a categorical group is one) or "units".
    """

    fields = ("model", "evidence")
    category = "compactness"
    higher_is_better = False

    def __init__(self, share: float = 0.9, count: str = "statements") -> None:
        if not 0 < share <= 1:
            raise UserError(f"explanation_size with share={share}", "give a share in (0, 1]")
        if count not in COUNTED:
            raise UserError(f"explanation_size cannot count '{count}'", closest(count, COUNTED))
        self.share, self.count = share, count

    @property
    def choices(self) -> dict[str, Any]:
        """Share, and what counts as one."""
        counted = {"statements": "categorical groups and single units", "units": "units"}[self.count]
        return {"share": self.share, "counted": counted, "class": "predicted", "unreachable": "all count"}

    def each(self, model: TransparentClassifier, evidence: Evidence, logits: Tensor, chunk: int = 4096) -> Tensor:
        """The size for each of N images (N,) from cached evidence on the CPU."""
        device = model.evidence.alive.device
        units, sizes = model.evidence.units, []
        with evaluating(model):
            for rows in chunks(len(logits), chunk):
                given = model.contributions(moved(evidence[rows], device), logits[rows].argmax(-1).to(device))
                given = Contributions(given.units.cpu(), given.remainder.cpu(), given.bias.cpu(), given.additive)
                sizes.append(explanation_sizes(given, units, self.share, self.count))
        return torch.cat(sizes)


@METRICS.register("parameters")
class Parameters(Measure):
    """Number of learnable numbers the saved model holds; what only training needs is left out."""

    fields = ("model",)
    category = "cost"
    higher_is_better = False

    def of(self, model: TransparentClassifier) -> int:
        """The count for a model."""
        spare: list[nn.Module] = [model.auxiliary[name] for name in model.train_only if name in model.auxiliary]
        return count_parameters(model) - sum(count_parameters(module) for module in spare)
