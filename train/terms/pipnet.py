"""Terms of PIP-Net: prototypes that say the same in two views of an image, and that are all put to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.source import DataSource
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.train.distributed import shared_mean, shared_sum
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.classification import CrossEntropy

EPSILON = 1e-10


@TERMS.register("align")
class Align(Term):
    """Two views of an image show the same prototype at the same place; formula in :func:`alignment`.

    The first view is compared with each further one, and the mean is taken.

    Args:
        source: the data.
        ramp: multiply by the share of the stage that is done, as the paper does while it learns prototypes without
            labels: first all prototypes are to be found somewhere (term ``uniformity``), then views are to agree.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"views", "maps", "shares"})

    def __init__(self, source: DataSource, ramp: bool = False) -> None:
        super().__init__(source)
        self.ramp = ramp

    def forward(self, step: Step) -> Tensor:
        """Mean over images, places and further views, over all processes."""
        first = step.output.evidence.maps
        assert first is not None
        losses = [alignment(first, view.evidence.maps) for view in step.views if view.evidence.maps is not None]
        total = torch.stack(losses).sum((1, 2, 3))
        places = total.new_tensor(float(losses[0].numel()))
        loss = torch.stack([shared_mean(one, places) for one in total]).mean()
        return loss * step.progress if self.ramp else loss


@TERMS.register("uniformity")
class Uniformity(Term):
    """Each prototype is to be found in the batch; formula in :func:`uniformity_loss`.

    The presence of a prototype is the maximum of its map, without the threshold of evaluation, and the sum runs over
    the batch of all processes. With several views the mean of their losses is taken, each from its own sum.

    Args:
        source: the data.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"maps", "gates"})

    def forward(self, step: Step) -> Tensor:
        """Scalar loss."""
        losses = []
        for answer in (step.output, *step.views):
            assert answer.evidence.maps is not None
            (maps,) = at_least_float32(answer.evidence.maps)
            losses.append(uniformity_loss(shared_sum(maps.flatten(2).amax(2).sum(0))))
        return torch.stack(losses).mean()


@TERMS.register("views_cross_entropy")
class ViewsCrossEntropy(CrossEntropy):
    """The term ``cross_entropy`` with all its options, as the mean over all views of each image.

    PIP-Net classifies both views of an image; the term ``cross_entropy`` itself looks at the first alone.

    Args:
        source: see ``cross_entropy``, also for all others.
        smoothing: label smoothing.
        class_weight: weight of each class.
        beta: of "effective".
        focal: exponent of the focal loss.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"views"})

    def __init__(
        self,
        source: DataSource,
        smoothing: float = 0.0,
        class_weight: str | Mapping[str, float] = "none",
        beta: float = 0.999,
        focal: float = 0.0,
    ) -> None:
        super().__init__(source, smoothing, class_weight, beta, focal)

    def forward(self, step: Step) -> Tensor:
        """Mean over views of the mean over the batch of all processes."""
        answers = [step.output, *step.views]
        return torch.stack([self.loss(answer.logits, step.batch.label) for answer in answers]).mean()


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """How little two views agree on which prototype is where (Nauta et al., CVPR 2023).

        l(i, place) = -1/2 [log <a, stop(b)> + log <stop(a), b>]

    with a and b the shares of the prototypes at that place in the two views, and stop(.) letting no gradient pass. The
    least, 0, asks for all of the share on the same one prototype.

    Args:
        first: (B, M, h, w) shares that sum to 1 at each place.
        second: (B, M, h, w).

    Returns:
        (B, h, w).

    Raises:
        UserError: views with maps of different sizes.
    """
    if first.shape != second.shape:
        raise UserError(
            f"two views have maps of {tuple(first.shape[1:])} and {tuple(second.shape[1:])}",
            "views of an image need one geometry: keep to augment.appearance",
        )
    first, second = at_least_float32(first, second)
    halves = [((a * b.detach()).sum(1) + EPSILON).log() for a, b in ((first, second), (second, first))]
    return -(halves[0] + halves[1]) / 2


def uniformity_loss(presence: Tensor) -> Tensor:
    """-mean over prototypes of log(tanh(S_m) + 1e-10) (the "tanh loss" of Nauta et al., CVPR 2023).

    Close to 0 once every prototype is seen for certain in two or three images of the batch; unlike an entropy it does
    not ask that all prototypes be equally frequent.

    Args:
        presence: (M,) S_m >= 0, the sum over the batch of the presence of prototype m.

    Returns:
        Scalar.
    """
    return -(presence.tanh() + EPSILON).log().mean()
