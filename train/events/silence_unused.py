"""Units that no training image shows are silenced."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.eval.metrics.parts.sighting import used_units
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.train.events.base import EVENTS, Event, Moment

logger = logging.getLogger(__name__)


@EVENTS.register("silence_unused")
class SilenceUnused(Event):
    """Switch off gates that are open on none of the clean training images (PIP-Net: Nauta et al., CVPR 2023).

    Nobody could be shown what such a prototype stands for, so it may not speak: it counts as pruned (``alive`` is
    False) and its weights in the readout become 0. If no unit at all was seen, training has taught them nothing yet;
    all stay as they are, with a warning.

    Logs how many were silenced, and how many are left with a weight above 0 to some class.

    Args:
        threshold: what a unit must exceed on one image; None = what stands for "absent", which in evaluation is what
            units below a layer's own threshold have.
    """

    default_when = "end"

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise UserError(f"threshold={threshold} of event 'silence_unused'", "give a number from 0 to below 1")
        self.threshold = threshold

    def check(self, model: TransparentClassifier) -> None:
        """Refuse units that are no gates: a low similarity is not absence."""
        if "gates" not in model.evidence.gives:
            raise UserError(
                f"event 'silence_unused' needs units between 0 and 1, and {type(model.evidence).__name__} has others",
                "choose evidence 'softmax_channels', or leave the event out",
            )

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """One pass over the training split."""
        layer, readout = moment.model.evidence, moment.model.readout
        unused = layer.alive & ~self._seen(moment)
        if bool((unused == layer.alive).all()):
            logger.warning("no unit exceeds its threshold on any training image: none was silenced")
            unused = torch.zeros_like(unused)
        layer.alive &= ~unused
        owner = layer.unit_of
        readout.drop_entries(unused[owner.clamp_min(0)] & (owner >= 0))
        moment.log("silence_unused/silenced", float(unused.sum()))
        moment.log("silence_unused/used", float(used_units(moment.model).sum()))

    def _seen(self, moment: Moment) -> Tensor:
        """(M,) bool: units above the threshold on some image."""
        model = moment.model
        level: Any = model.evidence.absent if self.threshold is None else self.threshold
        seen = torch.zeros_like(model.evidence.alive)
        with evaluating(model):
            for batch in moment.loaders("train"):
                seen |= (model.observe(model.look(batch.to(seen.device))).activations > level).any(0)
        return seen
