"""Prototypes whose nearest patches are of other classes are taken out."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.nearest import Nearest, Query, allowed_classes, prototype_layer, search
from vitrarium.train.events.base import EVENTS, Event, Moment
from vitrarium.train.events.project import MEASURED, refuse_dead

logger = logging.getLogger(__name__)

MEASURES = ("now", "projection")


@EVENTS.register("prune_prototypes")
class PrunePrototypes(Event):
    """Mask units whose prototype is not typical of its class (ProtoPNet: Chen et al., NeurIPS 2019).

    Of the ``neighbours`` training images with the most similar patch, from all classes and one patch per image, at
    least ``least`` must be of the prototype's class. Prototypes that all classes share are never pruned. A unit with
    several prototypes goes when none of them is typical.

    Logs ``prune/removed``, ``prune/left``, ``prune/spared`` and ``prune/class_purity`` (mean over those judged).

    Args:
        neighbours: k.
        least: how many of them.
        spare: a class that would lose all its units keeps the one with the most neighbours of its class (then the one
            most similar to them); a warning names it. False is the released way, which may leave a class without any.
        measure: "now" looks at the prototypes as they are, in one pass over the training split; "projection" takes what
            ``project`` has measured just before at the same border, of the prototypes before they were moved.

    Raises:
        UserError: nothing would be left; nothing has changed then.
    """

    default_when = "end"

    def __init__(
        self,
        neighbours: int = 6,
        least: int = 3,
        spare: bool = True,
        measure: Literal["now", "projection"] = "now",
    ) -> None:
        if not 1 <= least <= neighbours:
            raise UserError(f"least={least} of neighbours={neighbours}", "give 1 <= least <= neighbours")
        if measure not in MEASURES:
            raise UserError(f"prune_prototypes cannot measure '{measure}'", closest(measure, MEASURES))
        self.neighbours, self.least, self.spare, self.measure = neighbours, least, spare, measure

    def check(self, model: TransparentClassifier) -> None:
        """Refuse prototypes that belong to no class."""
        if bool(allowed_classes(model).all()):
            prototype_layer(model)
            raise UserError(
                f"event 'prune_prototypes' needs prototypes that belong to classes; {type(model.evidence).__name__} "
                "shares all of them",
                "leave it out, or set model.evidence.per_class",
            )

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """At most one pass over the training split."""
        model = moment.model
        layer, allowed = prototype_layer(model), allowed_classes(model)
        refuse_dead(model)
        around = self._around(moment)
        own, living = around.among(allowed).sum(1), layer.alive_prototypes()
        judged = living & allowed.any(1) & ~allowed.all(1)
        typical = torch.zeros_like(layer.alive)
        typical[layer.unit_of_prototype[living & ~(judged & (own < self.least))]] = True
        left = layer.alive & typical
        spared = self._spare(model, left, allowed, own, around) if self.spare else 0
        if not bool(left.any()):
            raise UserError(
                f"all prototypes would be pruned: none has {self.least} images of its class among {self.neighbours}",
                "train longer, lower least, or set spare=true",
            )
        removed = layer.alive & ~left
        layer.alive &= left
        owner = layer.unit_of
        model.readout.drop_entries(removed[owner.clamp_min(0)] & (owner >= 0))
        moment.log("prune/removed", float(removed.sum()))
        moment.log("prune/left", float(left.sum()))
        moment.log("prune/spared", float(spared))
        if bool(judged.any()):
            moment.log("prune/class_purity", float(around.share_of(allowed)[judged].mean()))

    def _around(self, moment: Moment) -> Nearest:
        """The nearest images of all classes."""
        if self.measure == "now":
            loader = moment.loaders("train", shard=True)
            return search(moment.model, loader, [Query(self.neighbours)], gather=True)[0]
        measured: Nearest | None = moment.shared.get(MEASURED)
        if measured is None or measured.index.shape[1] != self.neighbours:
            raise UserError(
                f"prune_prototypes has measure=projection, and no projection with neighbours={self.neighbours} has "
                "just run",
                "put project before it at the same border with as many neighbours, or set measure=now",
            )
        return measured

    def _spare(self, model: TransparentClassifier, left: Tensor, allowed: Tensor, own: Tensor, around: Nearest) -> int:
        """Keep in ``left`` (M,) the best unit of each class that would have none; how many were kept."""
        layer = prototype_layer(model)
        living, unit_of = layer.alive_prototypes(), layer.unit_of_prototype
        alike = around.similarity.masked_fill(~around.among(allowed), 0.0).sum(1)
        spared: list[str] = []
        for label, name in enumerate(model.class_names):
            mine = (living & allowed[:, label]).nonzero().squeeze(1)
            if not len(mine) or bool(left[unit_of[mine]].any()):
                continue
            # Rounded, so that prototypes that are equal but for rounding rank the same on every machine.
            rank = sorted(mine.tolist(), key=lambda p: (-int(own[p]), -round(float(alike[p]), 6), p))
            left[unit_of[rank[0]]] = True
            spared.append(f"{name} (prototype {rank[0]}, {int(own[rank[0]])} of {self.neighbours})")
        if spared:
            logger.warning(
                "classes that keep a prototype below the mark, because they have none better: %s", _few(spared)
            )
        return len(spared)


def _few(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
