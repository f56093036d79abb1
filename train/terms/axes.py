"""The term that teaches a network to give concepts axes of their own."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.whitened_axes import WhitenedAxes
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term


def pair_losses(activations: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How far images with a concept are from activating its axis more than images without it.

    For concept k the mean over pairs (i with it, j without it) of softplus(a_jk - a_ik): a smooth bound on 1 - AUC
    (the pairwise logistic loss; Burges et al., ICML 2005).

    Args:
        activations: (B, K).
        truth: (B, K) in [0, 1], NaN = nobody knows; counts as present above 1/2.

    Returns:
        (K,) sums over pairs and (K,) how many there were.
    """
    known = ~torch.isnan(truth)
    present, absent = (truth > 0.5) & known, (truth <= 0.5) & known
    difference = activations[None] - activations[:, None]
    pairs = present[:, None] & absent[None]
    losses = torch.where(pairs, functional.softplus(difference), 0.0)
    return losses.sum((0, 1)), pairs.sum((0, 1))


@TERMS.register("axis_ranking")
class AxisRanking(Term):
    """Images with a concept should activate its axis more than images without it; averaged over concepts.

    The alternate optimisation of Chen, Bei & Rudin (Nature Machine Intelligence 2020) rotates axes and leaves the
    features to the classification loss. That cannot serve concepts that exclude each other: after whitening their
    directions are opposite, and axes are orthogonal. This term lets the network make room for them.

    It reads the activations of evidence with axes named after the data's concepts; each concept that a batch holds
    pairs of counts alike, whatever its frequency.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"concepts"})

    def __init__(self, source: DataSource) -> None:
        super().__init__(source)
        self.names = () if source.concepts is None else source.concepts.names

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence without axes, or none of whose axes is a concept of the data."""
        named = cast(WhitenedAxes, model.evidence).named if "axes" in model.evidence.gives else ()
        if not set(named) & set(self.names):
            raise UserError(
                "the term 'axis_ranking' needs axes that are named after concepts of the data",
                "set model.evidence.name=whitened_axes with axes of the data's concepts, or leave the term out",
            )

    def forward(self, step: Step) -> Tensor:
        """Mean over the concepts of the mean over their pairs."""
        named = cast(WhitenedAxes, step.model.evidence).named
        units = [m for m, name in enumerate(named) if name in self.names]
        columns = [self.names.index(named[m]) for m in units]
        assert step.batch.concepts is not None
        said = step.output.evidence.activations[:, units].float()
        sums, counts = pair_losses(said, step.batch.concepts[:, columns])
        means = [shared_mean(total, count.to(total)) for total, count in zip(sums, counts, strict=True)]
        return torch.stack(means).mean()
