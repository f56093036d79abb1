"""The residual networks for 32-pixel images: ResNet-20 and ResNet-56 (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import pad

from vitrarium.models.backbones.base import BACKBONES, Backbone, Cut, finish, for_channels
from vitrarium.models.types import Features

WIDTHS = (16, 32, 64)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ZeroPadShortcut(nn.Module):
    """Shortcut without parameters (option A): every second row and column, new channels zero on both sides.

    Args:
        added: channels to add, an even number.
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D + added, ceil(h / 2), ceil(w / 2))."""
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if inputs == width else ZeroPadShortcut(width - inputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, width, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


class ResNetCifar(Backbone):
    """Depth 6 n + 2: a convolution and three layers of n blocks with 16, 32 and 64 channels.

    Keys of ``network`` are those of the public CIFAR-10 weights (conv1, bn1, layer1.0.conv1 ...).

    Args:
        blocks: n.
        in_channels: channels of the images.
    """

    channels_last = True
    aliases = {"stem": "relu"}  # noqa: RUF012

    def __init__(self, blocks: int, in_channels: int = 3) -> None:
        super().__init__()
        self.standardise_by(for_channels(IMAGENET_MEAN, in_channels), for_channels(IMAGENET_STD, in_channels))
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(WIDTHS[0]),
            relu=nn.ReLU(),
        )
        inputs = WIDTHS[0]
        for number, width in enumerate(WIDTHS, 1):
            steps = [Block(inputs, width, width // inputs)] + [Block(width, width, 1) for _ in range(blocks - 1)]
            layers[f"layer{number}"] = nn.Sequential(*steps)
            inputs = width
        self.network = nn.Sequential(layers)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.cuts = {"stem": Cut(16, 1), "layer1": Cut(16, 1), "layer2": Cut(32, 2), "layer3": Cut(64, 4)}
        self.cut = "layer3"
        self.probe_size = 32

    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) pixels in [0, 1] to a map (B, 64, H / 4, W / 4)."""
        return Features(self.network(self.standardise(x)))


@BACKBONES.register("resnet20")
def build_resnet20(in_channels: int = 3, cut: str | None = None, weights: str | None = None) -> Backbone:
    """Build a ResNet-20, 0.27 million parameters.

    Args:
        in_channels: channels of the images.
        cut: ``stem``, ``layer1`` to ``layer3`` or any module path (``layer2.0.bn1``); default ``layer3``.
        weights: a weight source; default random.
    """
    return finish(ResNetCifar(3, in_channels), cut, weights)


@BACKBONES.register("resnet56")
def build_resnet56(in_channels: int = 3, cut: str | None = None, weights: str | None = None) -> Backbone:
    """Build a ResNet-56, 0.85 million parameters.

    Args:
        in_channels: channels of the images.
        cut: ``stem``, ``layer1`` to ``layer3`` or any module path (``layer2.0.bn1``); default ``layer3``.
        weights: a weight source; default random.
    """
    return finish(ResNetCifar(9, in_channels), cut, weights)
