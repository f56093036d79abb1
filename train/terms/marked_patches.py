"""Terms that teach prototypes by marked places: what they must not look at, and what they must not lose."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.marks import read_marks
from vitrarium.data.source import DataSource
from vitrarium.models.modes import modes_kept
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.prototypes import prototype_layer


class _MarkedPatches(Term):
    """What both terms share: the next marked images, and how alike their marked patches are to prototypes.

    Augmentation moves images and not marks, so the marked images come beside the batch, clean, and in evaluation mode:
    the batch statistics of norms know nothing of them.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prototypes"})
    kind: ClassVar[str]
    turn: Tensor

    def __init__(self, source: DataSource, marks: str | None = None, images: int = 8) -> None:
        super().__init__(source)
        if not marks:
            raise UserError(
                f"the term '{self.kind}_patches' has no marks", f"set terms.{self.kind}_patches.marks=FILE.csv"
            )
        if images < 1:
            raise UserError(f"images={images} of the term '{self.kind}_patches'", "give 1 or more")
        self.marks, self.split, self.images = read_marks(marks, source, self.kind), source.splits["train"], images
        self.order = self.marks.image.unique().tolist()
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self._decoded: dict[int, Tensor] = {}

    def likeness(self, step: Step) -> Tensor:
        """Mean similarity at the marks of the next images to the prototypes of the marked classes."""
        count = min(self.images, len(self.order))
        chosen = [self.order[(int(self.turn) + k) % len(self.order)] for k in range(count)]
        self.turn += count
        model, layer = step.model, prototype_layer(step.model)
        like = next(model.backbone.parameters())
        pixels = torch.stack([self._pixels(index) for index in chosen]).to(like)
        with modes_kept(model):
            model.eval()
            maps = layer.similarity(layer.embed(model.backbone(pixels)))
        which = torch.nonzero(torch.isin(self.marks.image, torch.tensor(chosen)))[:, 0]
        row = torch.tensor([chosen.index(int(image)) for image in self.marks.image[which]], device=maps.device)
        places = places_in(self.marks.box[which], maps.shape[-2], maps.shape[-1], layer.window).to(maps.device)
        owned = layer.owners().T[self.marks.label[which].to(maps.device)] & layer.alive_prototypes()
        return marked_likeness(maps[row], places, owned)

    def _pixels(self, index: int) -> Tensor:
        if index not in self._decoded:
            self._decoded[index] = torch.from_numpy(self.split.sample(index).image).permute(2, 0, 1)
        return self._decoded[index].float() / 255


@TERMS.register("forbid_patches")
class ForbidPatches(_MarkedPatches):
    """Prototypes shall not be like patches that a person has marked (ProtoPDebug: Bontempelli et al., ICLR 2023).

        mean over marks of  mean over the living prototypes p of the marked class and the marked patches z of  s(z, p)

    with s the similarity. At every step it takes the next of the marked training images, in turn, as they are without
    augmentation.

    Args:
        source: the data.
        marks: CSV file of marks, see :func:`~vitrarium.data.marks.read_marks`.
        images: marked images looked at in a step.

    Raises:
        UserError: no file, a file that cannot be read, no marks of this kind.
    """

    kind = "forbid"

    def forward(self, step: Step) -> Tensor:
        """The mean similarity."""
        return self.likeness(step)


@TERMS.register("remember_patches")
class RememberPatches(_MarkedPatches):
    """Prototypes shall stay like patches that a person has marked: minus the mean similarity of ``forbid_patches``.

    It is what keeps a class from forgetting what is right when it is forbidden what is wrong (Bontempelli et al., ICLR
    2023).

    Args:
        source: the data.
        marks: CSV file of marks, see :func:`~vitrarium.data.marks.read_marks`.
        images: marked images looked at in a step.

    Raises:
        UserError: no file, a file that cannot be read, no marks of this kind.
    """

    kind = "remember"

    def forward(self, step: Step) -> Tensor:
        """Minus the mean similarity."""
        return -self.likeness(step)


def places_in(box: Tensor, height: int, width: int, part: int = 1) -> Tensor:
    """The places of a map whose patches have their middle in a box; where there is none, the place nearest to it.

    A place of the latent map is taken for its share of the image: its middle is that of a grid over the whole image.

    Args:
        box: (n, 4) in [0, 1], left, top, right, bottom.
        height: h of the similarity map.
        width: w of the similarity map.
        part: a patch is part x part places of the latent map, which is (h + part - 1) x (w + part - 1).

    Returns:
        (n, h, w) bool, at least one True in each.
    """
    down = (torch.arange(height) + part / 2) / (height + part - 1)
    across = (torch.arange(width) + part / 2) / (width + part - 1)
    left, top, right, bottom = (edge[:, None] for edge in box.unbind(1))
    inside = ((down >= top) & (down <= bottom))[:, :, None] & ((across >= left) & (across <= right))[:, None]
    away = (down - (top + bottom) / 2).square()[:, :, None] + (across - (left + right) / 2).square()[:, None]
    nearest = torch.zeros(len(box), height * width, dtype=torch.bool)
    nearest[torch.arange(len(box)), away.flatten(1).argmin(1)] = True
    return torch.where(inside.any((1, 2), keepdim=True), inside, nearest.view_as(inside))


def marked_likeness(maps: Tensor, places: Tensor, owned: Tensor) -> Tensor:
    """Mean similarity at marked places to chosen prototypes, then over marks; marks without a prototype are left out.

    Args:
        maps: (n, P, h, w) similarities of the image of each mark.
        places: (n, h, w) bool.
        owned: (n, P) bool.

    Returns:
        Scalar; 0 with a graph where no mark has a prototype.
    """
    chosen = owned[:, :, None, None] & places[:, None]
    count = chosen.sum((1, 2, 3))
    means = maps.masked_fill(~chosen, 0.0).sum((1, 2, 3)) / count.clamp_min(1)
    return means.sum() / (count > 0).sum().clamp_min(1)
