"""Where each prototype comes from: the training patch that it was projected onto."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sources(nn.Module):
    """The source patch of each of P prototypes; everything is a buffer, so it is saved and moves with the model.

    Args:
        count: P.
        picture: height and width S of the pictures kept of the source images; 0 keeps none.

    Attributes:
        index: (P,) int64, position of the image in the training split; -1 = the prototype comes from no patch.
        label: (P,) int64, class of the image; -1 = unknown.
        digest: (P,) int64, hash of the image's pixels.
        place: (P, 2) int64, row and column of the patch in the map.
        box: (P, 4) float32 in [0, 1], left, top, right, bottom of the 95-percentile box of the similarity in the image.
        field: (P, 4) float32 in [0, 1], the true receptive field of the patch.
        similarity: (P,) float32, of the prototype to its source when it was projected.
        drift: (P,) float32 >= 0, |p - x| / |p| with x the source patch as present weights embed it: how far it moved;
            NaN = nobody has measured it.
        state: () float64, checksum of the weights that ``drift`` was measured with; NaN = never.
        picture: (P, 3, S, S) uint8, the source image.
    """

    index: Tensor
    label: Tensor
    digest: Tensor
    place: Tensor
    box: Tensor
    field: Tensor
    similarity: Tensor
    drift: Tensor
    state: Tensor
    picture: Tensor

    def __init__(self, count: int, picture: int = 64) -> None:
        super().__init__()
        for name in ("index", "label"):
            self.register_buffer(name, torch.full((count,), -1))
        self.register_buffer("digest", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("place", torch.full((count, 2), -1))
        for name in ("box", "field"):
            self.register_buffer(name, torch.full((count, 4), float("nan")))
        for name in ("similarity", "drift"):
            self.register_buffer(name, torch.full((count,), float("nan")))
        self.register_buffer("state", torch.tensor(float("nan"), dtype=torch.float64))
        self.register_buffer("picture", torch.zeros(count, 3, picture, picture, dtype=torch.uint8))

    @property
    def known(self) -> Tensor:
        """(P,) bool, which prototypes have a source."""
        return self.index >= 0

    @torch.no_grad()
    def forget(self, which: Tensor) -> None:
        """Drop the sources of some prototypes (P,) bool: they were moved by hand."""
        for name in ("index", "label", "place"):
            getattr(self, name)[which] = -1
        for name in ("box", "field", "similarity", "drift"):
            getattr(self, name)[which] = float("nan")
        self.digest[which] = 0
        self.picture[which] = 0
