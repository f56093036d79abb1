"""Interpretable convolutional filters: each responds at one place of the image, and is to stand for one part."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.backbones.base import Backbone
from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.intervention import Intervention
from vitrarium.models.layers.processes import summed
from vitrarium.models.layers.reduction import REDUCTIONS, reduce_map, shift_to
from vitrarium.models.layers.templates import PLACES, find_places, masks, refuse_small, spreads
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

MASKS = (*PLACES, "none")

WHOLE, PLACE = "whole", "place"
"""Where in ``Evidence.state``, in training, the maps without masks (B, M, h, w) and their places (B, M) lie."""

STEEPEST, FLATTEST = 6.0, 3.0


@EVIDENCE.register("part_filters")
class PartFilters(EvidenceLayer):
    """M filters whose map is masked around one place (Zhang, Wu & Zhu, CVPR 2018).

    With x >= 0 the map of a filter, mu its place and T_mu the template of that place
    (:mod:`~vitrarium.models.layers.templates`):

        x_masked = max(x o T_mu, 0) / tau,       a_m = reduction of x_masked over places

    Division by tau only sets the scale: the largest value of a mask is 1. What makes a filter look for one part is the
    loss term ``filter_information``; the mask keeps what it says elsewhere from counting. Any map is made 0 or more
    first, so the layer may stand on a normalisation as well as on a residual block.

    A box where a filter may not look takes away what it says there; it does not look for the second best place.

    Args:
        channels: D of the backbone's map.
        classes: C.
        backbone: for messages.
        filters: M, a 3x3 convolution and a ReLU of its own on the backbone's map; None = the channels of the map.
        mask: mu is the strongest place ("argmax", the paper) or the rounded centre of mass ("centre_of_mass", the
            released code); "none" = no masks, the same network without them.
        steepness: beta of the templates.
        learn_steepness: a beta for each filter, as the released code has it: it follows clip(6 / spread, 3, 6), with
            the spread of the filter's map (1 from the centre to the border of the image) averaged over images, as a
            running average that begins with ``steepness``.
        momentum: of that average.
        reduction: how a masked map becomes one number: "mean", "max", "positive_mean" or "pool_max".

    Attributes:
        class_of: (M,) int64, the class whose images a filter responds to most, as the term ``filter_information`` has
            found it; -1 = not known. It says nothing about the readout.

    Raises:
        UserError: unknown words, numbers out of range.
    """

    gives: frozenset[str] = frozenset({"vector", "maps", "filters"})
    class_of: Tensor
    beta: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        backbone: Backbone | None = None,
        filters: int | None = None,
        mask: Literal["argmax", "centre_of_mass", "none"] = "argmax",
        steepness: float = 4.0,
        learn_steepness: bool = False,
        momentum: float = 0.05,
        reduction: Literal["mean", "max", "positive_mean", "pool_max"] = "mean",
    ) -> None:
        super().__init__()
        if mask not in MASKS:
            raise UserError(f"evidence 'part_filters' has no mask '{mask}'", closest(mask, MASKS))
        if reduction not in REDUCTIONS:
            raise UserError(f"a map cannot be reduced by '{reduction}'", closest(reduction, REDUCTIONS))
        if (filters is not None and filters < 1) or steepness <= 0 or not 0 < momentum <= 1:
            raise UserError(
                f"part_filters with filters={filters}, steepness={steepness}, momentum={momentum}",
                "give at least 1 filter or none, a steepness above 0 and a momentum in (0, 1]",
            )
        self.classes, self.mask, self.steepness, self.reduction = classes, mask, float(steepness), reduction
        self.learn_steepness, self.momentum = learn_steepness, momentum
        self.cut = "" if backbone is None else backbone.cut
        size = channels if filters is None else filters
        self.convolution: nn.Module = nn.Identity() if filters is None else _convolution(channels, filters)
        self.maps_average_to_activations = reduction == "mean"
        self.register_buffer("class_of", torch.full((size,), -1))
        if learn_steepness:
            self.register_buffer("beta", torch.full((size,), float(steepness)))
        self.set_units(UnitTable.anonymous("filter", size))

    @property
    def betas(self) -> float | Tensor:
        """How steeply templates fall: one number, or (M,) of the filters."""
        return self.beta if self.learn_steepness else self.steepness

    def unit_owners(self) -> Tensor:
        """(M, C) bool: the class of each filter; all of them while it is not known."""
        own = nn.functional.one_hot(self.class_of.clamp_min(0), self.classes).bool()
        return own | (self.class_of < 0)[:, None]

    def respond(self, features: Features) -> Tensor:
        """(B, D, h, w) to the maps of the filters without masks (B, M, h, w), 0 or more.

        Raises:
            UserError: a map of less than 2 x 2 places.
        """
        refuse_small(features.map.shape[2], features.map.shape[3], self.cut)
        return nn.functional.relu(self.convolution(features.map))

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to masked maps (B, M, h, w) and one number for each, (B, M).

        In training ``state["whole"]`` are the maps without masks and ``state["place"]`` (B, M) their places, for
        the term ``filter_information``.
        """
        whole = self.respond(features)
        places = find_places(whole, "argmax" if self.mask == "none" else self.mask)
        if self.training and self.learn_steepness:
            self._follow(whole)
        maps = whole
        if self.mask != "none":
            maps = whole * masks(places, self.betas, (whole.shape[2], whole.shape[3])).to(whole.dtype)
        activations = reduce_map(maps, self.reduction)
        state = {WHOLE: whole, PLACE: places} if self.training else {}
        evidence = Evidence(activations, activations, maps=maps, state=state)
        return replace(evidence, vector=self.assemble(activations, evidence))

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations; a filter that was switched off says nothing."""
        return activations.masked_fill(~self.alive, 0.0)

    def intervene(self, evidence: Evidence, do: Intervention) -> Evidence:
        """A value shifts the masked map of a filter until its reduction has it, everywhere alike."""
        changed = super().intervene(evidence, do)
        if self.maps_average_to_activations or changed.maps is None:
            return changed
        mask = do.widened(changed.activations.shape[1]).mask
        shift = shift_to(changed.maps, self.reduction, changed.activations)
        shift = torch.where(mask, shift, torch.zeros_like(shift))
        return replace(changed, maps=changed.maps + shift[:, :, None, None])

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """What the filters say inside of the region (B, M or 1, h, w) alone; outside they see nothing."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        maps = evidence.maps * region.to(evidence.maps)
        activations = reduce_map(maps, self.reduction)
        changed = replace(evidence, activations=activations, maps=maps)
        return replace(changed, vector=self.assemble(activations, changed))

    @torch.no_grad()
    def _follow(self, whole: Tensor) -> None:
        """Let the steepness of each filter follow how its map spreads, over the images of all processes."""
        seen = (whole.amax((2, 3)) > 0).float()
        sums = summed(torch.stack([(spreads(whole) * seen).sum(0), seen.sum(0)]))
        # The released rule, clip(3 / spread, 1.5, 3), is for coordinates from -1 to 1.
        target = (6 / (sums[0] / sums[1].clamp_min(1)).clamp_min(1e-6)).clamp(FLATTEST, STEEPEST)
        self.beta.lerp_(torch.where(sums[1] > 0, target, self.beta), self.momentum)


def _convolution(channels: int, filters: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, filters, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
