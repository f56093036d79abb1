"""Networks of somebody else's, as the tests of their adapter meet them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def stage(inputs, width):
    return nn.Sequential(nn.Conv2d(inputs, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class Classifier(nn.Module):
    """Two stages and a head, as most networks are."""

    def __init__(self, width=4, classes=5):
        super().__init__()
        self.stage1 = stage(3, width)
        self.stage2 = stage(width, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def features(self, x):
        return self.stage2(self.stage1(x))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Mapped(Classifier):
    """Ends in a map."""

    def forward(self, x):
        return self.features(x)


class Wilful(Classifier):
    """Looks at values, which torch.fx cannot follow, and has a second head for training."""

    def __init__(self, width=4, classes=5):
        super().__init__(width, classes)
        self.second = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stage1(x)
        if x.isnan().any():
            return None
        if self.training:
            self.second(x.mean((2, 3)))
        return self.head(self.stage2(x).mean((2, 3)))


class Configured(Mapped):
    """Takes an option that no configuration can hold."""

    def __init__(self, width=4, activation=nn.ReLU):
        super().__init__(width)
        self.stage2[2] = activation()


class Sized(Classifier):
    """Its code depends on the number of channels, which torch.fx does not know."""

    def forward(self, x):
        x = self.stage1(x)
        for _ in range(x.shape[1] // 4):
            x = x * 2
        return self.head(self.stage2(x).mean((2, 3)))


class Tokens(nn.Module):
    """Patches of 8 pixels as tokens behind ``prefix`` others."""

    def __init__(self, prefix=1, width=6, last=False):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, width))
        self.norm = nn.LayerNorm(width)
        self.last = last

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        if self.last:
            return self.norm(x)
        x = x.flatten(1, 2)
        return self.norm(torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1))


class Fixed(Classifier):
    """Its head fits 32 x 32 pixels only."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Borrowing(Wilful):
    """Reads the weights of a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.lent = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.features(x) if not x.isnan().any() else x
        x = functional.conv2d(x, self.lent.weight)
        return self.head(self.stage2[2](x).mean((2, 3)))


class OfBatch(nn.Module):
    """Normalises by the statistics of the batch, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.conv(x))


class Random(Mapped):
    """Drops units in evaluation too."""

    def forward(self, x):
        return functional.dropout(super().forward(x), 0.5, training=True)


class NeedsTwo(Mapped):
    def forward(self, x, text):
        return super().forward(x) + text


class BreaksInTraining(Mapped):
    def forward(self, x):
        if self.training:
            raise RuntimeError("no teacher was given")
        return super().forward(x)


class OtherSizeInTraining(Mapped):
    def forward(self, x):
        x = super().forward(x)
        return x[:, :, ::2, ::2] if self.training else x


class Unbounded(Mapped):
    def forward(self, x):
        return super().forward(x) / 0.0
