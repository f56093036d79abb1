"""What prototypes and part filters are held against: patches drawn by chance, channels of the backbone as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.records import FLOORS
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.layer import PrototypeLayer
from vitrarium.models.prototypes.similarity import cosine_maps
from vitrarium.models.types import Evidence, Features

Look = Callable[[Features], Evidence]

PATCHES, CHANNELS = FLOORS
"""Scopes of the records."""


def channels(features: Features) -> Evidence:
    """The channels of a map (B, D, h, w) as units, each as active as at its strongest place."""
    activations = features.map.amax((2, 3))
    return Evidence(activations, activations, maps=features.map)


def random_patches(model: TransparentClassifier, batches: Iterable[Batch], owners: Tensor, seed: int = 0) -> Look:
    """The model's prototypes with a patch drawn by chance in place of each, under the same backbone.

    A prototype that belongs to classes gets a patch of an image of these (of any image, if there is none). Where units
    are channels and have no vectors, the patches are places of the backbone's map and compared by cosine. One pass over
    the images; what is drawn depends on the seed and the positions of the images, not on batches or their order.

    Args:
        model: any model whose units are looked for in patches; it is not changed.
        batches: images that are not measured on.
        owners: (M, C) bool, classes of each unit.
        seed: of the draw.

    Raises:
        UserError: no images.
    """
    layer: PrototypeLayer = deepcopy(model.evidence).eval()  # type: ignore[assignment]
    if layer.vectors is not None:
        mine = owners.to(layer.alive.device)[layer.unit_of_prototype]
        drawn = _draw(model, batches, mine, seed, layer)
        layer.place_prototypes(torch.arange(len(drawn), device=drawn.device), drawn)
        return layer
    patches = _draw(model, batches, owners.to(layer.alive.device), seed, None)

    def look(features: Features) -> Evidence:
        maps = cosine_maps(features.map, patches)
        activations = maps.amax((2, 3))
        return Evidence(activations, activations, maps=maps)

    return look


@torch.no_grad()
def _draw(
    model: TransparentClassifier, batches: Iterable[Batch], owners: Tensor, seed: int, layer: PrototypeLayer | None
) -> Tensor:
    """A patch for each of P prototypes: each image draws a number for each prototype, the largest one wins."""
    best = torch.full((len(owners),), -2.0, dtype=torch.float64, device=owners.device)
    patches: Tensor | None = None
    for batch in batches:
        features = model.look(batch.to(owners.device))
        latent = features.map if layer is None else layer.embed(features)
        shape = latent.shape[-2:] if layer is None else layer.similarity(latent[:1]).shape[-2:]
        if batch.index is None:
            raise UserError("batches without positions cannot be drawn from", "give Batch.index")
        rngs = [np.random.default_rng([seed, int(i)]) for i in batch.index]
        keys = torch.from_numpy(np.stack([rng.random(len(owners)) for rng in rngs])).to(best)
        cells = np.stack([rng.integers(0, shape[0] * shape[1], len(owners)) for rng in rngs])
        # Images of other classes come after all of its own.
        keys = torch.where(owners[:, batch.label.to(owners.device)].T, keys, keys - 1)
        top, image = keys.max(0)
        won = (top > best).nonzero()[:, 0]
        rows = image[won]
        cell = torch.from_numpy(cells).to(owners.device)[rows, won]
        places = torch.stack([cell // shape[1], cell % shape[1]], 1)
        if layer is None:
            new = latent[rows, :, places[:, 0], places[:, 1]][:, :, None, None]
        else:
            new = layer.patches(latent, rows, places)
        if patches is None:
            patches = new.new_zeros(len(owners), *new.shape[1:])
        patches[won], best[won] = new, top[won]
    if patches is None:
        raise UserError("there are no images to draw random patches from", "give a split with images")
    return patches
