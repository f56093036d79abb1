"""Prototypes that stand for annotated concepts: what a concept looks like is a patch of an image, not a direction."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.evidence.concepts import GroupSoftmax
from vitrarium.models.evidence.prototypes import Prototypes
from vitrarium.models.prototypes.layer import pool_best
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

ACTIVATIONS = ("sigmoid", "logit")
POOLS = ("max", "topk")
RANGE = 10.0
"""What scores span at first, from nothing alike to the highest similarity."""


@EVIDENCE.register("concept_prototypes")
class ConceptPrototypes(Prototypes):
    """One unit per annotated concept, seen where one of its own prototypes is: a bottleneck with pictures.

    Concept k has n prototypes p[k, 1] ... p[k, n], and they have one map, so any of them may be what is seen:

        map_k(z) = scale_k max over i of s(z, p[k, i]) + offset_k        score_k = pool over places z of map_k(z)

    with scale_k > 0 and offset_k learnt. Scores become probabilities by a softmax in each categorical group and by a
    sigmoid elsewhere, as in ``concepts``, and the term ``concepts`` teaches them; prototypes are projected, drawn and
    edited as others are, and may come from images of all classes. The activation is

    - ``sigmoid``: the probability;
    - ``logit``: the score (its "absent" and "present" values are set by the event ``calibrate``).

    Args:
        channels: D of the backbone's map.
        classes: C.
        concepts: the concept set of the data.
        per_concept: n.
        activation: what a person reads and sets, and the readout sees.
        similarity: s, as in :class:`~vitrarium.models.evidence.prototypes.Prototypes`.
        width: E, channels of the latent map; None = D.
        addon: layers between backbone and prototypes, as in ``prototypes``.
        part: k, a prototype covers k x k places.
        pool: "max" or "topk", over places.
        top: places that "topk" averages.
        epsilon: of "log_l2".
        picture: size of the pictures kept of the patches that prototypes come from; 0 = none.

    Attributes:
        log_scale: (K,) logarithm of scale.
        offset: (K,).

    Raises:
        UserError: no concepts, unknown words, numbers out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"map", "concepts"})

    def __init__(
        self,
        channels: int,
        classes: int,
        concepts: ConceptSet | None,
        per_concept: int = 3,
        activation: Literal["sigmoid", "logit"] = "sigmoid",
        similarity: Literal["cosine", "log_l2", "exp_l2", "dot"] = "cosine",
        width: int | None = None,
        addon: Literal["none", "plain", "sigmoid"] | None = None,
        part: int = 1,
        pool: Literal["max", "topk"] = "max",
        top: int = 3,
        epsilon: float = 1e-4,
        picture: int = 64,
    ) -> None:
        if concepts is None or len(concepts) == 0:
            raise UserError(
                "evidence 'concept_prototypes' needs a data set with concepts", "choose a data set that has them"
            )
        for option, value, known in (("activation", activation, ACTIVATIONS), ("pool", pool, POOLS)):
            if value not in known:
                raise UserError(f"evidence 'concept_prototypes' has no {option} '{value}'", closest(value, known))
        if per_concept < 1:
            raise UserError(f"per_concept={per_concept}", "give each concept at least 1 prototype")
        super().__init__(
            channels, classes, shared=len(concepts) * per_concept, similarity=similarity, width=width, addon=addon,
            part=part, pool=pool, top=top, epsilon=epsilon, picture=picture,
        )  # fmt: skip
        self.activation, self.per_concept = activation, per_concept
        self.shift_moves_activation = activation == "logit"
        # "gates" and the like are said of similarities; here the units are concepts.
        self.gives = frozenset({"vector", "maps", "prototypes", "scores", "probabilities"})
        units = UnitTable.of_concepts(concepts)
        if activation == "logit":
            nan = torch.full((len(units),), float("nan"))
            units = replace(units, absent=nan, present=nan.clone())
        owner = torch.arange(len(concepts)).repeat_interleave(per_concept)
        self.set_prototypes(units, classes, None, picture, unit_of_prototype=owner)
        # A similarity half way to the highest one is undecided at first.
        bounded = not math.isnan(self.highest)
        self.log_scale = nn.Parameter(torch.full((len(units),), math.log(RANGE / self.highest) if bounded else 0.0))
        self.offset = nn.Parameter(torch.full((len(units),), -RANGE / 2 if bounded else 0.0))
        self.softmax = GroupSoftmax(concepts)

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to the evidence of K concepts; ``state["distance"]`` (B, P) is that of their prototypes."""
        maps, best, distance = self.match(self.embed(features))
        concept_maps = self._scores(self._of_concepts(maps))
        if self.pool == "max":
            # The same number as the best place of the map, with the gradient of one place.
            scores = self._scores(self._of_concepts(best))
        else:
            scores = pool_best(concept_maps, None, self.pool, self.top, self.silent)
        return self._evidence(scores, Evidence(scores, scores, maps=concept_maps, state={"distance": distance}))

    def _of_concepts(self, prototypes: Tensor) -> Tensor:
        """(B, P, ...) to the best of each concept's own, (B, K, ...)."""
        return prototypes.unflatten(1, (-1, self.per_concept)).amax(2)

    def _scores(self, similarities: Tensor) -> Tensor:
        """(B, K, ...) similarities to scores."""
        shape = (-1,) + (1,) * (similarities.dim() - 2)
        return similarities * self.log_scale.exp().view(shape) + self.offset.view(shape)

    def _evidence(self, scores: Tensor, evidence: Evidence) -> Evidence:
        probabilities = self.softmax(scores)
        activations = probabilities if self.activation == "sigmoid" else scores
        evidence = replace(evidence, activations=activations, scores=scores, probabilities=probabilities)
        return replace(evidence, vector=self.assemble(activations, evidence))

    def reduce(self, maps: Tensor, region: Tensor | None = None) -> Tensor:
        """(B, P, h', w') similarities to activations (B, K)."""
        scores = self._pool(self._scores(self._of_concepts(maps)), region)
        return self.softmax(scores) if self.activation == "sigmoid" else scores

    def _pool(self, maps: Tensor, region: Tensor | None) -> Tensor:
        """Concept maps (B, K, h', w') to scores (B, K); where nothing may be looked at, that of a similarity of 0."""
        offset = self.offset[:, None, None]
        return pool_best(maps - offset, region, self.pool, self.top, self.silent) + self.offset

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """The concepts when their prototypes may only look where ``region`` is above 1/2."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        return self._evidence(self._pool(evidence.maps, region), evidence)
