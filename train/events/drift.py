"""How far prototypes have moved from the patches that their pictures show."""

from __future__ import annotations

import torch

from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.drift import record_drift
from vitrarium.models.prototypes.nearest import prototype_layer
from vitrarium.train.events.base import EVENTS, Event, Moment


@EVENTS.register("drift")
class Drift(Event):
    """The drift meter: embed the source patch x of each prototype p anew and log |p - x| / |p|.

    Logs ``drift/mean`` and ``drift/max`` over living prototypes that have a source, and files the drift of each with
    the sources. Before the first projection there are no sources, and nothing is logged. It draws nothing and changes
    no weight.
    """

    default_when = "epoch"

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence without prototypes."""
        prototype_layer(model)

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """One pass over the source images alone."""
        layer = prototype_layer(moment.model)
        if not bool(layer.sources.known.any()):
            return
        drift = record_drift(moment.model, moment.split("train"))
        shown = drift[layer.alive_prototypes() & layer.sources.known]
        if len(shown):
            moment.log("drift/mean", float(shown.mean()))
            moment.log("drift/max", float(shown.max()))
