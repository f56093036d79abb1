"""Degradations spoil the pixels of an image, the same way every time, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from builders import ArraySplit, same_samples

from vitrarium.configs.errors import UserError
from vitrarium.data.cache import cached
from vitrarium.data.degrade import DEGRADATIONS, degraded

SPOILING = ("grey", "pixels16", "blur", "noise", "jpeg")


@pytest.fixture(scope="module")
def split():
    return cached(ArraySplit(6, size=32), None, "key")


def test_all_of_ours_are_tested_here():
    ours = {name for name in DEGRADATIONS.list() if DEGRADATIONS.get(name).__module__.startswith("vitrarium")}
    assert ours == {*SPOILING, "clean"}


@pytest.mark.parametrize("name", SPOILING)
def test_changes_the_image_alone_and_always_the_same_way(split, name):
    spoilt = degraded(split, name)
    assert len(spoilt) == 6
    assert spoilt.truth is split.truth
    assert spoilt.origin(2) == split.origin(2)
    for index in (3, 0, 3):
        before, after = split.sample(index), spoilt.sample(index)
        assert after.image.dtype == np.uint8
        assert after.image.shape == before.image.shape
        assert not np.array_equal(after.image, before.image)
        assert np.array_equal(after.image, degraded(split, {"name": name}).sample(index).image)
        after.image = before.image
        assert same_samples(after, before)


def test_clean_is_the_split_itself(split):
    assert degraded(split, "clean") is split
    assert degraded(split, {"name": "clean"}) is split


def test_grey_is_luminance(split):
    image = split.sample(1).image.astype(float)
    grey = degraded(split, "grey").sample(1).image
    luminance = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    for channel in range(3):
        assert np.abs(grey[..., channel] - luminance).max() <= 1


def test_pixels16_keeps_only_the_means_of_blocks():
    split = ArraySplit(2, size=64)
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    split.images[0] = blocks
    noise = np.random.default_rng(1).integers(-20, 20, (64, 64, 3))
    noise -= (
        noise.reshape(16, 4, 16, 4, 3)
        .mean(axis=(1, 3), keepdims=True)
        .repeat(4, 1)
        .repeat(4, 3)
        .reshape(64, 64, 3)
        .astype(int)
    )
    split.images[1] = np.clip(blocks.astype(int) * 0.8 + 25 + noise, 0, 255).astype(np.uint8)
    shrunken = split.images[1].reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    spoilt = degraded(split, "pixels16").sample(1).image.astype(float)
    # Between the centres of two neighbouring blocks bilinear enlargement is a straight line: (5 a + 3 b) / 8, ...
    for y in range(1, 15):
        for x in range(1, 15):
            centre, right = shrunken[y, x], shrunken[y, x + 1]
            down, across = shrunken[y + 1, x], shrunken[y + 1, x + 1]
            top, bottom = (7 * centre + right) / 8, (7 * down + across) / 8
            assert np.abs(spoilt[4 * y + 2, 4 * x + 2] - (7 * top + bottom) / 8).max() <= 2


def test_pixels16_takes_another_size(split):
    coarse = degraded(split, {"name": "pixels16", "size": 1}).sample(0).image
    assert np.ptp(coarse.reshape(-1, 3), axis=0).max() == 0
    assert np.abs(coarse[0, 0] - split.sample(0).image.reshape(-1, 3).mean(axis=0)).max() <= 1


def test_noise_belongs_to_the_index_and_has_its_standard_deviation():
    split = ArraySplit(3, size=64)
    split.images[:] = 128
    spoilt = degraded(split, {"name": "noise", "sd": 0.1})
    images = [spoilt.sample(index).image.astype(float) for index in range(3)]
    assert not np.array_equal(images[0], images[1])
    for image in images:
        assert abs((image - 128).std() / 255 - 0.1) < 0.003
        assert abs((image - 128).mean()) < 1
    assert not np.array_equal(degraded(split, {"name": "noise", "seed": 1}).sample(0).image, images[0])


def test_blur_keeps_its_share_of_the_image_at_every_size():
    for size in (64, 128):
        split = ArraySplit(1, size=size)
        split.images[:] = 0
        split.images[0, :, size // 2 :] = 255
        edge = degraded(split, {"name": "blur", "sigma": 2.0}).sample(0).image[size // 2, :, 0].astype(float)
        # The slope of a blurred step is a Gaussian: its standard deviation is the sigma.
        slope = np.diff(edge) / 255
        place = np.arange(size - 1)
        sd = np.sqrt((slope * (place - (slope * place).sum()) ** 2).sum())
        assert abs(sd - 2.0 * size / 64) < 0.25 * size / 64


def test_jpeg_gets_worse_with_lower_quality(split):
    image = split.sample(0).image.astype(float)
    errors = [
        np.abs(degraded(split, {"name": "jpeg", "quality": q}).sample(0).image - image).mean() for q in (5, 30, 90)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gray", "unknown degradation 'gray'; did you mean 'grey'"),
        ({"name": "blur", "sgima": 1}, "no option 'sgima'; did you mean 'sigma'"),
        ({"name": "blur", "sigma": 0}, "sigma of 0"),
        ({"name": "jpeg", "quality": 100}, "quality of 100"),
        ({"name": "pixels16", "size": 0}, "to 0 pixels"),
        ({"name": "noise", "sd": -1}, "sd -1"),
    ],
)
def test_what_makes_no_sense_is_refused(split, spec, words):
    with pytest.raises(UserError, match=words):
        degraded(split, spec)
