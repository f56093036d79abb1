"""Sources and matches of the units that an explanation shows, for evidence made of patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrarium.eval.explanations.patches import Match, Source, known, known_box
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.prototypes.boxes import misalignment, percentile_boxes
from vitrarium.models.prototypes.drift import pictures_are_current
from vitrarium.models.prototypes.nearest import prototype_layer
from vitrarium.models.prototypes.receptive import receptive_field
from vitrarium.models.types import Features

Looks = dict[int, tuple[Match, Source | None]]
"""By unit: where its best prototype was found, and where that comes from."""


@torch.no_grad()
def looks_of(
    model: TransparentClassifier,
    pixels: Tensor,
    features: Features,
    units: Sequence[int],
    do: Intervention | None = None,
) -> Looks:
    """What each of some units found in the image, and what its prototype stands for; call it under ``evaluating``.

    The backbone runs again only to test the boxes: four times for each unit, in batches.

    Args:
        model: its evidence gives "prototypes".
        pixels: (1, 3, H, W) the image.
        features: of the image.
        units: the units to look at.
        do: what was set and banned; a banned place is no match.
    """
    if not units:
        return {}
    layer = prototype_layer(model)
    latent = layer.embed(features)
    maps = layer.similarity(latent)[0].float()
    allowed = _allowed(do, layer.unit_of_prototype, maps)
    filled = maps.masked_fill(~allowed, float("-inf")).flatten(1)
    best, place = filled.max(1)
    chosen = torch.tensor([_best_of(layer.unit_of_prototype, best, unit) for unit in units], device=maps.device)
    size = (pixels.shape[2], pixels.shape[3])
    width = maps.shape[2]
    places = torch.stack([place[chosen] // width, place[chosen] % width], 1)
    # Banned places are as low as the lowest that is allowed, so that the box leaves them out.
    lowest = filled.masked_fill(~allowed.flatten(1), float("inf")).amin(1)[:, None, None]
    shown = torch.where(allowed, maps, lowest)[chosen].nan_to_num(posinf=0.0)
    boxes = percentile_boxes(shown, size, grid=(latent.shape[2], latent.shape[3])).to(maps.device)
    fields = receptive_field(model, size).boxes(places)
    kept, lost = _tested(model, pixels, torch.tensor(list(units)), boxes, allowed[chosen].flatten(1).all(1))
    current = pictures_are_current(model)
    found: Looks = {}
    for row, (unit, prototype) in enumerate(zip(units, chosen.tolist(), strict=True)):
        somewhere = bool(torch.isfinite(best[prototype]))
        owner = int(layer.class_of[prototype])
        match = Match(
            prototype=prototype,
            owner=model.class_names[owner] if owner >= 0 else None,
            similarity=float(best[prototype]) if somewhere else None,
            box=known_box(boxes[row].tolist()) if somewhere else None,
            field=known_box(fields[row].tolist()) if somewhere else None,
            kept=known(float(kept[row])),
            lost=known(float(lost[row])),
        )
        found[unit] = match, source_of(model, prototype, current)
    return found


def source_of(model: TransparentClassifier, prototype: int, current: bool | None = None) -> Source | None:
    """Where a prototype comes from; None if it was never projected, or was moved by hand.

    Args:
        model: its evidence gives "prototypes".
        prototype: its position.
        current: what :func:`pictures_are_current` said; None = ask it.
    """
    sources = prototype_layer(model).sources
    if int(sources.index[prototype]) < 0:
        return None
    label, picture = int(sources.label[prototype]), sources.picture[prototype]
    return Source(
        index=int(sources.index[prototype]),
        label=model.class_names[label] if label >= 0 else None,
        picture=picture.permute(1, 2, 0).cpu().numpy() if picture.numel() else None,
        box=known_box(sources.box[prototype].tolist()),
        field=known_box(sources.field[prototype].tolist()),
        similarity=known(float(sources.similarity[prototype])),
        drift=known(float(sources.drift[prototype])),
        current=pictures_are_current(model) if current is None else current,
    )


def _allowed(do: Intervention | None, unit_of: Tensor, maps: Tensor) -> Tensor:
    """(P, h', w') bool, where each prototype may look."""
    if do is None or do.region is None:
        return torch.ones_like(maps, dtype=torch.bool)
    region = do.region[0].to(maps.device) > 0.5
    return (region if len(region) == 1 else region[unit_of]).expand_as(maps)


def _best_of(unit_of: Tensor, best: Tensor, unit: int) -> int:
    """The prototype of a unit that fits best."""
    own = (unit_of == unit).nonzero()[:, 0]
    return int(own[best[own].argmax()])


def _tested(
    model: TransparentClassifier, pixels: Tensor, units: Tensor, boxes: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """What boxes keep and lose, (n,) each; NaN for units kept from a place, of which the test knows nothing."""
    kept, lost = torch.full((len(units),), float("nan")), torch.full((len(units),), float("nan"))
    if bool(free.any()):
        which = free.cpu()
        images = pixels.expand(int(which.sum()), -1, -1, -1)
        found = misalignment(model, images, units[which], boxes[free])
        kept[which], lost[which] = (values.cpu() for values in found)
    return kept, lost
