"""Exact duplicates: what they are, and which images of validation and test were seen elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Place = tuple[str, int]
"""(split, index)."""


@dataclass(frozen=True)
class Duplicates:
    """Images with the same content.

    Attributes:
        groups: the places of each content that occurs more than once.
        leaked: for each split (N,) bool: images of val and test with an exact copy in another split, so that numbers
            can be told without them; all False for train.
        across: number of groups with members in more than one split.
        disagreeing: number of groups whose members have different labels.
    """

    groups: tuple[tuple[Place, ...], ...]
    leaked: dict[str, np.ndarray]
    across: int
    disagreeing: int

    @property
    def note(self) -> str | None:
        """In one sentence, or None if there are no duplicates."""
        if not self.groups:
            return None
        leaks = ", ".join(f"{int(mask.sum())} {name}" for name, mask in self.leaked.items() if mask.any())
        count = f"{len(self.groups)} group{'s' if len(self.groups) > 1 else ''}"
        text = f"{count} of exact duplicates, {self.across} of them across splits"
        if leaks:
            text += f" ({leaks} images have a copy in another split)"
        if self.disagreeing:
            text += f"; in {self.disagreeing} the copies have different labels"
        return text


def find_duplicates(
    digests: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[int] | np.ndarray]
) -> Duplicates:
    """Group equal contents.

    Args:
        digests: for each split the content hash of each image.
        labels: for each split the class of each image.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    for split, hashes in digests.items():
        for index, digest in enumerate(hashes):
            places[digest].append((split, index))
    groups = tuple(tuple(group) for group in places.values() if len(group) > 1)
    leaked = {split: np.zeros(len(hashes), bool) for split, hashes in digests.items()}
    across = [group for group in groups if len({split for split, _ in group}) > 1]
    for group in across:
        for split, index in group:
            leaked[split][index] = split != "train"
    disagreeing = sum(len({int(labels[s][i]) for s, i in group}) > 1 for group in groups)
    return Duplicates(groups, leaked, len(across), disagreeing)


def redundant(digests: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(N,) bool: training images to leave out so that no content of train occurs twice, or in val or test."""
    elsewhere = {d for split, hashes in digests.items() if split != "train" for d in hashes}
    seen, mask = set(elsewhere), np.zeros(len(digests["train"]), bool)
    for index, digest in enumerate(digests["train"]):
        mask[index] = digest in seen
        seen.add(digest)
    return mask
