"""Keep the features of a frozen backbone: computed once, read by every run that needs the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.data.cache import GIB, TooLarge, default_folder, kept_rows
from vitrarium.data.features import CARRY, MAP, KeptFeatures
from vitrarium.data.module import MEMORY, DataModule
from vitrarium.data.rows import Rows, RowWriter
from vitrarium.data.sampler import EpochSampler
from vitrarium.models.backbones.base import Backbone
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.types import Features

VERSION = 1
"""Part of the key: raised whenever the same weights and data give other features."""

SEED = 0
"""Of the kept appearances: the same for all runs, so that all of them read the same features."""

BATCH = 64

IN_MEMORY = 1 * GIB
"""Features up to this size are read into memory at once: in shuffled order a cold disk would be read page by page."""


def keep_features(
    model: TransparentClassifier,
    data: DataModule,
    appearances: int,
    pooled: bool,
    progress: Callable[[str, int, int], None] | None = None,
    accelerator: str = "auto",
) -> None:
    """Let ``data`` give features in place of training and validation images.

    They are computed in evaluation mode, in float32, and kept beside the decoded images, under a key made of the
    backbone's weights and structure, the data set's fingerprint and the augmentation. The first appearance of an image
    is the image as it is, the others are augmented. Concepts and their weights are kept with them; maps and keypoints
    are not.

    Args:
        model: its backbone must not be trained.
        data: loaders of the data set; changed in place.
        appearances: of each training image, at least 1.
        pooled: keep the mean of the map over space (B, D, 1, 1), which is all that some evidence reads.
        progress: called with (split, images done, images in all).
        accelerator: of the trainer; with "cpu" a graphics card is left alone.

    Raises:
        UserError: features larger than the limit of the cache.
    """
    backbone = model.backbone
    identity = _identity(backbone)
    augmented = bool(data.augment.get("geometry") or data.augment.get("appearance"))
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    kept = {}
    for split, times in (("train", appearances if augmented else 1), ("val", 1)):
        count = len(data.source.splits[split])
        key = _key(identity, data, split, times, pooled)
        fill = _Fill(backbone, data, split, times, pooled, device, progress)
        folder = None if data.cache_folder == MEMORY else Path(data.cache_folder or default_folder())
        try:
            rows, place, _ = kept_rows(folder, key, times * count, fill, "features")
        except TooLarge as error:
            raise UserError(
                f"the features of '{data.source.name}' {error}",
                "raise cache.limit_gb, lower train.features, cut the backbone later, or set train.features=0",
            ) from error
        if sum(array.nbytes for array in rows.values()) <= IN_MEMORY:
            rows = {name: np.array(array) for name, array in rows.items()}
        kept[split] = KeptFeatures(rows, count, times, place)
    data.features = kept


class _Fill:
    """Writes the features of one split, batch by batch."""

    def __init__(
        self,
        backbone: Backbone,
        data: DataModule,
        split: str,
        appearances: int,
        pooled: bool,
        device: torch.device,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.backbone, self.data, self.split, self.appearances = backbone, data, split, appearances
        self.pooled, self.device, self.progress = pooled, device, progress

    def __call__(self, writer: RowWriter) -> None:
        """Run the backbone once over every appearance of every image."""
        count = self.appearances * len(self.data.source.splits[self.split])
        self.backbone.to(self.device)
        try:
            with evaluating(self.backbone):
                for batch in self._batches():
                    features = self.backbone(batch.image.to(self.device))
                    for row in _rows(batch, features, self.pooled):
                        writer.append_row(row)
                    self._refuse_too_large(writer.size / writer.count * count)
                    if self.progress is not None:
                        self.progress(self.split, writer.count, count)
        finally:
            self.backbone.cpu()

    def _batches(self) -> Iterator[Batch]:
        """All images as they are, then as they appear for the first time augmented, and so on."""
        self.data.begin_stage(SEED)
        for appearance in range(self.appearances):
            loader = self.data.loader(self.split, augment=appearance > 0, batch_size=BATCH)
            assert isinstance(loader.batch_sampler, EpochSampler)
            loader.batch_sampler.set_epoch(appearance)
            yield from loader

    def _refuse_too_large(self, size: float) -> None:
        limit = self.data.cache_limit
        if size > limit:
            raise TooLarge(f"take {size / GIB:.3g} GiB, more than the limit of {limit / GIB:.3g} GiB")


def _rows(batch: Batch, features: Features, pooled: bool) -> Iterator[Rows]:
    """The rows of a batch: features, label, concepts."""
    map = features.map.float()
    tensors: dict[str, Tensor | None] = {
        MAP: map.mean((2, 3), keepdim=True) if pooled else map,
        **{f"{CARRY}{n}": tensor.float() for n, tensor in enumerate(features.carry)},
        "label": batch.label,
        "concepts": batch.concepts,
        "concept_weight": batch.concept_weight,
    }
    arrays = {
        name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in tensors.items() if tensor is not None
    }
    for n in range(len(batch)):
        yield {name: array[n] for name, array in arrays.items()}


def _identity(backbone: Backbone) -> str:
    """Hash of the weights, buffers and structure of a backbone, and of what it makes of one image of noise.

    The noise is for code: a network whose ``forward`` was edited keeps its weights and modules, but not its answer.
    """
    total = hashlib.sha256(repr((VERSION, type(backbone).__qualname__, backbone.cut, repr(backbone))).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        total.update(name.encode() + str(tensor.dtype).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    size = backbone.image_size or backbone.probe_size
    noise = torch.rand(1, backbone.in_channels, size, size, generator=torch.Generator().manual_seed(SEED))
    with evaluating(backbone):
        features = backbone(noise)
    for tensor in (features.map, *features.carry):
        # A few numbers with three digits: the last bits of each value differ with the number of threads.
        values = tensor.flatten().double()
        directions = torch.randn(4, len(values), generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        answer = directions @ values / values.norm().clamp_min(1e-30)
        total.update(repr((tuple(tensor.shape), (answer * 1000).round().tolist())).encode())
    return total.hexdigest()


def _key(identity: str, data: DataModule, split: str, appearances: int, pooled: bool) -> str:
    augment: Any = data.augment if appearances > 1 else None
    total = hashlib.sha256(repr((identity, data.source.fingerprint, augment, appearances, pooled)).encode())
    return f"{data.source.name}-{split}-features-{total.hexdigest()[:20]}"
