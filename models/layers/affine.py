"""An affine step over channels, which a deployed model folds into the convolution before it."""

from __future__ import annotations

from torch import Tensor, nn


class Affine(nn.Conv2d):
    """y = A x + b at every place: a 1 x 1 convolution that :class:`~vitrarium.models.folding.Folding` may take away.

    Args:
        weight: (C', C) A.
        bias: (C',) b.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], 1, device=weight.device, dtype=weight.dtype)
        self.weight.data.copy_(weight[:, :, None, None])
        assert self.bias is not None
        self.bias.data.copy_(bias)
        self.requires_grad_(False)
