"""The health report while training goes on."""

from __future__ import annotations

from dataclasses import fields

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.health import Limits, check_health
from vitrarium.models.prototypes.nearest import prototype_layer
from vitrarium.train.events.base import EVENTS, Event, Moment


@EVENTS.register("health")
class HealthReport(Event):
    """Log how many units are dead, duplicate, background, leaking, at the border, noisy or stale.

    It changes nothing. ``vitrarium prototypes RUN`` shows the same findings with pictures and cures.

    Args:
        neighbours: nearest images that are looked at.
        limits: where a finding begins, see :class:`~vitrarium.models.prototypes.health.Limits`.

    Raises:
        UserError: an unknown limit, a model without prototypes.
    """

    default_when = "end"

    def __init__(self, neighbours: int = 10, limits: dict[str, float] | None = None) -> None:
        known = [f.name for f in fields(Limits)]
        for name in limits or {}:
            if name not in known:
                raise UserError(f"event 'health' has no limit '{name}'", closest(name, known))
        if neighbours < 1:
            raise UserError(f"neighbours={neighbours}", "give at least 1")
        self.neighbours, self.limits = neighbours, Limits(**(limits or {}))

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a model without prototypes."""
        prototype_layer(model)

    def run(self, moment: Moment) -> None:
        """One pass over the training split, two over the validation split."""
        health = check_health(
            moment.model, moment.loaders("train"), moment.loaders("val"), self.limits, self.neighbours, moment.seed
        )
        moment.log("health/findings", len(health.findings))
        for kind, count in health.counts().items():
            moment.log(f"health/{kind.replace(' ', '_')}", count)
