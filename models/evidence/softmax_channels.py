"""Channels as prototypes: at each place of the image one of them is to win."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.prototypes.layer import PrototypeLayer, pool_best
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable


@EVIDENCE.register("softmax_channels")
class SoftmaxChannels(PrototypeLayer):
    """M prototypes that are the channels themselves (PIP-Net: Nauta et al., CVPR 2023).

    With z the map, or a 1x1 convolution of it:

        s_m(place) = softmax over channels of z(place),    a_m = max over places of s_m(place)

    In evaluation a prototype that is nowhere at least ``threshold`` is absent: a_m = 0. That is the only difference
    between evaluation and training, and no mode ever writes to the layer. There are no prototype vectors to project;
    what a prototype means is learnt from two views of each image that must agree (term ``align``).

    A threshold is a step, so a number added to a map is not a number added to the activation: a value set on a unit
    leaves its map as it was.

    Args:
        channels: D of the backbone's map.
        classes: C.
        count: M, made by a 1x1 convolution; None = D, the channels of the map as they are.
        threshold: in [0, 1); 0 keeps every prototype.
        picture: size of the pictures kept of the patches that stand for a prototype; 0 = none.

    Raises:
        UserError: numbers out of range.
    """

    gives = PrototypeLayer.gives | {"gates", "shares"}
    shift_moves_activation = False

    def __init__(
        self,
        channels: int,
        classes: int,
        count: int | None = None,
        threshold: float = 0.1,
        picture: int = 64,
    ) -> None:
        super().__init__()
        size = channels if count is None else count
        if size < 2 or not 0 <= threshold < 1 or picture < 0:
            raise UserError(
                f"count={size}, threshold={threshold}, picture={picture}",
                "give at least 2 prototypes, a threshold from 0 to below 1, and a picture size of 0 or more",
            )
        self.threshold = threshold
        self.mix: nn.Module = nn.Identity() if count is None else nn.Conv2d(channels, count, 1)
        units = UnitTable.anonymous("prototype", size)
        units.absent, units.present = torch.zeros(size), torch.ones(size)
        self.set_prototypes(units, classes, picture=picture)

    def embed(self, features: Features) -> Tensor:
        """(B, D, h, w) to the scores (B, M, h, w) of which the softmax is taken."""
        return self.mix(features.map)

    def similarity(self, latent: Tensor) -> Tensor:
        """(B, M, h, w) to the shares (B, M, h, w) of the prototypes, which sum to 1 at each place."""
        (latent,) = at_least_float32(latent)
        return latent.softmax(1)

    def reduce(self, maps: Tensor, region: Tensor | None = None) -> Tensor:
        """(B, M, h, w) to (B, M) in [0, 1]; in evaluation 0 below the threshold."""
        pooled = pool_best(maps, region, "max", 1, self.silent)
        if self.training or not self.threshold:
            return pooled
        return pooled.masked_fill(pooled < self.threshold, 0.0)

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to the presence of M prototypes."""
        maps = self.similarity(self.embed(features))
        activations = self.reduce(maps)
        evidence = Evidence(activations, activations, maps=maps)
        evidence.vector = self.assemble(activations, evidence)
        return evidence

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations; a prototype that is silenced says nothing."""
        return activations.masked_fill(~self.alive, 0.0)
