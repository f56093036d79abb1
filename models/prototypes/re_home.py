"""The edit that gives a prototype another source: it looks at training images."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.drift import to_pixels
from vitrarium.models.prototypes.edits import EDITS, Bench, Edit
from vitrarium.models.prototypes.nearest import allowed_classes, nearest_patches
from vitrarium.models.prototypes.placing import place_at


@EDITS.register("re_home")
class ReHome(Edit):
    """Give a prototype another source: the patch of a training image that is most like it.

    Args:
        unit: its name.
        image: position of the image in the training split; None = by ``rank``.
        rank: the how-manieth nearest image to go to, from 2 (1 is where it is); at most 100.
    """

    name = "re_home"
    needs_data = True

    def __init__(self, unit: str, image: int | None = None, rank: int | None = None) -> None:
        if (image is None) == (rank is None):
            raise UserError("re_home needs image or rank", "give one of the two: image=17, or rank=2")
        if rank is not None and not 1 < rank <= 100:
            raise UserError(f"rank={rank}", "give a number from 2 to 100")
        self.options = {"unit": unit, "image": image, "rank": rank}

    def apply(self, bench: Bench) -> None:
        """One pass over the training images, or over the one that was named."""
        unit = bench.unit(self.options["unit"])
        layer = bench.layer("to re-home a unit")
        if layer.vectors is None:
            raise UserError(
                f"{type(layer).__name__} has no prototype vectors: its units are channels", "remove the unit instead"
            )
        if bench.train is None or bench.split is None:
            raise UserError("re_home looks at training images, and there are none", "give the run its data (--root)")
        mine = (layer.unit_of_prototype == unit).nonzero()[:, 0]
        if self.options["rank"] is not None:
            index, place = self._by_rank(bench, mine)
        else:
            index, place = self._by_image(bench, mine)
        place_at(bench.model, bench.split, mine, index, place)

    def _by_rank(self, bench: Bench, mine: Tensor) -> tuple[Tensor, Tensor]:
        assert bench.train is not None
        rank = int(self.options["rank"])
        found = nearest_patches(bench.model, bench.train(), rank, allowed_classes(bench.model), patches=False)
        index = found.index[mine, rank - 1]
        if bool((index < 0).any()):
            raise UserError(f"there is no {rank}th image for '{self.options['unit']}'", "give a smaller rank")
        return index, found.place[mine, rank - 1]

    def _by_image(self, bench: Bench, mine: Tensor) -> tuple[Tensor, Tensor]:
        assert bench.split is not None
        image, layer, device = int(self.options["image"]), bench.layer("to re-home a unit"), mine.device
        if not 0 <= image < len(bench.split):
            raise UserError(f"there is no training image {image}", f"give a position from 0 to {len(bench.split) - 1}")
        label = int(bench.split.labels[image])
        if not bool(allowed_classes(bench.model)[mine, label].all()):
            raise UserError(
                f"image {image} shows '{bench.model.class_names[label]}', which '{self.options['unit']}' may not be "
                "taken from",
                "choose an image of a class that owns the prototype",
            )
        with evaluating(bench.model):
            pixels = to_pixels([bench.split.sample(image).image], device).to(bench.model.backbone.mean.dtype)
            maps = layer.similarity(layer.embed(bench.model.backbone(pixels)))[0, mine]
        flat = maps.flatten(1).argmax(1)
        place = torch.stack([flat // maps.shape[2], flat % maps.shape[2]], 1)
        return torch.full_like(mine, image), place
