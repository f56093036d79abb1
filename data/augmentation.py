"""Augmentation in two halves: geometry moves everything together, appearance changes the pixels of each view."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Sample
from vitrarium.data.transforms import HALVES, TRANSFORMS, Half

Spec = Mapping[str, Any] | str

_GEOMETRY, _FIRST_VIEW = 0, 1


class Augmentation:
    """Random changes of a sample that are a pure function of (seed, epoch, index, view).

    Args:
        geometry: transforms ``{name, **options}`` of image, human map, part masks and keypoints alike, in order; all
            views of an image share them.
        appearance: transforms of the pixels alone, drawn anew for each view.
        seed: of all random choices, at least 0.

    Raises:
        UserError: an unknown name or option, or a transform in the wrong half.

    Example:
        >>> augmentation = Augmentation(geometry=["flip_horizontal"], appearance=[{"name": "blur", "sigma": 2.0}])
        >>> sample = Sample(np.zeros((8, 8, 3), np.uint8), label=0)
        >>> len(augmentation(sample, epoch=0, index=5, view_count=2))
        2
    """

    def __init__(self, geometry: Sequence[Spec] = (), appearance: Sequence[Spec] = (), seed: int = 0) -> None:
        self.geometry, self.appearance = list(geometry), list(appearance)
        self.seed = seed
        for half, specs in (("geometry", self.geometry), ("appearance", self.appearance)):
            for spec in specs:
                _check(spec, half)  # type: ignore[arg-type]
        self._built: tuple[Any, Any] | None = None

    @staticmethod
    def from_config(config: Mapping[str, Any] | None, seed: int = 0) -> Augmentation:
        """From ``{geometry: [...], appearance: [...]}``; either may be missing."""
        config = dict(config or {})
        for key in config:
            if key not in ("geometry", "appearance"):
                raise UserError(f"augmentation has no part '{key}'", closest(str(key), ["geometry", "appearance"]))
        return Augmentation(config.get("geometry") or (), config.get("appearance") or (), seed)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.geometry or self.appearance)

    def prepare(self) -> Augmentation:
        """Build the transforms now: their options are checked, and workers forked later need not import them."""
        if self._built is None:
            self._built = (_compose(self.geometry), _compose(self.appearance))
        return self

    def __call__(self, sample: Sample, epoch: int, index: int, view_count: int = 1) -> list[Sample]:
        """The views of a sample; the first is the image itself.

        Args:
            sample: decoded and never written to.
            epoch: number of the epoch.
            index: position of the sample in its split.
            view_count: how many views.

        Returns:
            ``view_count`` samples with the same map, masks and keypoints.
        """
        self.prepare()
        assert self._built is not None
        geometry, appearance = self._built
        if geometry is not None:
            self._seed(geometry, epoch, index, _GEOMETRY)
            sample = _move(geometry, sample)
        if appearance is None:
            return [sample] * view_count
        views = []
        for view in range(view_count):
            self._seed(appearance, epoch, index, _FIRST_VIEW + view)
            views.append(replace(sample, image=appearance(image=sample.image)["image"]))
        return views

    def _seed(self, pipeline: Any, epoch: int, index: int, purpose: int) -> None:
        """Give a pipeline the random state of (seed, epoch, index, purpose).

        One state for all transforms of the pipeline: ``Compose.set_random_seed`` would give each of them a state of its
        own from the same seed, so that two flips with probability 1/2 always fall together.
        """
        generator = np.random.default_rng([self.seed, epoch, index, purpose])
        pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: the transforms are built again there."""
        return {**self.__dict__, "_built": None}


def _check(spec: Spec, half: Half) -> None:
    """Refuse an unknown transform, an unknown option and a transform of the other half."""
    name, _ = TRANSFORMS.check(spec)
    if HALVES[name] != half:
        raise UserError(
            f"the transform '{name}' is listed under {half}", f"move it to augment.{HALVES[name]}, where it belongs"
        )


def _compose(specs: Sequence[Spec]) -> Any:
    """An albumentations pipeline, or None if there is nothing to do."""
    if not specs:
        return None
    transforms = [TRANSFORMS.build(spec) for spec in specs]
    from albumentations import Compose

    # Shapes agree by the contract of Sample; checking them again costs as much as a flip.
    return Compose(transforms, is_check_shapes=False)


def _move(geometry: Any, sample: Sample) -> Sample:
    """Image, maps, masks and keypoints through the same geometry."""
    data: dict[str, Any] = {"image": sample.image}
    planes = [] if sample.human_map is None else [sample.human_map[None]]
    if sample.part_masks is not None:
        planes.append(sample.part_masks)
    if planes:
        data["mask"] = np.ascontiguousarray(np.concatenate(planes).transpose(1, 2, 0))
    if sample.keypoints is not None:
        # Columns as the library has them after its own preparation, which takes longer than all moving.
        points = np.zeros((len(sample.keypoints), 6), np.float32)
        points[:, [0, 1, 5]] = sample.keypoints
        data["keypoints"] = points
    moved = geometry(**data)
    result = replace(sample, image=moved["image"])
    if planes:
        stacked = moved["mask"].reshape(*moved["image"].shape[:2], -1).transpose(2, 0, 1)
        if sample.human_map is not None:
            result.human_map, stacked = stacked[0], stacked[1:]
        if sample.part_masks is not None:
            result.part_masks = (stacked > 127).astype(np.uint8) * np.uint8(255)
    if sample.keypoints is not None:
        result.keypoints = moved["keypoints"][:, [0, 1, 5]].astype(np.float32)
    return result
