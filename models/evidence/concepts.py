"""Concept bottlenecks: units that are annotated concepts (Koh et al., ICML 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.evidence.pooling import pool
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

ACTIVATIONS = ("sigmoid", "logit", "hard")


@EVIDENCE.register("concepts")
class Concepts(EvidenceLayer):
    """One unit per concept; the readout sees nothing of the image but them (and a side channel, if asked for).

    A 1x1 convolution makes a map per concept; its mean over space is the concept's score. Scores become
    probabilities by a softmax in each categorical group and by a sigmoid elsewhere. The activation is

    - ``sigmoid``: the probability;
    - ``logit``: the score (its "absent" and "present" values are TRAINING quantiles, set by the event ``calibrate``);
    - ``hard``: 0 or 1 (the most probable member of a categorical group, probability > 1/2 elsewhere), with the
      gradient of the probability (straight-through, Bengio et al., 2013).

    Args:
        channels: D of the backbone's map.
        concepts: the concept set of the data.
        activation: what a person reads and sets, and the readout sees.
        side: width of a side channel that carries what the concepts do not say; 0 = strict bottleneck.
        bottleneck: False lets the readout see the pooled features and not the concepts: then concepts are predicted
            beside the class (the multitask baseline), and correcting them cannot change it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"map", "concepts"})
    gives: frozenset[str] = frozenset({"vector", "maps", "scores", "probabilities"})
    reads_mean = True

    def __init__(
        self,
        channels: int,
        concepts: ConceptSet | None,
        activation: Literal["sigmoid", "logit", "hard"] = "sigmoid",
        side: int = 0,
        bottleneck: bool = True,
    ) -> None:
        super().__init__()
        if concepts is None or len(concepts) == 0:
            raise UserError("evidence 'concepts' needs a data set with concepts", "choose a data set that has them")
        if activation not in ACTIVATIONS:
            raise UserError(f"evidence 'concepts' has no activation '{activation}'", closest(activation, ACTIVATIONS))
        if side < 0 or (side and not bottleneck):
            raise UserError(
                f"side={side} with bottleneck={bottleneck}",
                "a side channel has a width >= 0 and stands beside concepts",
            )
        self.activation, self.bottleneck = activation, bottleneck
        self.maps_average_to_activations = activation == "logit"
        self.head = nn.Conv2d(channels, len(concepts), 1)
        self.side = nn.Linear(channels, side) if side else None
        units = UnitTable.of_concepts(concepts)
        if activation == "logit":
            nan = torch.full((len(units),), float("nan"))
            units = replace(units, absent=nan, present=nan.clone())
        beside = torch.full((side if bottleneck else channels,), -1)
        self.set_units(units, torch.cat([torch.arange(len(units)), beside]) if bottleneck else beside)
        self.softmax = GroupSoftmax(concepts)

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to the evidence of K concepts."""
        maps = self.head(features.map)
        scores = maps.mean((2, 3))
        context = {}
        if self.side is not None:
            context["side"] = self.side(features.map.mean((2, 3)))
        elif not self.bottleneck:
            context["side"] = features.map.mean((2, 3))
        return self._evidence(Evidence(scores, scores, maps=maps, scores=scores, context=context), scores)

    def _evidence(self, evidence: Evidence, scores: Tensor) -> Evidence:
        probabilities = self.softmax(scores)
        if self.activation == "sigmoid":
            activations = probabilities
        elif self.activation == "logit":
            activations = scores
        else:
            activations = self.softmax.harden(probabilities) + probabilities - probabilities.detach()
        evidence = replace(evidence, activations=activations, scores=scores, probabilities=probabilities)
        return replace(evidence, vector=self.assemble(activations, evidence))

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """[activations, side channel]; without a bottleneck, the features alone."""
        side = evidence.context.get("side")
        if side is None:
            return activations
        return torch.cat([activations, side], 1) if self.bottleneck else side

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """Average the concept maps over the region only."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        return self._evidence(evidence, pool(evidence.maps, region))


class GroupSoftmax(nn.Module):
    """Scores (B, K) to probabilities: softmax within each categorical group, sigmoid elsewhere, in one pass.

    All categorical groups are padded into one (B, G, width) tensor, so the cost does not grow with the number of
    groups as a loop would.
    """

    blocks: Tensor
    inside: Tensor
    flat: Tensor
    slots: Tensor
    categorical: Tensor

    def __init__(self, concepts: ConceptSet) -> None:
        super().__init__()
        blocks = [g.members for g in concepts.groups if g.categorical]
        width = max((len(b) for b in blocks), default=0)
        padded = torch.tensor([[*b, *[len(concepts)] * (width - len(b))] for b in blocks], dtype=torch.int64)
        self.register_buffer("blocks", padded.reshape(len(blocks), width), persistent=False)
        categorical = torch.zeros(len(concepts), dtype=torch.bool)
        for block in blocks:
            categorical[list(block)] = True
        self.register_buffer("categorical", categorical, persistent=False)
        inside = padded.reshape(len(blocks), width) < len(concepts)
        self.register_buffer("inside", inside, persistent=False)
        self.register_buffer("flat", padded.reshape(len(blocks), width)[inside], persistent=False)
        # The same places by number: taking by a mask costs a search at each call, and exports as one.
        self.register_buffer("slots", inside.flatten().nonzero()[:, 0], persistent=False)
        self.has_blocks, self.all_blocks = bool(blocks), bool(categorical.all())

    def forward(self, scores: Tensor) -> Tensor:
        """(B, K) scores to (B, K) probabilities."""
        if not self.has_blocks:
            return scores.sigmoid()
        block_probabilities = self.gather(scores, float("-inf")).softmax(-1).flatten(1)[:, self.slots]
        base = torch.zeros_like(scores) if self.all_blocks else scores.sigmoid()
        return base.index_copy(1, self.flat, block_probabilities.to(base.dtype))

    def gather(self, values: Tensor, fill: float) -> Tensor:
        """(B, K) to (B, G, width) over the categorical groups, ``fill`` where a group is narrower."""
        padded = torch.cat([values, values.new_full((values.shape[0], 1), fill)], 1)
        return padded[:, self.blocks]

    def harden(self, probabilities: Tensor) -> Tensor:
        """0 or 1 per concept: the most probable member of a categorical group, > 1/2 elsewhere."""
        hard = (probabilities > 0.5).to(probabilities)
        if not self.has_blocks:
            return hard
        winner = self.gather(probabilities, float("-inf")).argmax(-1)
        one_hot = nn.functional.one_hot(winner, self.blocks.shape[1]).flatten(1)[:, self.slots].to(hard)
        return hard.index_copy(1, self.flat, one_hot)
