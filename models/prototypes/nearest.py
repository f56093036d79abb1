"""The nearest patches of every prototype, found in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.layer import PrototypeLayer
from vitrarium.models.strongest import NOTHING, Strongest, from_all

AT_ONCE = 2**21
"""Similarities held at a time (8 MB, which stay in a processor's cache); a batch with more is looked at in pieces."""

WORTH_SPARING = 2**13
"""Similarities of one image from which on it pays to compare it with the prototypes of its own class alone."""

CLASSMATES = 16
"""Images of a few classes that are compared together."""


@dataclass
class Nearest:
    """For each of P prototypes the k images with the most similar patch, most similar first.

    Where fewer than k images are allowed, the rest has index, label and place -1 and similarity -inf.

    Attributes:
        similarity: (P, k) in single precision at least.
        index: (P, k) int64, position of the image in its split.
        label: (P, k) int64, class of the image.
        place: (P, k, 2) int64, row and column of the patch in the similarity map.
        patch: (P, E, k', k') latent of the first one, what a prototype is set to by projecting it; None if it was not
            asked for, or if the layer has no vectors.
    """

    similarity: Tensor
    index: Tensor
    label: Tensor
    place: Tensor
    patch: Tensor | None = None

    @property
    def found(self) -> Tensor:
        """(P, k) bool, where there is an image."""
        return self.index >= 0

    def among(self, owners: Tensor) -> Tensor:
        """(P, k) bool: which of the images are of a class that owns the prototype, ``owners`` (P, C) bool."""
        return owners.gather(1, self.label.clamp_min(0)) & self.found

    def share_of(self, owners: Tensor) -> Tensor:
        """(P,) the share of such images among those found, which is the class purity; 0 where none was found."""
        return self.among(owners).sum(1) / self.found.sum(1).clamp_min(1)


@dataclass(frozen=True)
class Query:
    """What a search looks for.

    Attributes:
        count: k, images per prototype.
        allowed: (P, C) bool, images of which classes count for each prototype; None = all.
        patches: whether to keep the latent of the best patch.
    """

    count: int = 1
    allowed: Tensor | None = None
    patches: bool = False


def nearest_patches(
    model: TransparentClassifier,
    batches: Iterable[Batch],
    count: int = 1,
    allowed: Tensor | None = None,
    patches: bool = True,
    gather: bool = False,
) -> Nearest:
    """The ``count`` images with the most similar patch for every prototype; see :func:`search` and :class:`Query`."""
    return search(model, batches, [Query(count, allowed, patches)], gather)[0]


def search(
    model: TransparentClassifier, batches: Iterable[Batch], queries: Iterable[Query], gather: bool = False
) -> list[Nearest]:
    """Answer several queries in one pass over the images, in evaluation mode.

    Of each image only the most similar patch of a prototype counts. Ties go to the image with the lower index, then to
    the patch that comes first row by row, so the answer does not depend on the order or the size of the batches (as far
    as the similarities themselves do not). Memory does not grow with the number of images: what is kept are k images
    per prototype, and at most ``AT_ONCE`` similarities (but one image) are held at a time.

    Args:
        model: its evidence is a :class:`PrototypeLayer`.
        batches: clean images; without ``index`` they are counted from 0.
        queries: what to look for.
        gather: each process has seen its share of the images, and the answers are put together; all processes give the
            same. Without it every process answers for the images it has seen.

    Returns:
        One answer per query, on the model's device.

    Raises:
        UserError: similarities that are not numbers.
    """
    layer = prototype_layer(model)
    device = layer.class_of.device
    dtype = torch.promote_types(model.backbone.mean.dtype, torch.float32)
    running = [_Running(query, layer, device, dtype) for query in queries]
    seen = 0
    with evaluating(model):
        for batch in batches:
            index = torch.arange(seen, seen + len(batch)) if batch.index is None else batch.index
            seen += len(batch)
            batch = batch.to(device)
            latent = layer.embed(model.look(batch))
            for piece in _pieces(layer, latent, index.to(device), batch.label, [one.allowed for one in running]):
                for one in running:
                    one.take(layer, piece)
    return [one.answer(gather) for one in running]


@dataclass(frozen=True)
class _Piece:
    """Some images of a batch, compared with prototypes.

    Attributes:
        which: (n,) int64, the prototypes.
        maps: (b, n, h', w') their similarities.
        peaks: (b, n) the best of each map.
        latent: (b, E, h, w).
        index: (b,) int64, positions of the images.
        label: (b,) int64.
    """

    which: Tensor
    maps: Tensor
    peaks: Tensor
    latent: Tensor
    index: Tensor
    label: Tensor


def _pieces(
    layer: PrototypeLayer, latent: Tensor, index: Tensor, label: Tensor, allowed: list[Tensor | None]
) -> Iterator[_Piece]:
    """A batch in pieces of at most ``AT_ONCE`` similarities.

    Where no query looks at all classes, images of one class come together, and are compared with those prototypes alone
    that any query lets them meet.
    """
    everything = torch.arange(len(layer.class_of), device=latent.device)
    size = len(everything) * latent.shape[-2] * latent.shape[-1]
    masks = [mask for mask in allowed if mask is not None]
    sparing = len(masks) == len(allowed) and size >= WORTH_SPARING
    order = label.argsort(stable=True) if sparing else torch.arange(len(latent), device=latent.device)
    step = max(1, AT_ONCE // max(1, size))
    for rows in order.split(min(step, CLASSMATES) if sparing else step):
        which = everything
        if sparing:
            which = torch.stack([mask[:, label[rows]].any(1) for mask in masks]).any(0).nonzero().squeeze(1)
            maps = layer.similarity_of(latent[rows], which)
        else:
            maps = layer.similarity(latent[rows])
        peaks = maps.amax((2, 3))
        if peaks.isnan().any():
            raise UserError(
                "similarities to prototypes are not numbers: a weight of the model is not finite",
                "go back to a checkpoint before training diverged, or lower train.lr",
            )
        if len(which):
            yield _Piece(which, maps, peaks, latent[rows], index[rows], label[rows])


def prototype_layer(model: TransparentClassifier) -> PrototypeLayer:
    """The model's evidence, if it is made of prototypes.

    Raises:
        UserError: it is not.
    """
    if not isinstance(model.evidence, PrototypeLayer):
        raise UserError(
            f"{type(model.evidence).__name__} has no prototypes", "choose evidence that gives them: prototypes, for one"
        )
    return model.evidence


def allowed_classes(model: TransparentClassifier) -> Tensor:
    """(P, C) bool: images of which classes a prototype may be taken from; the readout's word goes first.

    A prototype that every class may use is shared: all its row is True.
    """
    layer = prototype_layer(model)
    decided = model.readout.owners()
    return layer.owners() if decided is None else decided[layer.unit_of_prototype].to(layer.class_of.device)


class _Running:
    """The best k images so far of one query."""

    def __init__(self, query: Query, layer: PrototypeLayer, device: torch.device, dtype: torch.dtype) -> None:
        self.allowed = None if query.allowed is None else query.allowed.to(device)
        size, count = len(layer.class_of), query.count
        place = torch.full((size, count, 2), -1, device=device)
        self.best = Strongest(size, count, device, dtype, {"place": place})
        self.patch: Tensor | None = None
        if query.patches and layer.vectors is not None:
            self.patch = torch.zeros_like(layer.vectors, requires_grad=False)

    def take(self, layer: PrototypeLayer, piece: _Piece) -> None:
        """Let the images of a piece compete."""
        values = piece.peaks.to(self.best.value.dtype).T
        if self.allowed is not None:
            values = values.masked_fill(~self.allowed[piece.which][:, piece.label], NOTHING)
        which, slot, row, column = self.best.take(values, piece.index, piece.label, piece.which)
        if not len(which):
            return
        # Where in the image is looked up for those alone that have entered.
        flat = piece.maps[row, column].flatten(1).argmax(1)
        place = torch.stack([flat // piece.maps.shape[3], flat % piece.maps.shape[3]], 1)
        self.best.extra["place"][which, slot] = place
        first = slot == 0
        if self.patch is not None and bool(first.any()):
            self.patch[which[first]] = layer.patches(piece.latent, row[first], place[first]).to(self.patch)

    def answer(self, gather: bool) -> Nearest:
        """What was found, over the images of all processes if ``gather``."""
        process = self.best.merge() if gather else None
        if process is not None and self.patch is not None:
            everywhere = torch.stack(from_all(self.patch))
            self.patch = everywhere[process, torch.arange(len(process), device=process.device)]
        best = self.best
        place = best.extra["place"].masked_fill((best.index < 0)[:, :, None], -1)
        return Nearest(best.value, best.index, best.label, place, self.patch)
