"""Events on the slots of a pool of prototypes: from a soft to a hard choice."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.prototype_pool import PrototypePool
from vitrarium.train.events.base import EVENTS, Event, Moment

HARD = 1e4
"""Sharpness at which the noise of a Gumbel-softmax no longer changes a one-hot choice."""


@EVENTS.register("sharpen_slots")
class SharpenSlots(Event):
    """Raise the sharpness of the slots while the stage proceeds (ProtoPool: Rymarczyk et al., ECCV 2022).

        sharpness = highest sqrt(min(progress / until, 1)),   progress = share of the stage that is done

    The released code writes 1.3 sqrt(((1000 / 1.3)^2 / T) t) at epoch t of T, which is the same with highest = 1000.

    Args:
        highest: sharpness in the end.
        until: share of the stage after which it stays there.
    """

    default_when = "step"

    def __init__(self, highest: float = 1000.0, until: float = 0.5) -> None:
        if highest <= 0 or not 0 < until <= 1:
            raise UserError(
                f"highest={highest}, until={until}", "give a sharpness above 0 and a share of the stage in (0, 1]"
            )
        self.highest, self.until = highest, until

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence without slots."""
        _pool(model, "sharpen_slots")

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """Set the buffer."""
        pool = _pool(moment.model, "sharpen_slots")
        pool.sharpness.fill_(self.highest * min(moment.progress / self.until, 1.0) ** 0.5)


@EVENTS.register("assign_slots")
class AssignSlots(Event):
    """Settle which prototype is in which slot, for good, and retire prototypes that no class has chosen.

    Every q becomes 1 at its largest entry and 0 elsewhere, so sharp that training further does not change it. What the
    model answers in evaluation stays the same.

    Args:
        retire: whether to mask prototypes that are in no slot; they could say nothing anyway, and have no class from
            whose images they could be projected.
    """

    default_when = "end"

    def __init__(self, retire: bool = True) -> None:
        self.retire = retire

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence without slots."""
        _pool(model, "assign_slots")

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """Overwrite q; logs how many prototypes are in use."""
        pool = _pool(moment.model, "assign_slots")
        pool.choice.copy_(functional.one_hot(pool.choice.argmax(2), pool.choice.shape[2]))
        pool.sharpness.fill_(HARD)
        used = pool.owners().any(1)
        if self.retire:
            pool.alive &= used
        moment.log("assign_slots/prototypes_in_use", float(used.sum()))


def _pool(model: TransparentClassifier, event: str) -> PrototypePool:
    if "slots" not in model.evidence.gives:
        raise UserError(
            f"event '{event}' needs evidence with slots, not {type(model.evidence).__name__}",
            "set model.evidence.name=prototype_pool, or leave the event out",
        )
    return cast(PrototypePool, model.evidence)
