"""Prototypes: units that are learnt patches, each looked for in every place of the image."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.prototypes.layer import PrototypeLayer, pool_best
from vitrarium.models.prototypes.matching import Kind, best_matches
from vitrarium.models.prototypes.similarity import (
    TINY,
    at_least_float32,
    columns,
    cosine_maps,
    distance_maps,
    exp_l2,
    log_l2,
    norm_maps,
    products,
    unit_patches,
    unit_rows,
)
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

SIMILARITIES = ("cosine", "log_l2", "exp_l2", "dot")
DISTANCES = ("log_l2", "exp_l2")
POOLS = ("max", "topk", "focal")
ADDONS = ("none", "plain", "sigmoid")


@EVIDENCE.register("prototypes")
class Prototypes(PrototypeLayer):
    """M prototypes p_m, each the most similar patch of the image: a_m = pool over places of s(x, p_m).

    With d = |x - p|^2 and k x k patches x of the latent map:

    - ``cosine``: s = <x, p> / (|x| |p|), in [-1, 1];
    - ``log_l2``: s = log((d + 1) / (d + epsilon)) (ProtoPNet: Chen et al., NeurIPS 2019);
    - ``exp_l2``: s = exp(-sqrt(d)), in (0, 1] (ProtoTree: Nauta et al., CVPR 2021);
    - ``dot``: s = <x, p / |p|> (TesNet: Wang et al., ICCV 2021).

    In evaluation distances are computed in double precision and rounded: a prototype that was set to a patch is at
    distance 0 from it there, and log-L2 is 9.21 and not 9.07.

    Args:
        channels: D of the backbone's map.
        classes: C.
        per_class: prototypes owned by each class.
        shared: number of prototypes that belong to no class; above 0 it takes the place of ``per_class``.
        similarity: s.
        width: E, channels of the latent map; None = D.
        addon: layers between backbone and prototypes: "none", "plain" (1x1 convolution, ReLU, 1x1 convolution) or
            "sigmoid" (the same and a sigmoid, which bounds distances); None = "sigmoid" for distances, else "plain".
        part: k, a prototype covers k x k places.
        pool: over places, see :func:`~vitrarium.models.prototypes.layer.pool_best`.
        top: places that "topk" averages.
        epsilon: of "log_l2".
        picture: size of the pictures kept of the patches that prototypes come from; 0 = none.

    Raises:
        UserError: unknown words, numbers out of range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        per_class: int = 10,
        shared: int = 0,
        similarity: Literal["cosine", "log_l2", "exp_l2", "dot"] = "cosine",
        width: int | None = None,
        addon: Literal["none", "plain", "sigmoid"] | None = None,
        part: int = 1,
        pool: Literal["max", "topk", "focal"] = "max",
        top: int = 3,
        epsilon: float = 1e-4,
        picture: int = 64,
    ) -> None:
        super().__init__()
        distances = similarity in DISTANCES
        addon = addon or ("sigmoid" if distances else "plain")
        for option, value, known in (
            ("similarity", similarity, SIMILARITIES),
            ("pool", pool, POOLS),
            ("addon", addon, ADDONS),
        ):
            if value not in known:
                raise UserError(f"evidence 'prototypes' has no {option} '{value}'", closest(value, known))
        width = channels if width is None else width
        if addon == "none" and width != channels:
            raise UserError(
                f"width={width} with addon=none and {channels} channels", "leave width out, or take an addon"
            )
        if min(shared or per_class, width, part, top) < 1 or epsilon <= 0 or picture < 0 or shared < 0:
            raise UserError(
                f"per_class={per_class}, shared={shared}, width={width}, part={part}, top={top}, epsilon={epsilon}",
                "give at least 1 prototype, channel and place, and an epsilon above 0",
            )
        self.kind, self.part, self.pool, self.top, self.epsilon = similarity, part, pool, top, epsilon
        self.shift_moves_activation = pool != "focal"
        self.addon = build_addon(addon, channels, width)
        count = shared or per_class * classes
        self.prototypes = nn.Parameter(torch.rand(count, width, part, part))
        if not distances:
            nn.init.normal_(self.prototypes)
        if similarity == "dot":
            # Of length 1, as TesNet's orthogonality asks; lengths do not change the similarity.
            with torch.no_grad():
                self.prototypes.copy_(unit_rows(self.prototypes).view_as(self.prototypes))
        units = UnitTable.anonymous("prototype", count)
        units.absent = torch.zeros(count)
        units.present = torch.full((count,), self.highest)
        owner = None if shared else torch.arange(classes).repeat_interleave(per_class)
        self.gives = (
            self.gives | (frozenset() if shared else {"owned"}) | ({"gates"} if similarity == "exp_l2" else set())
        )
        self.set_prototypes(units, classes, owner, picture)

    @property
    def highest(self) -> float:
        """The similarity of a prototype to itself; NaN where it has no upper bound."""
        bounds = {"cosine": 1.0, "log_l2": -math.log(self.epsilon), "exp_l2": 1.0}
        return bounds.get(self.kind, float("nan"))

    @property
    def vectors(self) -> Tensor:  # type: ignore[override]
        """(P, E, k, k)."""
        return self.prototypes

    def embed(self, features: Features) -> Tensor:
        """(B, D, h, w) to (B, E, h, w)."""
        if min(features.map.shape[-2:]) < self.part:
            raise UserError(
                f"a prototype covers {self.part} x {self.part} places, and the map has only "
                f"{features.map.shape[-2]} x {features.map.shape[-1]}",
                "lower model.evidence.part, cut the backbone earlier (backbone.cut), or use larger images",
            )
        return self.addon(features.map)

    def compare(self, latent: Tensor, which: Tensor | None = None) -> Tensor:
        """(B, E, h, w) to what similarities are made of (B, P, h', w'): squared distances, cosines, or products.

        Of prototypes ``which`` (n,) int64 alone if they are given.
        """
        prototypes = self.prototypes if which is None else self.prototypes[which]
        if self.kind == "cosine":
            return cosine_maps(latent, prototypes)
        if self.kind == "dot":
            (patches,) = at_least_float32(columns(latent, self.part))
            with torch.autocast(latent.device.type, enabled=False):
                return products(patches, unit_rows(prototypes))
        return distance_maps(latent, prototypes, exact=not self.training)

    def respond(self, compared: Tensor) -> Tensor:
        """What :meth:`compare` gives, or some of it, to similarities of the same shape."""
        if self.kind == "log_l2":
            return log_l2(compared, self.epsilon)
        return exp_l2(compared) if self.kind == "exp_l2" else compared

    def nearest(self, compared: Tensor, latent: Tensor) -> Tensor:
        """(B, P) distance of the nearest place: squared; 1 - cosine for "cosine" and "dot", whose length says nothing.

        Args:
            compared: (B, P, h', w') from :meth:`compare`.
            latent: (B, E, h, w).
        """
        if self.kind in DISTANCES:
            return compared.flatten(2).amin(2)
        if self.kind == "dot":
            compared = compared / norm_maps(latent, self.part).clamp_min(TINY**2).sqrt()
        return 1 - compared.flatten(2).amax(2)

    def similarity(self, latent: Tensor) -> Tensor:
        """(B, E, h, w) to (B, P, h', w')."""
        return self.respond(self.compare(latent))

    def similarity_of(self, latent: Tensor, which: Tensor) -> Tensor:
        """(B, E, h, w) to (B, n, h', w'); the other prototypes are not compared."""
        return self.respond(self.compare(latent, which))

    def reduce(self, maps: Tensor, region: Tensor | None = None) -> Tensor:
        """(B, M, h', w') to (B, M)."""
        return pool_best(maps, region, self.pool, self.top, self.silent)

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to the similarities of M prototypes; ``state["distance"]`` (B, M) is what cluster terms read."""
        maps, activations, distance = self.match(self.embed(features))
        evidence = Evidence(activations, activations, maps=maps, state={"distance": distance})
        evidence.vector = self.assemble(activations, evidence)
        return evidence

    def match(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, E, h, w) to maps (B, P, h', w'), what :func:`pool_best` makes of them (B, P), nearest distances (B, P).

        In training with "max" the gradient looks at the best places only, see
        :mod:`~vitrarium.models.prototypes.matching`.
        """
        if not self.training or self.pool != "max" or self.kind == "dot":
            compared = self.compare(latent)
            maps = self.respond(compared)
            return maps, pool_best(maps, None, self.pool, self.top, self.silent), self.nearest(compared, latent)
        if self.kind == "cosine":
            maps, best = best_matches(unit_patches(latent, self.part), unit_rows(self.prototypes), "product")
            return maps, best, 1 - best
        kind: Kind = "log_l2" if self.kind == "log_l2" else "exp_l2"
        maps, best = best_matches(columns(latent, self.part), self.prototypes.flatten(1), kind, self.epsilon)
        return maps, self.respond(best), best

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations; a pruned prototype says nothing."""
        return activations.masked_fill(~self.alive, 0.0)


def build_addon(kind: str, channels: int, width: int) -> nn.Module:
    """The layers between backbone and prototypes: "none", "plain" or "sigmoid"."""
    if kind == "none":
        return nn.Identity()
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    if kind == "sigmoid":
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers)
