"""Whitening of maps: channels that are uncorrelated and of unit variance."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.layers.batch_whitening import flat_by_group, map_of_flat, regular, rows_everywhere, whiten
from vitrarium.models.layers.inverse_root import METHODS, Method, inverse_root
from vitrarium.models.prototypes.similarity import at_least_float32


class Whitening(nn.Module):
    """y = W (x - mu) with W Sigma W^T = I, over images and places.

    In training by mean and covariance of the batch (of all processes), through which gradients flow; the running ones
    are moving averages of *these*, and W is computed from them once, on entering evaluation. (The mean of many W is no
    root of the mean covariance, which is why W itself is not averaged.) In evaluation the layer is affine in its input,
    so saliency maps and attacks pass through it.

    A batch too small for a covariance of its own, such as a last one, is whitened by the running statistics and leaves
    them alone; the very first batch must be large enough. A constant channel stays 0; a map that is constant
    everywhere becomes 0. Arithmetic is in float32 at least, under autocast too.

    Args:
        channels: C.
        groups: the channels in so many equal parts, each whitened on its own.
        method: see :func:`~vitrarium.models.layers.inverse_root.inverse_root`.
        eps: added to the variances, as a share of their mean.
        momentum: weight of a batch in the running mean and covariance; the first one counts whole.
        iterations: of "iternorm".

    Raises:
        UserError: groups that do not divide the channels, an unknown method, numbers out of range.
    """

    running_mean: Tensor
    running_covariance: Tensor
    batches: Tensor
    root: Tensor

    def __init__(
        self,
        channels: int,
        groups: int = 1,
        method: Method = "eigh",
        eps: float = 1e-5,
        momentum: float = 0.05,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise UserError(
                f"{channels} channels cannot be whitened in groups={groups} equal parts", "choose a divisor"
            )
        if method not in METHODS:
            raise UserError(f"there is no whitening by '{method}'", closest(method, METHODS))
        if not 0 < eps < float("inf") or not 0 < momentum <= 1 or iterations < 1:
            raise UserError(
                f"whitening with eps={eps}, momentum={momentum}, iterations={iterations}",
                "eps is above 0, momentum in (0, 1], iterations 1 or more",
            )
        self.channels, self.groups, self.method = channels, groups, method
        self.eps, self.momentum, self.iterations = eps, momentum, iterations
        width = channels // groups
        self.register_buffer("running_mean", torch.zeros(groups, width))
        self.register_buffer("running_covariance", torch.eye(width).repeat(groups, 1, 1))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("root", torch.eye(width).repeat(groups, 1, 1), persistent=False)
        self._settled_for: tuple[Tensor, Tensor, int] | None = None
        self.register_load_state_dict_post_hook(lambda module, keys: module.settle())

    def train(self, mode: bool = True) -> Whitening:
        """On entering evaluation the running covariance gets its root."""
        super().train(mode)
        if not mode:
            self.settle()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A copy's buffers begin with versions of their own.
        return {**self.__dict__, "_settled_for": None}

    @torch.no_grad()
    def settle(self) -> None:
        """Compute W of the running covariance, in float64 where there is one; nothing if it has not changed."""
        now = self.running_covariance, self.root, self.running_covariance._version
        before = self._settled_for
        if before is not None and before[0] is now[0] and before[1] is now[1] and before[2] == now[2]:
            return
        precise = self.running_covariance.device.type != "mps"
        covariance = self.running_covariance.double() if precise else self.running_covariance
        self.root.copy_(inverse_root(regular(covariance, self.eps), cast(Method, self.method), self.iterations))
        self._settled_for = now

    def matrix(self) -> Tensor:
        """(C, C) the whitening matrix W of the running statistics, one block for each group."""
        self.settle()
        return torch.block_diag(*self.root)

    def forward(self, map: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, C, h, w) to the whitened map, or with a rotation (groups, c, c) R to R W (x - mu).

        No gradient reaches the rotation.

        Raises:
            UserError: the first batch has no more values than channels, a map that is not finite.
        """
        with torch.autocast(map.device.type, enabled=False):
            (x,) = at_least_float32(map)
            count = rows_everywhere(x) if self.training else 0
            if self.training and (count > self.channels // self.groups or int(self.batches) == 0):
                return self._by_batch(x, rotation, count)
            return self._by_running(x, rotation)

    def _by_batch(self, x: Tensor, rotation: Tensor | None, count: int) -> Tensor:
        """By the batch's own statistics; the running ones follow."""
        method = cast(Method, self.method)
        map, mean, covariance = whiten(x, self.groups, method, self.eps, self.iterations, rotation, count)
        with torch.no_grad():
            weight = torch.where(self.batches == 0, 1.0, self.momentum).to(self.running_mean)
            self.running_mean.lerp_(mean.to(weight), weight)
            self.running_covariance.lerp_(covariance.to(weight), weight)
            self.batches += 1
        return map

    def _by_running(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """By the running statistics."""
        # A program that is being traced takes W as it stands: it has no versions, and no use for a decomposition.
        if not torch.compiler.is_compiling():
            self.settle()
        weight = self.root.to(x) if rotation is None else rotation.detach().to(x) @ self.root.to(x)
        centred = flat_by_group(x - self.running_mean.to(x).reshape(-1, 1, 1), self.groups)
        return map_of_flat(centred @ weight.mT, x)

    def extra_repr(self) -> str:
        """For printing."""
        return f"{self.channels}, groups={self.groups}, method={self.method}, eps={self.eps:g}"
