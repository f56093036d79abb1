"""Terms of deformable prototypes: small offsets, and a margin between the angles of own and other classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.source import DataSource
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.classification import CrossEntropy
from vitrarium.train.terms.prototypes import prototype_layer


@TERMS.register("offsets")
class Offsets(Term):
    """Parts of a prototype shall not wander off (Donnelly et al., CVPR 2022): :func:`mean_square_offset`.

    The released code weighs the norm over a whole batch with 0.8, but computes it from offsets without a graph, so that
    it teaches nothing; a mean of squares is the same at any batch size.

    Args:
        source: the data.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"deforms"})

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch of all processes."""
        offsets = step.output.evidence.state["offsets"]
        return shared_mean(mean_square_offset(offsets).sum(), offsets.new_tensor(float(len(offsets))))


def mean_square_offset(offsets: Tensor) -> Tensor:
    """(B,) squared length of an offset, in places, mean over parts and places; offsets are (B, 2, parts, h, w)."""
    return offsets.square().sum(1).mean((1, 2, 3))


@TERMS.register("margin_cross_entropy")
class MarginCrossEntropy(CrossEntropy):
    """Cross-entropy when prototypes of other classes look more alike than they are (Donnelly et al., CVPR 2022).

    With theta the angle between image and prototype, the activation of every prototype that is not of the image's class
    becomes

        relu(cos(max(theta - margin, 0)))

    and the readout decides on these: to be right, angles to other classes must be larger by the margin. Only training
    sees it.

    Args:
        source: the data.
        margin: angle in radians, in [0, pi / 2].
        smoothing: as in ``cross_entropy``.
        class_weight: as in ``cross_entropy``.
        beta: as in ``cross_entropy``.
        focal: as in ``cross_entropy``.

    Raises:
        UserError: a margin out of range; as ``cross_entropy``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"deforms", "owned"})

    def __init__(
        self,
        source: DataSource,
        margin: float = 0.1,
        smoothing: float = 0.0,
        class_weight: str | Mapping[str, float] = "none",
        beta: float = 0.999,
        focal: float = 0.0,
    ) -> None:
        super().__init__(source, smoothing, class_weight, beta, focal)
        if not 0 <= margin <= math.pi / 2:
            raise UserError(f"margin={margin}", "give an angle in radians from 0 to pi / 2, for instance 0.1")
        self.margin = margin

    def forward(self, step: Step) -> Tensor:
        """Weighted mean over the batch of all processes."""
        layer, evidence = prototype_layer(step.model), step.output.evidence
        other = ~layer.owners().T[step.batch.label]
        nearer = with_margin(evidence.state["cosine"], self.margin).relu()
        activations = torch.where(other, nearer.to(evidence.activations), evidence.activations)
        changed = replace(evidence, activations=activations)
        changed = replace(changed, vector=layer.assemble(activations, changed))
        return self.loss(step.model.readout(changed), step.batch.label)


def with_margin(cosine: Tensor, margin: float) -> Tensor:
    """cos(max(theta - margin, 0)) with theta = arccos(cosine), within 2e-6 from cosine -1 + 1e-6 on.

    There is no arccos, whose slope at 1 is infinite:
    cos(theta - m) = cos(theta) cos(m) + sin(theta) sin(m), and where theta < m the result is 1.
    """
    (cosine,) = at_least_float32(cosine)
    # Neither end is reached: the root has an infinite slope there.
    bounded = cosine.clamp(-1 + 1e-6, min(math.cos(margin), 1 - 1e-6))
    return bounded * math.cos(margin) + (1 - bounded.square()).sqrt() * math.sin(margin)
