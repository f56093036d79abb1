"""Weights of the readout that lose a little after every step."""

from __future__ import annotations

import math
from typing import Any

from vitrarium.configs.errors import UserError
from vitrarium.models.readouts.base import Readout
from vitrarium.train.events.base import EVENTS, Event, Moment


@EVENTS.register("shrink")
class Shrink(Event):
    """W <- max(W - amount, 0) on the readout after each optimiser step (PIP-Net: Nauta et al., CVPR 2023).

    A weight that the loss does not hold up reaches 0 within 1 / ``amount`` steps or so and stays there, which is what
    makes the readout sparse. The paper takes 1e-3 over tens of thousands of steps; short trainings need more.

    It is an event of training: evaluating a model never changes it (the released evaluation takes the amount off at
    every batch that it measures).

    Args:
        amount: what each weight loses per step, above 0.

    Raises:
        UserError: an amount that is not above 0.
    """

    default_when = "step"

    def __init__(self, amount: float = 1e-3) -> None:
        if not 0 < amount < math.inf:
            raise UserError(f"amount={amount} of event 'shrink'", "give a small number above 0, such as 0.001")
        self.amount = amount

    def check(self, model: Any) -> None:
        """Refuse a readout whose weights may be negative."""
        shrinks(model.readout)

    def run(self, moment: Moment) -> None:
        """Once, in place."""
        shrinks(moment.model.readout)(self.amount)


def shrinks(readout: Readout) -> Any:
    """The readout's own way to shrink.

    Raises:
        UserError: it has none.
    """
    method = getattr(readout, "shrink", None)
    if method is None:
        raise UserError(
            f"event 'shrink' needs a readout with weights of at least 0, not {type(readout).__name__}",
            "set model.readout.name=nonnegative, or leave the event out",
        )
    return method
