"""Features of a frozen backbone as a data set: whole batches out of arrays, no image is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from vitrarium.data.batch import Batch
from vitrarium.data.rows import Rows
from vitrarium.data.sampler import Place

MAP, CARRY = "map", "carry"
"""Fields of the rows: ``map``, ``carry0``, ``carry1`` ..., beside ``label``, ``concepts`` and ``concept_weight``."""


@dataclass(frozen=True)
class KeptFeatures:
    """The features of one split.

    Attributes:
        rows: field to array (appearances x N, ...): all images as they are, then all as they appear for the first time
            augmented, and so on.
        count: N, the images of the split.
        appearances: how many of each image there are.
        folder: where the rows lie on disk, None if they are in memory alone.
    """

    rows: Rows
    count: int
    appearances: int = 1
    folder: Path | None = None

    def examples(self, augment: bool) -> FeatureExamples:
        """What a loader reads: with ``augment`` turn t sees appearance t mod n, without it the images as they are."""
        return FeatureExamples(self, self.appearances if augment else 1)

    def describe(self) -> str:
        """In words: how many, how large, and where they are kept."""
        size = sum(array.nbytes for array in self.rows.values()) / 1e6
        shape = " x ".join(str(n) for n in self.rows[MAP].shape[1:])
        where = f"from {self.folder}" if self.folder else "in memory"
        times = f"{self.appearances} appearances of " if self.appearances > 1 else ""
        return f"features {shape} of {times}{self.count:,} images, {size:,.1f} MB, {where}"


class FeatureExamples(Dataset[Batch]):
    """Places (turn, index) to a :class:`Batch` without images.

    Args:
        kept: the features.
        appearances: how many of them an image's turns take one after the other.
    """

    def __init__(self, kept: KeptFeatures, appearances: int) -> None:
        self.kept, self.appearances = kept, appearances

    def __len__(self) -> int:
        return self.kept.count

    def __getitems__(self, places: Sequence[Place]) -> Batch:
        """The whole batch at once: one indexing operation per field."""
        turns, index = np.array(places, np.int64).reshape(-1, 2).T
        chosen = (turns % self.appearances) * self.kept.count + index
        rows = self.kept.rows

        def take(name: str) -> torch.Tensor | None:
            return torch.from_numpy(rows[name][chosen]) if name in rows else None

        label, map = take("label"), take(MAP)
        assert label is not None
        assert map is not None
        carried = [take(f"{CARRY}{n}") for n in range(sum(name.startswith(CARRY) for name in rows))]
        return Batch(
            image=torch.empty(len(label), 3, 0, 0),
            label=label,
            concepts=take("concepts"),
            concept_weight=take("concept_weight"),
            index=torch.from_numpy(index.copy()),
            features=(map, *(c for c in carried if c is not None)),
        )


def as_it_is(batch: Batch) -> Batch:
    """The collating function of a loader whose examples are whole batches already."""
    return batch
