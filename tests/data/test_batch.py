"""Samples to tensors: every field in its range and type, what is unknown stays unknown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import ArraySplit

from vitrarium.data.batch import Batch, Sample, collate


def batch_of(*indices: int, views: int = 1) -> tuple[Batch, list[Sample]]:
    split = ArraySplit(9)
    samples = [split.sample(i) for i in indices]
    return collate([[s] * views for s in samples]), samples


def test_values_are_those_of_the_samples():
    batch, samples = batch_of(4, 0, 3)
    assert len(batch) == 3
    for row, sample in enumerate(samples):
        assert np.abs(batch.image[row].permute(1, 2, 0).numpy() - sample.image.astype(np.float64) / 255).max() < 1e-6
        assert int(batch.label[row]) == sample.label
        assert np.array_equal(batch.concepts[row].numpy(), sample.concepts, equal_nan=True)
        assert np.array_equal(batch.concept_weight[row].numpy(), sample.concept_weight)
        assert np.array_equal(batch.part_masks[row].numpy(), sample.part_masks == 255)
        assert np.array_equal(batch.keypoints[row].numpy(), sample.keypoints)
        given = np.zeros((16, 16)) if sample.human_map is None else sample.human_map / 255
        assert np.abs(batch.human_map[row, 0].numpy() - given).max() < 1e-6
    assert batch.index.tolist() == [4, 0, 3]
    assert batch.has_map.tolist() == [False, True, True]


def test_types_and_shapes():
    batch, _ = batch_of(0, 1)
    shapes = {name: tuple(value.shape) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "image": (2, 3, 16, 16),
        "label": (2,),
        "concepts": (2, 4),
        "concept_weight": (2, 4),
        "human_map": (2, 1, 16, 16),
        "has_map": (2,),
        "part_masks": (2, 3, 16, 16),
        "keypoints": (2, 3, 3),
        "index": (2,),
    }
    assert batch.image.dtype == batch.concepts.dtype == batch.human_map.dtype == torch.float32
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.has_map.dtype == batch.part_masks.dtype == torch.bool
    assert batch.image.is_contiguous()


def test_no_map_in_the_batch_means_no_map():
    batch, _ = batch_of(1, 2)
    assert batch.human_map is None
    assert batch.has_map is None


def test_a_plain_sample_gives_a_plain_batch():
    batch = collate([[Sample(np.zeros((4, 4, 3), np.uint8), label=2)]])
    given = {name for name, value in vars(batch).items() if value is not None}
    assert given == {"image", "label", "index", "views", "features"}
    assert batch.views == batch.features == ()


def test_further_views_are_images_of_their_own():
    first, second = (Sample(np.full((4, 4, 3), v, np.uint8), 0) for v in (0, 255))
    batch = collate([[first, second, first], [second, first, first]])
    assert [view.mean(dim=(1, 2, 3)).tolist() for view in (batch.image, *batch.views)] == [[0, 1], [1, 0], [0, 0]]


def test_moving_to_a_type_leaves_whole_numbers_whole():
    batch, _ = batch_of(0, 3, views=2)
    batch.features = (torch.rand(3, 5, 1, 1),)
    moved = batch.to(torch.float64)
    assert (
        moved.features[0].dtype
        == moved.image.dtype
        == moved.concepts.dtype
        == moved.human_map.dtype
        == moved.views[0].dtype
        == torch.float64
    )
    assert moved.label.dtype == moved.index.dtype == torch.int64
    assert moved.part_masks.dtype == moved.has_map.dtype == torch.bool
    assert torch.equal(moved.image.float(), batch.image)
    assert torch.equal(moved.label, batch.label)
    assert batch.image.dtype == torch.float32


def test_moving_to_a_device():
    batch, _ = batch_of(0, 1)
    moved = batch.to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pages are locked for a GPU")
def test_pinned_memory():
    batch, _ = batch_of(0, 1, views=2)
    pinned = batch.pin_memory()
    assert pinned.image.is_pinned()
    assert pinned.views[0].is_pinned()
