"""Which activation means "absent" and which "present", for units that are not probabilities."""

from __future__ import annotations

import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.modes import evaluating
from vitrarium.train.events.base import EVENTS, Event, Moment


@EVENTS.register("calibrate")
class Calibrate(Event):
    """Set the "absent" and "present" values of unbounded units to quantiles of their TRAINING activations.

    Koh et al. (ICML 2020) correct logit bottlenecks with the 5th and 95th percentile; their released code takes them
    from the test split, this takes them from the clean training split and saves them with the model.

    Args:
        low: quantile that stands for absent.
        high: quantile that stands for present.
    """

    default_when = "end"
    calibrates = True

    def __init__(self, low: float = 0.05, high: float = 0.95) -> None:
        if not 0 <= low < high <= 1:
            raise UserError(f"quantiles low={low}, high={high}", "give 0 <= low < high <= 1")
        self.low, self.high = low, high

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """One pass over the training split; memory is 4 bytes per image and unit."""
        model = moment.model
        device = next(model.parameters()).device
        with evaluating(model):
            seen = [
                model.observe(model.look(batch.to(device))).activations.float().cpu()
                for batch in moment.loaders("train")
            ]
        # Sorting is exact at any size, unlike torch.quantile, which refuses long inputs.
        ordered = torch.cat(seen).sort(0).values
        for name, level in (("absent", self.low), ("present", self.high)):
            buffer: torch.Tensor = getattr(model.evidence, name)
            buffer.copy_(_quantile(ordered, level))


def _quantile(ordered: torch.Tensor, level: float) -> torch.Tensor:
    """Linear interpolation between the order statistics (N, M) -> (M,)."""
    place = level * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
