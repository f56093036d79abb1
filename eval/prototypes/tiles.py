"""One prototype as a small picture: its source image, where it was taken from, and what it looks at."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from vitrarium.eval.gallery.drawing import BOX, FIELD, empty, outline, scaled
from vitrarium.eval.gallery.exhibits import Tile
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.nearest import prototype_layer
from vitrarium.models.prototypes.sources import Sources

SOURCES = 3
"""Sources that are shown of a unit with several prototypes."""


def tile(sources: Sources, prototype: int, size: int = 160) -> np.ndarray:
    """The source image of a prototype with both boxes, (size, size, 3) uint8; a grey tile where there is none.

    The yellow box holds the highest 5 % of its similarity, the white one is all that the patch can have seen.
    """
    picture = sources.picture[prototype].permute(1, 2, 0).cpu().numpy()
    if not bool(sources.known[prototype]) or not picture.size:
        known = bool(sources.known[prototype])
        return empty(size, "no picture\nwas kept" if known else "not projected:\nno picture")
    drawn = scaled(picture, size)
    pen = ImageDraw.Draw(drawn)
    for box, colour in ((sources.field[prototype], FIELD), (sources.box[prototype], BOX)):
        outline(pen, [float(v) * size for v in box], colour)
    return np.asarray(drawn)


def source_in_words(model: TransparentClassifier, prototype: int) -> str:
    """Class of the source image and its position in the training split; empty without a source."""
    sources = prototype_layer(model).sources
    label = int(sources.label[prototype])
    return f"{model.class_names[label]}, image {int(sources.index[prototype])}" if label >= 0 else ""


def source_tiles(model: TransparentClassifier, unit: int, size: int = 160) -> list[Tile]:
    """The sources of a unit's prototypes; none where units are no prototypes, or were never projected."""
    if "prototypes" not in model.evidence.gives:
        return []
    layer = prototype_layer(model)
    own = ((layer.unit_of_prototype == unit) & layer.sources.known).nonzero()[:, 0].tolist()[:SOURCES]
    words = [source_in_words(model, p).partition(", ") for p in own]
    return [
        Tile(tile(layer.sources, p, size), "source", ("source: " + label, image))
        for p, (label, _, image) in zip(own, words, strict=True)
    ]
