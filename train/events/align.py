"""Turn the axes of a whitened layer towards the concepts that they are named after."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Batch, collate
from vitrarium.data.files import SUFFIXES
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.whitened_axes import WhitenedAxes
from vitrarium.models.layers.reduction import alignment_gradients
from vitrarium.models.modes import evaluating
from vitrarium.train.events.base import EVENTS, Event, Moment

logger = logging.getLogger(__name__)

CHUNK = 256
"""Images per forward pass."""


@EVENTS.register("align")
class Align(Event):
    """The alternate step of concept whitening (Chen, Bei & Rudin, Nature Machine Intelligence 2020).

    For each named axis j some images of its concept are drawn; in evaluation mode and without gradients they give
    g_j = mean of the gradient of r_j . psi(x_hat), psi being the layer's reduction, and the rotation makes ``steps``
    curvilinear searches that raise sum_j <g_j, r_j> on the orthogonal group. An axis without images since the last step
    takes no step of its own. The free axes of subspaces are turned towards those images of their group that activate
    them most (winner takes all). Everything is a function of the moment's seed, so processes agree.

    Logs the objective: the mean activation of the axes on images of their concepts.

    Args:
        images: of each concept, drawn anew every time.
        memory: share of the gradients of earlier updates that is kept (a plain moving average).
        steps: searches per update.
        released: weight whitened channel c by the places that decide *rotated* channel c, as the released code does, in
            place of the true gradient, in which the places of the axis's own reduction decide.
        folder: a folder with one folder of images for each axis, called like it; None = the training split and its
            annotation.

    Raises:
        UserError: numbers out of range, a folder that lacks an axis.
    """

    default_when = "step"

    def __init__(
        self, images: int = 16, memory: float = 0.9, steps: int = 2, released: bool = False, folder: str | None = None
    ) -> None:
        if images < 1 or not 0 <= memory < 1 or steps < 1:
            raise UserError(
                f"images={images}, memory={memory}, steps={steps} of event 'align'",
                "give one or more images and steps, and a memory in [0, 1)",
            )
        self.images, self.memory, self.steps, self.released = images, memory, steps, released
        self.folder = None if folder is None else Path(folder)
        self.average: Tensor | None = None
        self._told = False

    def check(self, model: TransparentClassifier) -> None:
        """Refuse evidence without axes, and a folder without images for them."""
        if "axes" not in model.evidence.gives:
            raise UserError(
                f"event 'align' turns axes, and {type(model.evidence).__name__} has none",
                "set model.evidence.name=whitened_axes, or leave the event out",
            )
        if self.folder is not None:
            layer = cast(WhitenedAxes, model.evidence)
            for name in layer.named:
                self._files(name)

    def state_dict(self) -> dict[str, Any]:
        """The moving average of the gradients."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.average = state["average"]

    @torch.no_grad()
    def run(self, moment: Moment) -> None:
        """One update of the rotation."""
        layer = cast(WhitenedAxes, moment.model.evidence)
        batch, member = self._draw(moment, layer)
        if not len(batch):
            return
        sums, counts = self._gradients(moment.model, layer, batch, member)
        seen = counts > 0
        gradient = sums / counts.clamp_min(1e-12)[:, None]
        moment.log("align/objective", float((gradient * layer.rows(len(counts)))[seen].sum(1).mean()))
        if self.average is None:
            self.average = gradient
        else:
            kept = torch.where(seen & (self.average.to(gradient) != 0).any(1), self.memory, 0.0)[:, None]
            self.average = torch.where(
                seen[:, None], kept * self.average.to(gradient) + (1 - kept) * gradient, self.average.to(gradient)
            )
        layer.rotate(self.average, seen, self.steps)

    def _gradients(
        self, model: TransparentClassifier, layer: WhitenedAxes, batch: Batch, member: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums (k, C / groups) over the images and how many were counted (k,), for named and subspaces' free axes."""
        device = layer.rotation.device
        totals: list[tuple[Tensor, Tensor]] = []
        with evaluating(model):
            for start in range(0, len(batch), CHUNK):
                pixels = batch.image[start : start + CHUNK].to(device)
                whitened = layer.whitening(model.backbone(pixels).map)
                rotated = layer.turn(whitened)
                weights = layer.with_free(member[start : start + CHUNK].to(whitened), rotated)
                totals.append(self._sums(layer, whitened, rotated, weights))
        return sum(t[0] for t in totals), sum(t[1] for t in totals)  # type: ignore[return-value]

    def _sums(self, layer: WhitenedAxes, whitened: Tensor, rotated: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Each axis looks at the channels of its own group."""
        count, width = weights.shape[1], layer.rotation.shape[1]
        sums = whitened.new_zeros(count, width)
        group_of = layer.axis_of[:count] // width
        for g in range(len(layer.rotation)):
            mine = (group_of == g).nonzero()[:, 0]
            part = slice(g * width, (g + 1) * width)
            other = layer.in_channels(rotated)[:, part] if self.released else None
            found, _ = alignment_gradients(
                whitened[:, part], rotated[:, mine], weights[:, mine], layer.reduction, self.released, other
            )  # fmt: skip
            sums[mine] = found
        return sums, weights.sum(0)

    def _draw(self, moment: Moment, layer: WhitenedAxes) -> tuple[Batch, Tensor]:
        """Images and, (B, K), the axis each was drawn for."""
        rng = np.random.default_rng(moment.seed)
        return self._from_folder(moment, layer, rng) if self.folder else self._from_training(moment, layer, rng)

    def _from_training(self, moment: Moment, layer: WhitenedAxes, rng: np.random.Generator) -> tuple[Batch, Tensor]:
        split, concepts = moment.split("train"), moment.source.concepts
        names = () if concepts is None else concepts.names
        truth = split.truth
        if truth is None:
            raise UserError(
                f"event 'align' needs concepts, and '{moment.source.name}' has none",
                "choose a data set with concepts, or give a folder of images for each axis: align.folder=PATH",
            )
        columns = [_column(name, names) for name in layer.named]
        rows = [np.flatnonzero(truth[:, k] > 0.5) for k in columns]
        self._tell({name: len(own) for name, own in zip(layer.named, rows, strict=True)})
        drawn = [rng.choice(own, min(self.images, len(own)), replace=False) for own in rows]
        chosen = np.unique(np.concatenate(drawn)).astype(int)
        member = torch.zeros(len(chosen), len(drawn))
        for j, own in enumerate(drawn):
            member[np.searchsorted(chosen, own), j] = 1
        if not len(chosen):
            raise UserError("no training image has any of the concepts", "check the annotation: vitrarium data check")
        return collate([[split.sample(int(i))] for i in chosen]), member

    def _from_folder(self, moment: Moment, layer: WhitenedAxes, rng: np.random.Generator) -> tuple[Batch, Tensor]:
        files = [self._files(name) for name in layer.named]
        self._tell({name: len(own) for name, own in zip(layer.named, files, strict=True)})
        drawn = [[own[i] for i in rng.choice(len(own), min(self.images, len(own)), replace=False)] for own in files]
        flat = [path for own in drawn for path in own]
        load = moment.model.preprocessing
        if load is None:
            raise UserError("the model does not know how to read a file", "build it with preprocessing")
        images = torch.cat([load(path) for path in flat])
        owner = torch.tensor([j for j, own in enumerate(drawn) for _ in own])
        member = torch.nn.functional.one_hot(owner, len(files)).float()
        return Batch(images, torch.zeros(len(flat), dtype=torch.int64)), member

    def _files(self, name: str) -> list[Path]:
        assert self.folder is not None
        own = self.folder / name
        if not own.is_dir():
            there = [path.name for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
            raise UserError(f"'{self.folder}' has no folder of images for the axis '{name}'", closest(name, there))
        found = sorted(path for path in own.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"'{own}' holds no images", "put images of the concept there, or leave the axis out")
        return found

    def _tell(self, sizes: dict[str, int]) -> None:
        """Say once which axes have too few images to mean anything."""
        poor = [f"{name} ({size})" for name, size in sizes.items() if size < 2]
        if poor and not self._told:
            logger.warning(
                "axes with no or one image of their concept: %s; without images an axis is not turned, with one it "
                "stands for that image",
                ", ".join(poor),
            )
        self._told = True


def _column(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise UserError(f"the axis '{name}' is no concept of the training data", closest(name, names))
    return names.index(name)
