"""A small convolutional network for images of 32 to 64 pixels."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.backbones.base import BACKBONES, Backbone, Cut, finish, for_channels
from vitrarium.models.types import Features

NORMS = ("batch", "group", "none")
POOLS = ("max", "average")
GROUPS = 8


class ConvNet(Backbone):
    """Stages of ``depth`` x (3x3 convolution, norm, ReLU) and a 2x2 pooling; see :func:`build_convnet`.

    Every module is used once and nothing is done in place, so any of them can be hooked, cut at or replaced.
    """

    channels_last = True

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 64, 96),
        depth: int = 1,
        norm: Literal["batch", "group", "none"] = "batch",
        pool: Literal["max", "average"] = "max",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.standardise_by(for_channels((0.5,) * 3, in_channels), for_channels((0.25,) * 3, in_channels))
        inputs = (in_channels, *widths)
        self.network = nn.Sequential(
            OrderedDict(
                (f"stage{n}", _stage(inputs[n - 1], width, depth, norm, pool)) for n, width in enumerate(widths, 1)
            )
        )
        self.cuts = {f"stage{n}": Cut(width, 2**n) for n, width in enumerate(widths, 1)}
        self.cut = f"stage{len(widths)}"
        self.probe_size = 2 ** (len(widths) + 1)

    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) pixels in [0, 1] to a map (B, widths[-1], H / 2**N, W / 2**N)."""
        return Features(self.network(self.standardise(x)))


@BACKBONES.register("convnet")
def build_convnet(
    widths: Sequence[int] = (16, 32, 64, 96),
    depth: int = 1,
    norm: Literal["batch", "group", "none"] = "batch",
    pool: Literal["max", "average"] = "max",
    in_channels: int = 3,
    cut: str | None = None,
    weights: str | None = None,
) -> Backbone:
    """Build a :class:`ConvNet`.

    Args:
        widths: channels of the N stages; each halves height and width.
        depth: convolutions per stage.
        norm: "batch", "group" (groups of at most 8 channels) or "none"; only "none" has biases in its convolutions.
        pool: how a stage halves its map.
        in_channels: channels of the images.
        cut: ``stage1`` to ``stageN`` or any module path (``stage2.conv1``); default the last stage.
        weights: a weight source; default random (He et al., ICCV 2015).

    Raises:
        UserError: an impossible option, an unknown cut, weights that do not fit.
    """
    widths = tuple(widths)
    if not widths or not all(isinstance(w, int) and w > 0 for w in widths):
        raise UserError(f"convnet widths={list(widths)}", "give one channel count >= 1 per stage, such as [16, 32]")
    if depth < 1:
        raise UserError(f"convnet depth={depth}", "a stage has at least one convolution")
    for option, value, known in (("norm", norm, NORMS), ("pool", pool, POOLS)):
        if value not in known:
            raise UserError(f"convnet has no {option} '{value}'", closest(value, known))
    return finish(ConvNet(widths, depth, norm, pool, in_channels), cut, weights)


def _stage(inputs: int, width: int, depth: int, norm: str, pool: str) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for n in range(1, depth + 1):
        layers[f"conv{n}"] = _convolution(inputs if n == 1 else width, width, bias=norm == "none")
        if norm != "none":
            layers[f"norm{n}"] = _norm(norm, width)
        layers[f"relu{n}"] = nn.ReLU()
    layers["pool"] = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
    if pool == "max":
        # max(relu(x)) = relu(max(x)), with the same gradients: the ReLU has four times less to do on the pooled map.
        # (The norm could not follow: its statistics are those of the unpooled map.)
        layers.move_to_end(f"relu{depth}")
    return nn.Sequential(layers)


def _convolution(inputs: int, width: int, bias: bool) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, width, 3, padding=1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _norm(norm: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(max(1, width // math.gcd(width, GROUPS)), width)
