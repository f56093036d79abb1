"""Setting prototypes to patches of training images, and filing where they come from."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.data.source import Split
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.boxes import percentile_boxes
from vitrarium.models.prototypes.drift import (
    digest_of,
    pictures_are_current,
    source_images,
    to_pixels,
    weights_checksum,
)
from vitrarium.models.prototypes.layer import PrototypeLayer
from vitrarium.models.prototypes.nearest import AT_ONCE, prototype_layer
from vitrarium.models.prototypes.receptive import receptive_field


@torch.no_grad()
def place_at(
    model: TransparentClassifier,
    split: Split,
    which: Tensor,
    index: Tensor,
    place: Tensor,
    level: float = 0.95,
    batch: int = 64,
) -> Tensor:
    """Set prototypes to patches of training images, and file these as their sources.

    Where units are channels and have no vectors, nothing is moved: the source is what shows the unit. Box and
    similarity are those of the prototype as it is afterwards. The pictures of all other prototypes stay as current as
    they were. If an image cannot be read or a field not be measured, nothing has changed.

    Args:
        model: changed in place; each image is seen once.
        split: the training split.
        which: (n,) int64, prototypes.
        index: (n,) int64, the image of each in the split.
        place: (n, 2) int64, row and column of the patch in the similarity map.
        level: percentile of the box.
        batch: images at a time.

    Returns:
        (n,) float32, how far each was moved, |p - x| / |p|; NaN where there are no vectors.

    Raises:
        UserError: an image outside the split, or a place outside the map.
    """
    layer = prototype_layer(model)
    device = layer.class_of.device
    which, index, place = which.to(device), index.to(device), place.to(device)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(split):
        raise UserError(f"there is no image {int(index.max())} among {len(split)}", "give positions in the split")
    field = None
    if len(index):
        # Asked first: a backbone whose field cannot be measured is refused before anything has changed.
        size = split.sample(int(index[0])).image.shape
        field = receptive_field(model, (size[0], size[1]))
    was_current = pictures_are_current(model)
    before = {name: tensor.clone() for name, tensor in layer.sources.state_dict().items()}
    vectors = None if layer.vectors is None else layer.vectors.detach().clone()
    moved = torch.full((len(which),), float("nan"), device=device)
    try:
        with evaluating(model):
            for positions, images in source_images(split, index, batch):
                here = torch.isin(index, positions.to(device)).nonzero().squeeze(1)
                row = torch.searchsorted(positions.to(device), index[here])
                pixels = to_pixels(images, device)
                latent = layer.embed(model.backbone(pixels.to(model.backbone.mean.dtype)))
                _refuse_outside(place[here], latent, layer.window)
                if vectors is not None:
                    patches = layer.patches(latent, row, place[here])
                    old = vectors[which[here]].flatten(1).float()
                    away = (old - patches.flatten(1).float()).norm(dim=1)
                    moved[here] = away / old.norm(dim=1).clamp_min(1e-12)
                    layer.place_prototypes(which[here], patches)
                _file_boxes(layer, latent, row, which[here], place[here], (pixels.shape[2], pixels.shape[3]), level)
                _file_images(layer, images, pixels, row, which[here])
    except BaseException:
        layer.sources.load_state_dict(before)
        if vectors is not None and layer.vectors is not None:
            layer.vectors.copy_(vectors)
        raise
    sources, labels = layer.sources, torch.as_tensor(split.labels, device=device)
    sources.index[which], sources.label[which], sources.place[which] = index, labels[index], place
    if field is not None:
        _put(sources.field, which, field.boxes(place))
    if not was_current:
        sources.drift.fill_(float("nan"))
    sources.drift[which] = 0.0
    sources.state.fill_(weights_checksum(model))
    return moved


def _put(buffer: Tensor, which: Tensor, values: Tensor) -> None:
    """Rows ``which`` of a buffer, which has the precision of the model."""
    buffer[which] = values.to(buffer)


def _refuse_outside(place: Tensor, latent: Tensor, part: int) -> None:
    """Places (n, 2) must be in the similarity map of ``latent``."""
    ends = torch.tensor([latent.shape[2] - part + 1, latent.shape[3] - part + 1], device=place.device)
    if bool(((place < 0) | (place >= ends)).any()):
        raise UserError(
            f"a place is outside the similarity map of {int(ends[0])} x {int(ends[1])}",
            "give row and column, counted from 0",
        )


def _file_boxes(
    layer: PrototypeLayer,
    latent: Tensor,
    row: Tensor,
    which: Tensor,
    place: Tensor,
    size: tuple[int, int],
    level: float,
) -> None:
    """Similarity and percentile box of prototypes ``which`` in the images ``row`` of latents."""
    grid = (latent.shape[2], latent.shape[3])
    # n prototypes in n images give n^2 maps, of which n are looked at.
    step = max(1, min(32, math.isqrt(AT_ONCE // (grid[0] * grid[1]))))
    for part in torch.arange(len(which), device=latent.device).split(step):
        images, own = row[part].unique(return_inverse=True)
        chosen, ours = which[part].unique(return_inverse=True)
        maps = layer.similarity_of(latent[images], chosen)[own, ours].float()
        here = torch.arange(len(part), device=latent.device)
        _put(layer.sources.similarity, which[part], maps[here, place[part, 0], place[part, 1]])
        _put(layer.sources.box, which[part], percentile_boxes(maps, size, level, grid))


def _file_images(layer: PrototypeLayer, images: list[np.ndarray], pixels: Tensor, row: Tensor, which: Tensor) -> None:
    """Hash and small picture of the images."""
    sources = layer.sources
    digests = torch.tensor([digest_of(image) for image in images], device=which.device)
    sources.digest[which] = digests[row]
    size = sources.picture.shape[-1]
    if size:
        small = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        sources.picture[which] = (small * 255).round().clamp(0, 255).to(torch.uint8)[row]
