"""Projection: every prototype becomes a patch of a training image, so that there is a picture of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.nearest import Nearest, Query, allowed_classes, prototype_layer, search
from vitrarium.models.prototypes.placing import place_at
from vitrarium.models.prototypes.statistics import mean_pair_distance
from vitrarium.train.events.base import EVENTS, Event, Moment

MOST_CANDIDATES = 32
"""Images per prototype among which a patch of its own is looked for."""

MEASURED = "prototype neighbours"
"""Under this name :class:`Project` leaves what it measured for events at the same border."""


@EVENTS.register("project")
class Project(Event):
    """Set each living prototype to the most similar patch of the clean training images of its classes.

    The method is ProtoPNet's (Chen et al., NeurIPS 2019). One pass over the training split finds the patches, and a
    pass over the chosen images alone takes them up, with picture, box and receptive field. Where units are channels and
    have no vectors (PIP-Net), nothing moves, and the patch is filed as what shows the unit. A prototype that no class
    uses (in no slot of a pool) is left as it is.

    Logs, under ``project/``:

    - ``similarity`` and ``moved``: means of the similarity to the nearest patch before, and of |p - x| / |p|;
    - ``class_purity``: mean share of the ``neighbours`` nearest images of all classes that are of the prototype's;
    - ``class_leaks``: prototypes whose nearest image of all is of a foreign class;
    - ``duplicates``: prototypes whose nearest patch is also that of another; ``duplicates_left``: those that still
      share it;
    - ``pair_distance``: mean |p_i - p_j| over all pairs afterwards, 0 where all have become one patch (the released
      ProtoPNet logs it after every epoch);
    - ``val_accuracy_before`` and ``val_accuracy_after``.

    Args:
        neighbours: nearest images that purity looks at; 0 measures neither purity nor leaks, which is faster where many
            classes have prototypes of their own.
        unique: prototypes do not share patches: of those that want the same one the most similar gets it, and the
            others take the best patch that is left (in another image; among 32 images at most). False is the released
            way, in which several prototypes may become the same.
        level: percentile of the box, see :func:`~vitrarium.models.prototypes.boxes.percentile_boxes`.

    Raises:
        UserError: a class without images, no living prototype; nothing has changed then.
    """

    default_when = "end"

    def __init__(self, neighbours: int = 6, unique: bool = True, level: float = 0.95) -> None:
        if neighbours < 0 or not 0 <= level <= 1:
            raise UserError(
                f"neighbours={neighbours}, level={level}", "give 0 or more neighbours, and a level in [0, 1]"
            )
        self.neighbours, self.unique, self.level = neighbours, unique, level

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence without prototypes."""
        prototype_layer(model)

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """Two passes of the backbone at most over training images, and one over validation images."""
        model = moment.model
        layer, allowed = prototype_layer(model), allowed_classes(model)
        refuse_dead(model)
        wanted = layer.alive_prototypes() & allowed.any(1)
        rivals = int(allowed[wanted].sum(0).max()) if self.unique and bool(wanted.any()) else 1
        queries = [Query(min(rivals, MOST_CANDIDATES), allowed)] + [Query(self.neighbours)] * (self.neighbours > 0)
        own, *around = search(model, moment.loaders("train", shard=True), queries, gather=True)
        refuse_missing(model, wanted & ~own.found[:, 0], allowed)
        if around:
            moment.shared[MEASURED] = around[0]
        which = wanted.nonzero().squeeze(1)
        slot = distinct(own, which) if self.unique else torch.zeros_like(which)
        old = None if layer.vectors is None else layer.vectors.detach().clone()
        index, place = own.index[which, slot], own.place[which, slot]
        moved = place_at(model, moment.split("train"), which, index, place, self.level)
        moment.log("project/similarity", float(own.similarity[which, 0].mean()))
        if old is not None:
            moment.log("project/moved", float(moved.mean()))
            assert layer.vectors is not None
            moment.log("project/pair_distance", mean_pair_distance(layer.vectors[which].flatten(1)))
        if around:
            self._log_neighbours(moment, around[0], allowed, wanted)
        moment.log("project/duplicates", float(shared_patches(own.index[which, 0], own.place[which, 0])))
        moment.log("project/duplicates_left", float(shared_patches(index, place)))
        before, after = _accuracies(moment, old)
        moment.log("project/val_accuracy_before", before)
        moment.log("project/val_accuracy_after", after)

    def _log_neighbours(self, moment: Moment, around: Nearest, allowed: Tensor, wanted: Tensor) -> None:
        owned = wanted & ~allowed.all(1)
        if bool(owned.any()):
            purity = around.share_of(allowed)
            foreign = ~allowed.gather(1, around.label[:, :1].clamp_min(0)).squeeze(1)
            moment.log("project/class_purity", float(purity[owned].mean()))
            moment.log("project/class_leaks", float((foreign & owned).sum()))


