"""What a data set yields and what a model is trained on: :class:`Sample` and :class:`Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Sample:
    """One example, decoded but not yet a tensor.

    Attributes:
        image: RGB, uint8, (H, W, 3).
        label: index of the class.
        concepts: (K,) float32 in [0, 1], NaN where nobody knows; None if the set has no concepts.
        concept_weight: (K,) float32 >= 0, how sure the annotator was; None means 1 everywhere.
        human_map: (H, W) uint8, 255 = look here; None if this image has none.
        part_masks: (P, H, W) uint8, 0 or 255; None if the set has none.
        keypoints: (P, 3) float32, x and y in pixels from the top left corner, visible 0 or 1.
        index: position in the split.
    """

    image: np.ndarray
    label: int
    concepts: np.ndarray | None = None
    concept_weight: np.ndarray | None = None
    human_map: np.ndarray | None = None
    part_masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    index: int = -1


@dataclass
class Batch:
    """A batch in the words of the whole house.

    Attributes:
        image: (B, 3, H, W) float in [0, 1].
        label: (B,) int64.
        concepts: (B, K) float in [0, 1], NaN = nobody knows; None if the set has no concepts.
        concept_weight: (B, K) float >= 0, or None (all 1).
        human_map: (B, 1, H, W) float in [0, 1], 1 = look here, zeros where ``has_map`` is False; or None.
        has_map: (B,) bool, or None when ``human_map`` is None.
        part_masks: (B, P, H, W) bool, or None.
        keypoints: (B, P, 3) float: x, y in pixels, visible 0 or 1; or None.
        index: (B,) int64, position in the split.
        views: further appearances (B, 3, H, W) of the same geometry, for recipes with several views.
        features: what a frozen backbone gave for the images: its map (B, D, h, w), then what it carries across its cut.
            Empty = nobody has asked it yet; otherwise ``image`` is (B, 3, 0, 0), because nobody needs it.
    """

    image: Tensor
    label: Tensor
    concepts: Tensor | None = None
    concept_weight: Tensor | None = None
    human_map: Tensor | None = None
    has_map: Tensor | None = None
    part_masks: Tensor | None = None
    keypoints: Tensor | None = None
    index: Tensor | None = None
    views: tuple[Tensor, ...] = ()
    features: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The batch with floating tensors and all others moved by :meth:`torch.Tensor.to`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                moved = value.to(*args, **kwargs)
                return moved if value.is_floating_point() else moved.to(value.dtype)
            if isinstance(value, tuple):
                return tuple(move(v) for v in value)
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for fast copies to a GPU."""

        def pin(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.pin_memory()
            return tuple(pin(v) for v in value) if isinstance(value, tuple) else value

        return replace(self, **{f.name: pin(getattr(self, f.name)) for f in fields(self)})


def collate(samples: Sequence[Sequence[Sample]]) -> Batch:
    """Stack augmented samples into a :class:`Batch`.

    Args:
        samples: for each image its views; the first is the image itself, all share one geometry.
    """
    first = [views[0] for views in samples]
    human_map, has_map = _maps(first)
    return Batch(
        image=_images(first),
        label=torch.tensor([s.label for s in first], dtype=torch.int64),
        concepts=_stack([s.concepts for s in first]),
        concept_weight=_stack([s.concept_weight for s in first]),
        human_map=human_map,
        has_map=has_map,
        part_masks=None if first[0].part_masks is None else _stack([s.part_masks for s in first]).gt(127),  # type: ignore[union-attr]
        keypoints=_stack([s.keypoints for s in first]),
        index=torch.tensor([s.index for s in first], dtype=torch.int64),
        views=tuple(_images([views[v] for views in samples]) for v in range(1, len(samples[0]))),
    )


def _images(samples: Sequence[Sample]) -> Tensor:
    stacked = torch.from_numpy(np.stack([s.image for s in samples]))
    return stacked.permute(0, 3, 1, 2).contiguous().float().div_(255)


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor | None:
    if arrays[0] is None:
        return None
    return torch.from_numpy(np.stack([np.asarray(a) for a in arrays]))


def _maps(samples: Sequence[Sample]) -> tuple[Tensor | None, Tensor | None]:
    """Human maps, with zeros for the images that have none."""
    if all(s.human_map is None for s in samples):
        return None, None
    empty = np.zeros(samples[0].image.shape[:2], np.uint8)
    maps = np.stack([empty if s.human_map is None else s.human_map for s in samples])
    has_map = torch.tensor([s.human_map is not None for s in samples])
    return torch.from_numpy(maps)[:, None].float().div_(255), has_map
