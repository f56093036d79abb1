"""One pass over a split: what units say, and what any layer of any model says, reduced to one number a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.axes.geometry import Moments
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.layers.reduction import REDUCTIONS, reduce_map
from vitrarium.models.modes import evaluating

Look = Callable[[Batch], Tensor]
"""A batch to a map (B, C, h, w)."""

AXES = "axes"
"""What evidence gives whose units are the channels of a layer inside the network."""


@dataclass
class Layer:
    """A layer of a model.

    Attributes:
        model: whose.
        look: a batch to its map.
        name: of the layer, for people: the cut of the backbone, and that units are its channels where they are.
    """

    model: TransparentClassifier
    look: Look
    name: str


@dataclass
class Seen:
    """What a layer says of N images, on the CPU.

    Attributes:
        reduced: (N, C) by reduction.
        truth: (N, K) of the concepts.
        labels: (N,) int64.
        index: (N,) int64, position of each image in its split.
        moments: of the channels over all places of all images; None if nobody asked.
        said: (N, M) activations of the model's units; None if only a layer was looked at.
    """

    reduced: dict[str, Tensor]
    truth: Tensor
    labels: Tensor
    index: Tensor
    moments: Moments | None = None
    said: Tensor | None = None


def layer_of(model: TransparentClassifier, cut: str | None = None) -> Layer:
    """The layer of a model at a cut.

    Args:
        model: any classifier. It is not changed, but use either the model or the layer where its backbone is somebody's
            own network: a cut may shorten it.
        cut: a named cut or module path of its backbone: the layer is what that module gives. None, or the cut that its
            backbone already has: the units' maps where units are the channels of a layer (whitened axes), else the map
            at the end of the backbone.

    Raises:
        UserError: a cut that does not exist, a backbone that was cut elsewhere.
    """
    own = model.backbone.cut
    if AXES in model.evidence.gives and cut in (None, own):
        return Layer(model, lambda batch: _maps(model, batch), f"{own} (its axes)")
    stem = model.backbone if cut is None else model.backbone.truncate(cut)
    return Layer(model, lambda batch: stem(batch.image).map, stem.cut)


def _maps(model: TransparentClassifier, batch: Batch) -> Tensor:
    maps = model.observe(model.look(batch)).maps
    assert maps is not None
    return maps


def look_at_layer(
    layer: Layer, loader: Iterable[Batch], reductions: Sequence[str] = REDUCTIONS, moments: bool = False
) -> Seen:
    """One pass over a split; of each map only its reductions are kept.

    Args:
        layer: which.
        loader: batches of one split, with concepts.
        reductions: which ones.
        moments: also the means and covariances of the channels over places.

    Raises:
        UserError: no image, data without concepts, values that are not finite.
    """
    gathered = Moments() if moments else None

    def see(batch: Batch) -> dict[str, Tensor]:
        map = layer.look(batch).float()
        if gathered is not None:
            gathered.update(map)
        return {how: reduce_map(map, how) for how in reductions}

    seen = _pass(layer.model, loader, see)
    seen.moments = gathered
    return seen


def look_at_units(model: TransparentClassifier, loader: Iterable[Batch]) -> Seen:
    """One pass over a split: the activations of the units, and the spatial means and moments of the layer they are.

    The layer is the units' maps where they have some; units without maps are their own layer.

    Raises:
        UserError: as :func:`look_at_layer`.
    """
    gathered = Moments()

    def see(batch: Batch) -> dict[str, Tensor]:
        evidence = model.observe(model.look(batch))
        maps = evidence.activations[:, :, None, None] if evidence.maps is None else evidence.maps
        gathered.update(maps.float())
        return {"said": evidence.activations.float(), "mean": maps.float().mean((2, 3))}

    seen = _pass(model, loader, see)
    seen.moments, seen.said = gathered, seen.reduced.pop("said")
    return seen


def _pass(
    model: TransparentClassifier, loader: Iterable[Batch], see: Callable[[Batch], dict[str, Tensor]]
) -> Seen:  # fmt: skip
    """What ``see`` makes of each batch, joined, beside truth, labels and positions."""
    at, parts, seen = model.evidence.alive.device, [], 0
    with evaluating(model):
        for batch in loader:
            if batch.concepts is None:
                raise UserError("the images have no concept annotation", "choose a data set with concepts")
            index = torch.arange(seen, seen + len(batch)) if batch.index is None else batch.index
            values = {name: value.cpu() for name, value in see(batch.to(at)).items()}
            parts.append(Seen(values, batch.concepts.float().cpu(), batch.label.cpu(), index.cpu()))
            seen += len(batch)
    if not parts:
        raise UserError("the split has no images", "choose another split")
    joined = {name: torch.cat([part.reduced[name] for part in parts]) for name in parts[0].reduced}
    if not all(bool(torch.isfinite(values).all()) for values in joined.values()):
        raise UserError("the layer has values that are not finite", "train again with a smaller learning rate")
    truth, labels, index = (torch.cat([getattr(p, name) for p in parts]) for name in ("truth", "labels", "index"))
    return Seen(joined, truth, labels, index)