def refuse_dead(model: TransparentClassifier) -> None:
    """Refuse a model all of whose prototypes are pruned."""
    if not bool(prototype_layer(model).alive_prototypes().any()):
        raise UserError(
            "all prototypes are pruned: there is none to work on", "go back to a model before pruning, or prune less"
        )


def refuse_missing(model: TransparentClassifier, missing: Tensor, allowed: Tensor) -> None:
    """Refuse to project prototypes ``missing`` (P,) bool, for which no image was found, naming them and their class."""
    if not bool(missing.any()):
        return
    numbers = missing.nonzero().squeeze(1)
    classes = allowed[numbers[0]].nonzero().squeeze(1).tolist()
    mine = [int(n) for n in numbers if allowed[n, classes[0]]]
    shown = ", ".join(str(n) for n in mine[:10]) + (" ..." if len(mine) > 10 else "")
    names = " or ".join(f"'{model.class_names[c]}'" for c in classes[:5]) + (" ..." if len(classes) > 5 else "")
    raise UserError(
        f"the training split has no image of class {names}, so prototype {shown} cannot be projected onto one",
        "add images of it, take the class out of the data set, or leave out the event 'project'",
    )


def shared_patches(index: Tensor, place: Tensor) -> int:
    """How many of n patches, images (n,) and places (n, 2), are also another one's."""
    if not len(index):
        return 0
    _, counts = torch.cat([index[:, None], place], 1).unique(dim=0, return_counts=True)
    return int(counts[counts > 1].sum())


def distinct(nearest: Nearest, which: Tensor) -> Tensor:
    """(n,) int64: which of its candidates each prototype ``which`` (n,) takes, so that no two take one patch.

    Pairs of prototype and patch are gone through by falling similarity (equal ones by prototype, then candidate); a
    pair is made if both are free. A prototype that finds all its candidates taken keeps its first one.
    """
    patches = torch.cat([nearest.index[which][:, :, None], nearest.place[which]], 2)
    if not shared_patches(patches[:, 0, 0], patches[:, 0, 1:]):
        return torch.zeros_like(which)
    similarity = np.where(nearest.found[which].cpu(), nearest.similarity[which].cpu(), -np.inf)
    order = np.argsort(-similarity, axis=None, kind="stable")
    keys = patches.tolist()
    count = similarity.shape[1]
    slot, taken = [-1] * len(which), set[tuple[int, ...]]()
    for prototype, candidate in zip((order // count).tolist(), (order % count).tolist(), strict=True):
        key = tuple(keys[prototype][candidate])
        if slot[prototype] < 0 and key[0] >= 0 and key not in taken:
            slot[prototype] = candidate
            taken.add(key)
    return torch.tensor([max(s, 0) for s in slot], device=which.device)


def _accuracies(moment: Moment, old: Tensor | None) -> tuple[float, float]:
    """Share of validation images classified correctly with the old vectors and the present ones, in one pass."""
    model = moment.model
    layer = prototype_layer(model)
    device = layer.class_of.device
    versions = [layer.vectors.detach().clone()] if layer.vectors is not None else []
    right, count = [0, 0], 0
    with evaluating(model):
        for batch in moment.loaders("val"):
            batch = batch.to(device)
            features = model.look(batch)
            count += len(batch)
            for turn, vectors in enumerate([old, *versions] if old is not None else [None]):
                if vectors is not None and layer.vectors is not None:
                    layer.vectors.copy_(vectors)
                logits = model.answer(model.observe(features)).logits
                right[turn] += int((logits.argmax(1) == batch.label).sum())
    if old is None:
        right[1] = right[0]
    return right[0] / max(count, 1), right[1] / max(count, 1)
