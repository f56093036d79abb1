"""The contract of evidence layers whose units are looked for in patches of the image."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.intervention import Intervention
from vitrarium.models.prototypes.sources import Sources
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable


class PrototypeLayer(EvidenceLayer):
    """Evidence from patches: P prototypes, each with a similarity map, reduced to the M units.

    Projection, drift, boxes, health, metrics, edits and explanations work on any such layer through this contract.
    A subclass calls :meth:`set_prototypes` once and implements :meth:`embed`, :meth:`similarity`, :meth:`reduce`,
    :meth:`forward` and :meth:`assemble`.

    Attributes:
        vectors: (P, E, k, k) the prototypes as learnt, or None where units are channels and have none.
        part: k, a prototype has k x k parts; a patch is k x k places of the map, unless its parts move.
        wanders: its parts move: they may look anywhere in the image, and the similarity map is as large as the latent.
        classes: C.
        class_of: (P,) int64 buffer: the class that owns a prototype, -1 where it is shared.
        unit_of_prototype: (P,) int64 buffer: the unit that a prototype belongs to; usually P = M and this is 0 .. M-1.
        sources: where each prototype comes from.
        shift_moves_activation: adding a number to a unit's map adds it to its activation (true for max and top-k
            pooling), so a value set on the unit shifts the map with it.
        silent: the activation of a unit that may look nowhere.
    """

    gives: frozenset[str] = frozenset({"vector", "maps", "prototypes"})
    vectors: Tensor | None = None
    part: int = 1
    wanders: bool = False
    classes: int
    class_of: Tensor
    unit_of_prototype: Tensor
    sources: Sources
    shift_moves_activation: bool = True
    silent: float = 0.0

    def set_prototypes(
        self,
        units: UnitTable,
        classes: int,
        class_of: Tensor | None = None,
        picture: int = 64,
        unit_of: Tensor | None = None,
        unit_of_prototype: Tensor | None = None,
    ) -> None:
        """File units and prototypes.

        Args:
            units: the M units.
            classes: C.
            class_of: (P,) int64 owner of each prototype; None = all shared.
            picture: size of the pictures kept of the sources, 0 = none.
            unit_of: as in :meth:`set_units`.
            unit_of_prototype: (P,) int64; None = one prototype per unit.
        """
        self.set_units(units, unit_of)
        self.classes = classes
        owner = torch.arange(len(units)) if unit_of_prototype is None else unit_of_prototype
        self.register_buffer("unit_of_prototype", owner, persistent=False)
        self.register_buffer("class_of", torch.full((len(owner),), -1) if class_of is None else class_of)
        self.sources = Sources(len(owner), picture)

    @abstractmethod
    def embed(self, features: Features) -> Tensor:
        """Features (B, D, h, w) to the latent map (B, E, h, w) in which prototypes live."""

    @abstractmethod
    def similarity(self, latent: Tensor) -> Tensor:
        """Latent (B, E, h, w) to the similarity maps (B, P, h', w') of the prototypes; higher is more alike."""

    def similarity_of(self, latent: Tensor, which: Tensor) -> Tensor:
        """The maps (B, n, h', w') of prototypes ``which`` (n,) int64 alone; a layer that can spare the rest does."""
        return self.similarity(latent)[:, which]

    @abstractmethod
    def reduce(self, maps: Tensor, region: Tensor | None = None) -> Tensor:
        """Maps (B, P, h', w') of the prototypes to activations (B, M); ``region`` (B, 1 or M, h', w'), 0 = banned."""

    def patches(self, latent: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """The latent patches at some places.

        Args:
            latent: (B, E, h, w).
            rows: (n,) int64, which image.
            places: (n, 2) int64, row and column of the patch in the similarity map.

        Returns:
            (n, E, k, k), what a prototype would be set to by projecting it there.
        """
        windows = latent.unfold(2, self.part, 1).unfold(3, self.part, 1)
        return windows[rows, :, places[:, 0], places[:, 1]]

    def owners(self) -> Tensor:
        """(P, C) bool: from images of which classes a prototype may be taken; shared ones from all."""
        owned = torch.nn.functional.one_hot(self.class_of.clamp_min(0), self.classes).bool()
        return owned | (self.class_of < 0)[:, None]

    def unit_owners(self) -> Tensor:
        """(M, C) bool: the classes that a unit belongs to, those of any of its prototypes."""
        counts = torch.zeros(len(self.alive), self.classes, dtype=torch.int64, device=self.class_of.device)
        return counts.index_add(0, self.unit_of_prototype, self.owners().long()) > 0

    @torch.no_grad()
    def place_prototypes(self, which: Tensor, patches: Tensor) -> None:
        """Set prototypes ``which`` (n,) int64 to ``patches`` (n, E, k, k), as projection does."""
        if self.vectors is None:
            raise UserError(f"{type(self).__name__} has no prototype vectors", "its units are channels: nothing to set")
        self.vectors[which] = patches.to(self.vectors)

    @property
    def class_of_entry(self) -> Tensor:
        """(E,) int64: the class that owns each entry of the vector, -1 where it is shared or no unit's."""
        owner = torch.full((len(self.alive) + 1,), -1, device=self.class_of.device)
        owner[self.unit_of_prototype] = self.class_of
        return owner[self.unit_of]

    @property
    def window(self) -> int:
        """How many places of the latent map a place of the similarity map takes, each way: h' = h - window + 1."""
        return 1 if self.wanders else self.part

    def alive_prototypes(self) -> Tensor:
        """(P,) bool, the prototypes of living units."""
        return self.alive[self.unit_of_prototype]

    def intervene(self, evidence: Evidence, do: Intervention) -> Evidence:
        """As every layer does; where a shift of the map is a shift of the activation, the map follows."""
        changed = super().intervene(evidence, do)
        if evidence.maps is None or changed.maps is None or not self.shift_moves_activation:
            return changed
        before = evidence if do.region is None else self.confine(evidence, do.region)
        mask = do.widened(changed.activations.shape[1]).mask
        shift = torch.where(mask, changed.activations - before.activations, torch.zeros_like(before.activations))
        return replace(changed, maps=changed.maps + shift[:, :, None, None])

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """The units when they may only look where ``region`` is above 1/2; a unit that may look nowhere is silent."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        activations = self.reduce(evidence.maps, region)
        changed = replace(evidence, activations=activations)
        return replace(changed, vector=self.assemble(activations, changed))


def pool_best(maps: Tensor, region: Tensor | None, pool: str, top: int, silent: float) -> Tensor:
    """Reduce similarity maps over space.

    - ``max``: the best place;
    - ``topk``: the mean of the ``top`` best places;
    - ``focal``: the best place minus the mean over places (Rymarczyk et al., ECCV 2022), which rewards peaked maps.

    Banned places are filled, not multiplied: a product with 0 would win over negative similarities.

    Args:
        maps: (B, M, h, w).
        region: (B, 1 or M, h, w), above 1/2 = may look; None = everywhere.
        pool: "max", "topk" or "focal".
        top: of "topk".
        silent: given where no place may be looked at.

    Returns:
        (B, M).
    """
    if region is None:
        flat = maps.flatten(2)
        if pool == "topk":
            return flat.topk(min(top, flat.shape[2]), 2).values.mean(2)
        return flat.amax(2) - flat.mean(2) if pool == "focal" else flat.amax(2)
    allowed = (region > 0.5).expand_as(maps).flatten(2)
    count = allowed.sum(2)
    flat = maps.flatten(2)
    filled = flat.masked_fill(~allowed, float("-inf"))
    if pool == "topk":
        ordered = filled.topk(min(top, filled.shape[2]), 2).values
        inside = ordered > float("-inf")
        pooled = ordered.masked_fill(~inside, 0.0).sum(2) / inside.sum(2).clamp_min(1)
    else:
        pooled = filled.amax(2)
        if pool == "focal":
            pooled = pooled - flat.masked_fill(~allowed, 0.0).sum(2) / count.clamp_min(1)
    return torch.where(count > 0, pooled, torch.full_like(pooled, silent))
