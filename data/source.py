"""What a data set is to the rest of the house: three splits, names, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from vitrarium.configs.registry import Registry
from vitrarium.data.batch import Sample
from vitrarium.data.concepts import ConceptSet

DATASETS = Registry(
    "data set",
    ["vitrarium.data.sets.flowers", "vitrarium.data.sets.wbcatt", "vitrarium.data.sets.folder"],
)

SPLITS = ("train", "val", "test")


class Split(ABC):
    """One split of a data set: labels and truth at hand, images on demand.

    Attributes:
        labels: (N,) int64, known without decoding an image.
        truth: (N, K) float32 concept values with NaN for unknown ones, or None.
        leaked: (N,) bool, True for an exact copy of an image of another split; None if nobody has looked.
        second_truth: (N, K) what a second annotator said, NaN where there was none; or None.
    """

    labels: np.ndarray
    truth: np.ndarray | None = None
    leaked: np.ndarray | None = None
    second_truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Example ``index``, at the size of the data source, a pure function of the index."""

    def origin(self, index: int) -> str:
        """Where example ``index`` comes from, in words or as a path relative to the data root."""
        return f"#{index}"


@dataclass
class DataSource:
    """A data set as built from its configuration.

    Attributes:
        name: registered name.
        splits: "train", "val" and "test".
        class_names: names of the C classes.
        concepts: the concept set, or None.
        part_names: names of the P parts of keypoints and part masks.
        gives: what its samples hold beyond image and label: "concepts", "human_map", "part_masks", "keypoints".
        size: height and width of its images in pixels.
        fingerprint: short hash of everything that decides its pixels and labels; keys caches and runs.
        notes: what a reader of numbers must know (duplicates across splits, lossy copies ...).
        pictures: credit line if the licence lets pictures of it appear in documents, else None.
    """

    name: str
    splits: dict[str, Split]
    class_names: tuple[str, ...]
    concepts: ConceptSet | None
    gives: frozenset[str]
    size: int
    fingerprint: str
    part_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    pictures: str | None = None
