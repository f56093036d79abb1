"""Concepts that a network learns by itself, with a decoder that shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.models.backbones.base import Backbone
from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.evidence.concepts import GroupSoftmax
from vitrarium.models.evidence.pooling import pool
from vitrarium.models.layers.decoder import ImageDecoder
from vitrarium.models.prototypes.layer import pool_best
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

ACTIVATIONS, REDUCTIONS = ("identity", "relu", "sigmoid"), ("mean", "max")

FEATURES, HEAD = "features", "head"
"""Where in ``Evidence.context`` the pooled features (B, D) and the logits (B, C) of the black-box head lie."""

TURNS = 4
"""Rotations that the rotation head tells apart: by 0, 90, 180 and 270 degrees."""


@EVIDENCE.register("self_learnt_concepts")
class SelfLearntConcepts(EvidenceLayer):
    """Units that are learnt and not annotated, with a decoder that shows what they mean.

    After Alvarez-Melis & Jaakkola (NeurIPS 2018) and Sarkar et al. (CVPR 2022). A 1x1 convolution makes a map per unit,
    a reduction over space its score, and a function its activation:

        z = U F + u,    s_m = mean or max over places of z_m,    h_m = s_m | relu(s_m) | sigmoid(s_m)

    Beside the units stand, as far as they are asked for:

    - a decoder, which makes an image of all h: the term ``reconstruction`` teaches it, and it shows what a unit means;
    - a head, the linear classifier on the pooled features that a black box would be. It decides nothing: the decision
      is the readout's, on the units alone, and the head is what the metric ``fidelity`` holds it against;
    - a rotation head, which tells from the units how an image was turned (term ``rotation``).

    None of them is needed for an answer, and :meth:`deployed` leaves them out.

    Args:
        channels: D of the backbone's map.
        classes: C.
        backbone: says how many channels a decoded image has.
        concepts: the concept set of the data, used where ``supervised``.
        count: how many units are learnt without annotation.
        supervised: whether the units begin with one for each annotated concept, to be taught by the term ``concepts``;
            in categorical groups the sigmoid is then a softmax.
        activation: "identity", "relu" or "sigmoid".
        reduction: of the maps over space, "mean" or "max".
        decoder: whether there is a decoder.
        width: channels of the decoder's first map.
        head: whether there is a head.
        rotation: whether there is a rotation head.

    Raises:
        UserError: no unit at all, concepts that the data have not, unknown names, numbers out of range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        backbone: Backbone,
        concepts: ConceptSet | None = None,
        count: int = 32,
        supervised: bool = False,
        activation: Literal["identity", "relu", "sigmoid"] = "identity",
        reduction: Literal["mean", "max"] = "mean",
        decoder: bool = True,
        width: int = 32,
        head: bool = False,
        rotation: bool = False,
    ) -> None:
        super().__init__()
        _refuse(activation, reduction, count, width, supervised, concepts)
        self.activation, self.reduction = activation, reduction
        self.reads_mean = reduction == "mean"
        self.maps_average_to_activations = activation == "identity" and reduction == "mean"
        self.judged = len(concepts) if supervised and concepts is not None else 0
        self.softmax = GroupSoftmax(concepts) if supervised and concepts is not None else None
        self.set_units(self._table(concepts, count))
        size = len(self.alive)
        self.to_maps = nn.Conv2d(channels, size, 1)
        self.decoder = ImageDecoder(size, backbone.in_channels, width) if decoder else None
        self.head = nn.Linear(channels, classes) if head else None
        self.turns = nn.Linear(size, TURNS) if rotation else None
        self.gives = self._gives()

    def _table(self, concepts: ConceptSet | None, count: int) -> UnitTable:
        if self.judged and concepts is not None:
            table = replace(UnitTable.with_free(concepts, "concept", self.judged + count), probability="native")
        else:
            table = UnitTable.anonymous("concept", count)
        if self.activation == "sigmoid":
            table = replace(table, absent=torch.zeros(len(table)), present=torch.ones(len(table)))
        return table

    def _gives(self) -> frozenset[str]:
        given = {"vector", "maps", "pooled"}
        for word, has in (
            ("scores", self.judged),
            ("probabilities", self.judged),
            ("gates", self.activation == "sigmoid"),
            ("decodes", self.decoder is not None),
            ("head", self.head is not None),
            ("turns", self.turns is not None),
        ):
            given |= {word} if has else set()
        return frozenset(given)

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to the evidence of M units; the context holds the pooled features and the head's logits."""
        maps = self.to_maps(features.map)
        pooled = features.map.mean((2, 3))
        context = {FEATURES: pooled}
        if self.head is not None:
            context[HEAD] = self.head(pooled)
        scores = maps.mean((2, 3)) if self.reduction == "mean" else pool_best(maps, None, "max", 1, 0.0)
        return self._evidence(scores, maps, context)

    def _evidence(self, scores: Tensor, maps: Tensor, context: dict[str, Tensor]) -> Evidence:
        """Scores (B, M) of all units to activations; probabilities are those of the annotated ones alone."""
        judged = scores[:, : self.judged] if self.softmax is not None else None
        probabilities = self.softmax(judged) if self.softmax is not None else None
        if self.activation == "sigmoid":
            free = scores[:, self.judged :].sigmoid()
            activations = free if probabilities is None else torch.cat([probabilities, free], 1)
        else:
            activations = scores.relu() if self.activation == "relu" else scores
        return Evidence(activations, activations, maps, judged, probabilities, context)

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations."""
        return activations

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """Reduce the maps over the region only; the pooled features stay those of the whole image."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        if self.reduction == "mean":
            scores = pool(evidence.maps, region)
        else:
            scores = pool_best(evidence.maps, region, "max", 1, 0.0)
        return self._evidence(scores, evidence.maps, evidence.context)

    def decode(self, activations: Tensor, size: tuple[int, int]) -> Tensor:
        """The image (B, C, H, W) in [0, 1] that the decoder makes of activations (B, M); ``size`` is (H, W).

        Raises:
            UserError: a layer without a decoder.
        """
        if self.decoder is None:
            raise UserError(
                "this layer has no decoder", "train with model.evidence.decoder=true; deployed models drop it"
            )
        return self.decoder(activations, size)  # type: ignore[no-any-return]

    def decode_units(self, units: Tensor, size: tuple[int, int], present: bool = True) -> Tensor | None:
        """What single units look like: the image (n, C, H, W) in [0, 1] of each, all other units half-way.

        None from a layer without a decoder.

        Args:
            units: (n,) int64.
            size: (H, W).
            present: each at its "present" value, else at "absent"; the two beside each other show what it changes.
                All others are at the middle between their two values, close to what the decoder has learnt from.

        Raises:
            UserError: values that are not calibrated.
        """
        if self.decoder is None:
            return None
        self.units.require_values()
        middle = (self.absent + self.present) / 2
        activations = middle.repeat(len(units), 1)
        value = (self.present if present else self.absent)[units]
        return self.decode(activations.scatter(1, units[:, None], value[:, None]), size)

    def tell_turn(self, activations: Tensor) -> Tensor:
        """(B, 4) logits of by how many quarter turns the image was turned, from activations (B, M).

        Raises:
            UserError: a layer without a rotation head.
        """
        if self.turns is None:
            raise UserError("this layer has no rotation head", "set model.evidence.rotation=true")
        return self.turns(activations)  # type: ignore[no-any-return]

    def deployed(self) -> SelfLearntConcepts:
        """Without decoder, head and rotation head."""
        self.decoder = self.head = self.turns = None
        self.gives = self._gives()
        return self


def _refuse(
    activation: str, reduction: str, count: int, width: int, supervised: bool, concepts: ConceptSet | None
) -> None:
    for what, name, known in (("activation", activation, ACTIVATIONS), ("reduction", reduction, REDUCTIONS)):
        if name not in known:
            raise UserError(f"evidence 'self_learnt_concepts' has no {what} '{name}'", closest(name, known))
    if supervised and not concepts:
        raise UserError(
            "self_learnt_concepts with supervised=true needs a data set with concepts",
            "choose a data set that has them, or set model.evidence.supervised=false",
        )
    if count < (0 if supervised else 1) or width < 1:
        raise UserError(
            f"self_learnt_concepts with count={count}, width={width}",
            "give at least one unit (0 only where annotated concepts stand beside them) and one channel",
        )
