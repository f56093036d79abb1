"""A pool of prototypes that classes share: each class has slots, and learns which prototype fills each of them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.evidence.prototypes import Prototypes
from vitrarium.models.prototypes.layer import pool_best
from vitrarium.models.types import Evidence, Features

MIXES = ("similarities", "distances")


@EVIDENCE.register("prototype_pool")
class PrototypePool(Prototypes):
    """M prototypes for all classes; each class chooses K of them (ProtoPool: Rymarczyk et al., ECCV 2022).

    The activation of a prototype is its focal similarity, which rewards maps with a peak: with z the patches of x,

        a_m = max over z of s(z, p_m)  -  mean over z of s(z, p_m)

    Slot k of class c holds numbers q[c, k] (M,), and while the layer learns, an assignment drawn by Gumbel-softmax:

        w[c, k] = softmax over m of (sharpness q[c, k, m] + g_m) / tau,   g_m ~ Gumbel(0, 1)
        v[c, k] = sum over m of w[c, k, m] a_m

    ``sharpness`` is a buffer that the event ``sharpen_slots`` raises until each slot holds one prototype. In evaluation
    there is no noise (the released code draws it even when testing): a slot holds the prototype with the largest q, and
    its value is that prototype's activation. The vector (B, C K) is the slots, class by class.

    Args:
        channels: D of the backbone's map.
        classes: C.
        size: M; None = as many as classes (the paper has 202 for 200), but at least 2 K.
        slots: K, per class.
        similarity: s, as in :class:`~vitrarium.models.evidence.prototypes.Prototypes`.
        mix: "similarities" as above, or "distances" as released: the distances of each prototype (nearest d, and mean d
            over z) are mixed first, and v = s(mixed nearest d) - s(mixed mean d); a_m is that of an assignment to m
            alone. For similarities that are linear in their distance both are the same.
        tau: temperature of the softmax.
        width: E, channels of the latent map; None = D.
        addon: layers between backbone and prototypes, as in ``prototypes``.
        part: k, a prototype covers k x k places.
        epsilon: of "log_l2".
        picture: size of the pictures kept of the patches that prototypes come from; 0 = none.

    Attributes:
        choice: (C, K, M) q.
        sharpness: () buffer.

    Raises:
        UserError: unknown words, numbers out of range.
    """

    sharpness: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        size: int | None = None,
        slots: int = 10,
        similarity: Literal["cosine", "log_l2", "exp_l2", "dot"] = "cosine",
        mix: Literal["similarities", "distances"] = "similarities",
        tau: float = 0.5,
        width: int | None = None,
        addon: Literal["none", "plain", "sigmoid"] | None = None,
        part: int = 1,
        epsilon: float = 1e-4,
        picture: int = 64,
    ) -> None:
        size = max(classes, 2 * slots) if size is None else size
        if mix not in MIXES:
            raise UserError(f"evidence 'prototype_pool' has no mix '{mix}'", closest(mix, MIXES))
        if min(size, slots) < 1 or tau <= 0:
            raise UserError(
                f"size={size}, slots={slots}, tau={tau}", "give at least 1 prototype and slot, and a tau above 0"
            )
        if mix == "distances" and similarity not in ("log_l2", "exp_l2"):
            raise UserError(
                f"mix=distances with similarity={similarity}, which is linear in its distance",
                "leave mix out (the result is the same), or choose similarity=log_l2",
            )
        super().__init__(
            channels, classes, shared=size, similarity=similarity, width=width, addon=addon, part=part, pool="focal",
            epsilon=epsilon, picture=picture,
        )  # fmt: skip
        self.mix, self.tau, self.vector_size = mix, tau, classes * slots
        # Glorot and Bengio's normal (AISTATS 2010) over slots and prototypes, as released.
        self.choice = nn.Parameter(torch.randn(classes, slots, size) * math.sqrt(2 / (slots * (size + classes))))
        self.register_buffer("sharpness", torch.ones(()))
        self.gives = self.gives | {"owned", "slots"}

    @property
    def unit_of(self) -> Tensor:
        """(C K,) int64: the prototype in each slot, as chosen now."""
        return self.choice.detach().argmax(2).flatten()

    @property
    def class_of_entry(self) -> Tensor:
        """(C K,) int64: slots belong to classes, whatever prototypes are in them."""
        return torch.arange(self.classes, device=self.choice.device).repeat_interleave(self.choice.shape[1])

    def owners(self) -> Tensor:
        """(M, C) bool: the classes that have a prototype in one of their slots; none for one that nobody chose."""
        chosen = torch.zeros(len(self.alive), self.classes, dtype=torch.bool, device=self.choice.device)
        chosen[self.unit_of, self.class_of_entry] = True
        return chosen

    def assignment(self) -> Tensor:
        """(C K, M) how much of each prototype is in each slot, rows sum to 1: drawn in training, else 0 or 1."""
        if not self.training:
            return functional.one_hot(self.unit_of, len(self.alive)).to(self.choice.dtype)
        logits = self.choice.flatten(0, 1) * self.sharpness
        noise = -torch.empty_like(logits).exponential_().log()
        return ((logits + noise) / self.tau).softmax(1)

    def reduce(self, maps: Tensor, region: Tensor | None = None) -> Tensor:
        """(B, M, h', w') to focal similarities (B, M)."""
        if self.mix == "similarities":
            return super().reduce(maps, region)
        best = pool_best(maps, region, "max", 1, self.silent)
        allowed = None if region is None else (region > 0.5).expand_as(maps)
        focal = best - self.respond(self._mean_distance(maps, allowed))
        return focal if allowed is None else torch.where(allowed.flatten(2).any(2), focal, self.silent)

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to M focal similarities and the slots (B, C K).

        ``state["distance"]`` (B, M) is what cluster terms read. In training ``state["slots"]`` (B, C K, M) is the
        assignment that was drawn, the same for all images.
        """
        latent = self.embed(features)
        compared = self.compare(latent)
        maps = self.respond(compared)
        activations = self.reduce(maps)
        state = {"distance": self.nearest(compared, latent)}
        if self.training:
            state["slots"] = self.assignment().expand(len(maps), -1, -1)
            state["seen"] = activations
            if self.mix == "distances":
                state["mean_distance"] = compared.mean((2, 3))
        evidence = Evidence(activations, activations, maps=maps, state=state)
        evidence.vector = self.assemble(activations, evidence)
        return evidence

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The slots (B, C K) filled with activations; a pruned prototype says nothing."""
        living = activations.masked_fill(~self.alive, 0.0)
        state = evidence.state
        if "slots" not in state:
            return living.index_select(1, self.unit_of)
        with torch.autocast(living.device.type, enabled=False):
            shares = state["slots"][0].T
            if self.mix == "similarities":
                return living @ shares
            nearest, mean = state["distance"] @ shares, state["mean_distance"] @ shares
            mixed = self.respond(nearest) - self.respond(mean)
            # What was set by hand or pruned changes a slot by as much of it as the slot holds.
            return mixed + (living - state["seen"]) @ shares

    def _mean_distance(self, maps: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, M) mean squared distance over the allowed places, from similarity maps (B, M, h', w')."""
        if self.kind == "log_l2":
            # s = log((d + 1) / (d + epsilon)) solved for d.
            distance = (1 - self.epsilon * maps.exp()) / torch.expm1(maps).clamp_min(1e-12)
        else:
            distance = maps.log().square()
        if allowed is None:
            return distance.mean((2, 3))
        return distance.masked_fill(~allowed, 0.0).sum((2, 3)) / allowed.sum((2, 3)).clamp_min(1)
