"""The contract of backbones and their registry."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.configs.registry import Registry
from vitrarium.models.backbones.layouts import Layout
from vitrarium.models.backbones.norms import LAST_NORM, last_norm
from vitrarium.models.backbones.probing import all_learning, numbers_behind, values_at
from vitrarium.models.types import Features

logger = logging.getLogger(__name__)

FINAL = "final"
"""The cut at the end of a whole network."""

MODULE = "module"
"""The name of backbones that are somebody's own network, and the option that says which."""

if TYPE_CHECKING:
    from vitrarium.models.backbones.weights import WeightReport


class Cut(NamedTuple):
    """A named place to cut a backbone.

    Attributes:
        channels: D of the map there.
        stride: pixels of the image per step of the map.
    """

    channels: int
    stride: int


class Place(NamedTuple):
    """A place to cut a backbone, and what it is like there.

    Attributes:
        cut: the name to cut at.
        channels: D of the map there.
        stride: pixels of the image per step of the map.
        height: h of the map.
        width: w of the map.
        parameters: how many numbers the network learns up to there.
    """

    cut: str
    channels: int
    stride: int
    height: int
    width: int
    parameters: int


class Backbone(nn.Module, ABC):
    """Image to features. Takes RGB float in [0, 1] and standardises inside.

    Attributes:
        mean: (in_channels,) buffer subtracted from the pixels; saved with the weights it belongs to.
        std: (in_channels,) buffer the pixels are divided by; saved likewise.
        gives: what evidence may count on: "map", and "carry" / "tokens" where there is one.
        cuts: named places with channels and stride, from the image upwards.
        cut: where this one is cut.
        network: the layers: standardised pixels to the final map. Module paths in cuts, in weight files and in
            ``split`` are relative to it.
        entry: the method of ``network`` that gives the final map, the one torch.fx follows.
        layout: how ``network`` arranges its final map.
        aliases: module path of each named cut that is not called like its module.
        image_size: the only height and width it takes, None for any.
        probe_size: a height and width it surely takes.
        channels_last: hand the pixels on with channels last in memory, an order that convolutions keep to the end; on
            a CPU it makes small and depthwise ones up to twice as fast.
        origin: the name and options it was built from: what ``build_backbone`` makes its like from.
        weight_report: what became of the ``weights`` it was built with, None without.
        note: what else a person should know about its cut.
        folded: what of the standardisation the first convolution of a deployed copy holds: "std", "mean" and "std".
    """

    mean: Tensor
    std: Tensor
    gives: frozenset[str] = frozenset({"map"})
    cuts: dict[str, Cut]
    cut: str
    network: nn.Module
    entry: str = "forward"
    layout: Layout = Layout()
    aliases: Mapping[str, str] = {}
    image_size: int | None = None
    probe_size: int = 64
    channels_last: bool = False
    origin: Mapping[str, Any] = {}
    weight_report: WeightReport | None = None
    note: str = ""
    folded: tuple[str, ...] = ()

    def standardise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Register the standardisation (C,) of the pixels."""
        # Persistent: weights from elsewhere may bring a standardisation of their own, and a saved model is rebuilt
        # without going back to where they came from.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def standardise(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to what the layers were trained on, in the memory order they are fastest with.

        Raises:
            UserError: another number of channels or another image size than the backbone was built for.
        """
        if x.dim() != 4 or x.shape[1] != self.mean.shape[0]:
            raise UserError(
                f"the backbone takes images (B, {self.mean.shape[0]}, H, W), got {tuple(x.shape)}",
                "set backbone.in_channels to the channels of the data",
            )
        if self.image_size is not None and tuple(x.shape[-2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"the backbone takes {self.image_size} x {self.image_size} pixels, got {x.shape[2]} x {x.shape[3]}",
                "set backbone.image_size to the size of the data",
            )
        standard = x if "mean" in self.folded else x - self.mean[:, None, None]
        if "std" not in self.folded:
            standard = standard / self.std[:, None, None]
        return standard.contiguous(memory_format=torch.channels_last) if self.channels_last else standard

    @property
    def in_channels(self) -> int:
        """C of the images."""
        return self.mean.shape[0]

    @property
    def channels(self) -> int:
        """D of the map at the cut."""
        return self.cuts[self.cut].channels

    @property
    def stride(self) -> int:
        """Pixels of the image per step of the map."""
        return self.cuts[self.cut].stride

    @abstractmethod
    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) pixels in [0, 1] to ``Features(map (B, D, h, w), carry)``."""

    def split(self, cut: str) -> tuple[Backbone, nn.Module]:
        """Cut the network in two by torch.fx at a named module.

        Returns:
            ``stem(x) -> Features`` (with standardisation) and ``tail(map, *carry) -> map`` of the uncut network; both
            hold the same parameters as this backbone.

        Raises:
            UserError: no such module, or a network that torch.fx cannot trace.
        """
        from vitrarium.models.backbones.splitting import split

        return split(self, cut)

    def truncate(self, cut: str) -> Backbone:
        """The backbone up to ``cut`` (a named cut or any module path), without the layers above it.

        ``last_norm`` is the last normalisation on the way to the final map, whatever its path.

        It shares the parameters of this backbone, or is this backbone, shortened: use one of them. Where torch.fx
        made the cut, a readout may still ask for the :meth:`tail`.
        """
        if cut == self.cut:
            return self
        if cut == LAST_NORM:
            cut = last_norm(self)
        stem, rest = self.split(cut)
        # Not a submodule: the layers above the cut belong to whoever takes them, or to nobody.
        stem.__dict__["_tail"] = (rest, self.channels)
        return stem

    def tail(self) -> tuple[nn.Module, int]:
        """The layers above the cut, for a readout that is the rest of the network, and the channels of their map.

        Raises:
            UserError: a backbone that was not cut inside.
        """
        if "_tail" not in self.__dict__:
            raise UserError(
                f"nothing is left above the cut '{self.cut}'", "set backbone.cut to a module inside the network"
            )
        rest: tuple[nn.Module, int] = self.__dict__["_tail"]
        return rest

    def open_norm(self) -> bool:
        """Take out the normalisation that this backbone ends with, so that evidence may take its place.

        The map is then what the normalisation was given. The activation of a joint norm-and-activation goes to the
        front of the :meth:`tail`.

        Returns:
            Whether there was one: a backbone that ends otherwise stays as it is.
        """
        return False

    def maps(self, pixels: Tensor) -> dict[str, tuple[Tensor, Any]]:
        """Of a whole backbone, by named cut, the map of ``pixels`` (B, C, H, W) and the node of its gradient."""
        paths = {cut: self.aliases.get(cut, cut) for cut in self.cuts}
        values = values_at(self.network, self.standardise(pixels), paths.values())
        return {cut: values[path] for cut, path in paths.items()}

    def places(self, pixels: Tensor) -> list[Place]:
        """Of a whole backbone, what it is like at its named cuts for images like ``pixels`` (B, C, H, W) in [0, 1]."""
        with all_learning(self):
            return [
                Place(cut, *self.cuts[cut], map.shape[2], map.shape[3], numbers_behind(node))
                for cut, (map, node) in self.maps(pixels).items()
            ]

    def deployed(self) -> Backbone:
        """A plain backbone that gives the same features in evaluation, for :func:`vitrarium.models.deploy.deploy`.

        Called on a copy that may be taken apart; layers inside have been asked before. Default: itself.
        """
        return self

    def lipschitz_bound(self) -> float | None:
        """An upper bound on the L2 Lipschitz constant from pixels to map, standardisation included; None if unknown."""
        return None


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A standardisation (3,) for RGB as one for ``channels`` channels: unchanged, or its mean for each of them."""
    if channels < 1:
        raise UserError(f"in_channels={channels}", "an image has at least one channel")
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def first_line(error: BaseException) -> str:
    """What an error of foreign code says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def finish(backbone: Backbone, cut: str | None, weights: str | None) -> Backbone:
    """The last step of every builder: cut the network, then load weights into what is left (and into its tail).

    Args:
        backbone: the whole network.
        cut: a named cut or a module path; None for the end of the network.
        weights: a weight source, or None for random weights.
    """
    backbone = backbone.truncate(cut or backbone.cut)
    if weights is not None:
        from vitrarium.models.backbones.weights import load_weights

        backbone.weight_report = load_weights(backbone, weights)
        level = logging.INFO if backbone.weight_report.complete else logging.WARNING
        logger.log(level, "%s", backbone.weight_report)
    return backbone


BACKBONES = Registry(
    "backbone",
    [
        "vitrarium.models.backbones.convnet",
        "vitrarium.models.backbones.resnet_cifar",
        "vitrarium.models.backbones.own_module",
    ],
)
