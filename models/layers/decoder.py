"""From units back to an image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

START, DOUBLINGS = 4, 3
"""The decoder begins with 4 x 4 places and doubles them three times."""

SIDE = START * 2**DOUBLINGS


class ImageDecoder(nn.Module):
    """Units (B, M) to an image (B, C, H, W) in [0, 1] of any size.

    A linear layer makes a map of 4 x 4 places, three transposed convolutions (4 x 4, stride 2) with ReLU between them
    make 32 x 32 pixels of it, and a bilinear interpolation gives these the size that is asked for. The grid is the same
    for every data set: a few dozen numbers hold no finer detail, the weights do not depend on the size of the images,
    and decoding costs about a million multiplications, little beside a backbone.

    Args:
        units: M.
        channels: C of the image.
        width: channels of the first map; the last but one has half of them.
    """

    def __init__(self, units: int, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.start = nn.Linear(units, width * START * START)
        half = max(1, width // 2)
        self.layers = nn.Sequential(
            nn.ReLU(),
            _double(width, width),
            nn.ReLU(),
            _double(width, half),
            nn.ReLU(),
            _double(half, channels),
        )

    def forward(self, units: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, M) to (B, C, H, W) in [0, 1], where ``size`` is (H, W)."""
        grid = self.layers(self.start(units).unflatten(1, (self.width, START, START)))
        # The interpolation stands before the sigmoid: dark and bright borders stay sharper.
        return functional.interpolate(grid, size=size, mode="bilinear", align_corners=False).sigmoid()


def _double(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
