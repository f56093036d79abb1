"""Augmentation moves everything together, to the pixel, and is a pure function of (seed, epoch, index, view)."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from builders import coordinates, same_samples

from vitrarium.configs.errors import UserError
from vitrarium.data.augmentation import Augmentation
from vitrarium.data.batch import Sample
from vitrarium.data.transforms import HALVES, TRANSFORMS

SIZE = 32
EXACT = {
    "flip_horizontal": {},
    "flip_vertical": {},
    "rotate90": {},
    "shift": {"pixels": 5},
}
WARPS = {
    "rotate": {"limit": 30},
    "scale": {"low": 0.8, "high": 1.5},
    "affine": {"rotate": 20, "scale": 1.2, "shear": 8, "translate": 0.1},
    "crop": {"smallest": 0.4},
}
APPEARANCE = ("erase", "brightness_contrast", "colour_jitter", "hue", "blur", "noise", "grey")


def painted(seed: int = 0, points: int = 6) -> Sample:
    """Coordinates as image, random masks and map, keypoints on whole pixels; nothing may be written to."""
    rng = np.random.default_rng(seed)
    keypoints = np.column_stack([rng.integers(0, SIZE, (points, 2)), np.ones(points)]).astype(np.float32)
    sample = Sample(
        image=coordinates(SIZE),
        label=1,
        human_map=rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8),
        part_masks=(rng.random((5, SIZE, SIZE)) < 0.4).astype(np.uint8) * 255,
        keypoints=keypoints,
    )
    for array in (sample.image, sample.human_map, sample.part_masks, sample.keypoints):
        array.flags.writeable = False
    return sample


def photo(seed: int = 0) -> Sample:
    """A smooth colourful picture without anything beside."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    rng = np.random.default_rng(seed)
    planes = [127 + 100 * np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.random((3, 3))]
    image = np.stack(planes, axis=-1).astype(np.uint8)
    image.flags.writeable = False
    return Sample(image, 0)


def origins(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a moved coordinate image came from."""
    return image[..., 0].astype(float) / 2, image[..., 1].astype(float) / 2


@pytest.mark.parametrize("pipeline", [[name] for name in EXACT] + [list(EXACT)], ids=lambda names: "+".join(names))
def test_image_map_masks_and_keypoints_move_together_to_the_pixel(pipeline):
    augmentation = Augmentation(geometry=[{"name": n, **EXACT[n]} for n in pipeline])
    seen = set()
    for index in range(40):
        before = painted(index)
        (after,) = augmentation(before, 0, index)
        x, y = (o.astype(int) for o in origins(after.image))
        assert np.array_equal(after.image, before.image[y, x])
        assert np.array_equal(after.human_map, before.human_map[y, x])
        assert np.array_equal(after.part_masks, before.part_masks[:, y, x])
        assert after.keypoints.shape == before.keypoints.shape
        for (bx, by, _), (ax, ay, visible) in zip(before.keypoints, after.keypoints, strict=True):
            inside = 0 <= ax < SIZE and 0 <= ay < SIZE
            assert visible == inside
            if inside:
                assert (x[int(ay), int(ax)], y[int(ay), int(ax)]) == (bx, by)
        seen.add(after.image.tobytes())
    assert len(seen) > 1


@pytest.mark.parametrize("name", WARPS)
def test_warps_move_everything_within_a_pixel(name):
    augmentation = Augmentation(geometry=[{"name": name, **WARPS[name]}])
    smooth = np.add.outer(np.arange(SIZE) * 5, np.arange(SIZE) * 2).astype(np.uint8)
    hidden = 0
    for index in range(30):
        before = painted(index)
        before.human_map = smooth
        before.part_masks = np.where(smooth[None] > 100, np.uint8(255), np.uint8(0))
        (after,) = augmentation(before, 0, index)
        x, y = origins(after.image)
        drawn = 5 * y + 2 * x
        assert np.abs(after.human_map - drawn).max() <= 7
        clear = np.abs(drawn - 100) > 14
        assert np.array_equal(after.part_masks[0][clear] > 0, (drawn > 100)[clear])
        assert set(np.unique(after.part_masks)) <= {0, 255}
        for (bx, by, _), (ax, ay, visible) in zip(before.keypoints, after.keypoints, strict=True):
            hidden += visible == 0
            if visible:
                at = (min(max(round(float(ay)), 0), SIZE - 1), min(max(round(float(ax)), 0), SIZE - 1))
                assert abs(x[at] - bx) <= 1
                assert abs(y[at] - by) <= 1
    assert hidden > 0 or name == "scale"


def test_a_keypoint_that_left_the_image_does_not_come_back():
    shifts = [{"name": "shift", "pixels": 20}, {"name": "shift", "pixels": 20}, {"name": "affine", "translate": 0.4}]
    augmentation, back = Augmentation(geometry=shifts[:2]), 0
    for index in range(200):
        before = painted(index)
        (after,) = augmentation(before, 0, index)
        x, y = origins(after.image)
        for (bx, by, _), (ax, ay, visible) in zip(before.keypoints, after.keypoints, strict=True):
            inside = 0 <= ax < SIZE and 0 <= ay < SIZE
            back += inside and not visible
            if visible:
                assert (x[int(ay), int(ax)], y[int(ay), int(ax)]) == (bx, by)
    assert back > 0
    (far,) = Augmentation(geometry=shifts)(painted(), 0, 0)
    assert far.keypoints.shape == (6, 3)
    assert np.isfinite(far.keypoints).all()


def test_invisible_keypoints_stay_invisible_and_keep_their_row():
    before = painted()
    points = before.keypoints.copy()
    points[2] = (np.nan, np.nan, 0)
    points[4, 2] = 0
    before.keypoints = points
    (after,) = Augmentation(geometry=["flip_horizontal", "shift", "rotate"])(before, 0, 0)
    assert after.keypoints[[2, 4], 2].tolist() == [0, 0]


def test_each_field_may_be_missing():
    augmentation = Augmentation(geometry=["rotate90", "affine"])
    whole = augmentation(painted(), 0, 3)[0]
    for name in ("human_map", "part_masks", "keypoints"):
        sample = painted()
        setattr(sample, name, None)
        (after,) = augmentation(sample, 0, 3)
        assert getattr(after, name) is None
        setattr(after, name, getattr(whole, name))
        assert same_samples(after, whole)


def test_everything_random_is_a_function_of_seed_epoch_index_and_view():
    geometry = ["flip_horizontal", "flip_vertical", {"name": "affine"}, "shift"]
    appearance = ["colour_jitter", {"name": "noise", "p": 1}, "erase"]
    calls = [(s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    first = {}
    for seed, epoch, index in calls:
        views = Augmentation(geometry, appearance, seed)(painted(), epoch, index, 3)
        first[seed, epoch, index] = [view.image.tobytes() for view in views]
    images = [image for views in first.values() for image in views]
    assert len(set(images)) == len(images) == 24
    one = {seed: Augmentation(geometry, appearance, seed) for seed in (0, 1)}
    random.seed(3)
    for seed, epoch, index in reversed(calls):
        views = one[seed](painted(), epoch, index, 2)
        assert [view.image.tobytes() for view in views] == first[seed, epoch, index][:2]


def test_flips_do_not_fall_together():
    augmentation = Augmentation(geometry=["flip_horizontal", "flip_vertical"])
    seen = Counter()
    for index in range(400):
        x, y = origins(augmentation(painted(), 0, index)[0].image)
        seen[x[0, 0] > 0, y[0, 0] > 0] += 1
    assert len(seen) == 4
    assert min(seen.values()) > 60


def test_quarter_turns_are_all_four():
    augmentation = Augmentation(geometry=["rotate90"])
    images = [augmentation(painted(), 0, index)[0].image for index in range(60)]
    turned = {np.rot90(coordinates(SIZE), k).tobytes(): k for k in range(4)}
    assert {turned[image.tobytes()] for image in images} == {0, 1, 2, 3}


def test_shift_reaches_its_limit_and_no_further():
    augmentation = Augmentation(geometry=[{"name": "shift", "pixels": 3}])
    middle = SIZE // 2
    moved = [augmentation(painted(), 0, i)[0].image[middle, middle, :2].astype(int) // 2 - middle for i in range(500)]
    assert {tuple(m) for m in moved} == {(x, y) for x in range(-3, 4) for y in range(-3, 4)}


def measured(augmentation: Augmentation, index: int) -> tuple[float, float]:
    """Angle in degrees and factor by which two marks on a line turned and spread."""
    sample = painted()
    sample.keypoints = np.array([[10, 16, 1], [20, 16, 1]], np.float32)
    (after,) = augmentation(sample, 0, index)
    dx, dy = (after.keypoints[1] - after.keypoints[0])[:2]
    return float(np.degrees(np.arctan2(dy, dx))), float(np.hypot(dx, dy) / 10)


def test_rotation_and_scale_stay_in_their_ranges_and_use_them():
    angles = [measured(Augmentation(geometry=[{"name": "rotate", "limit": 40}]), i)[0] for i in range(80)]
    assert -40.01 <= min(angles) < -30
    assert 30 < max(angles) <= 40.01
    factors = [measured(Augmentation(geometry=[{"name": "scale", "low": 0.5, "high": 1.5}]), i)[1] for i in range(80)]
    assert 0.499 <= min(factors) < 0.6
    assert 1.3 < max(factors) <= 1.501


def test_a_crop_shows_only_the_image_and_at_least_the_smallest_share():
    augmentation, shares = Augmentation(geometry=[{"name": "crop", "smallest": 0.3, "aspect": 1.5}]), []
    for index in range(60):
        x, y = origins(augmentation(painted(), 0, index)[0].image)
        across, along = np.diff(x, axis=1), np.diff(y, axis=0)
        assert across.min() >= 0
        assert along.min() >= 0
        shares.append(float((x[0, -1] - x[0, 0]) * (y[-1, 0] - y[0, 0])) / (SIZE - 1) ** 2)
    assert 0.25 < min(shares) < 0.4
    assert max(shares) > 0.8


def test_views_share_one_geometry_and_differ_in_appearance():
    views = Augmentation(["shift", "rotate"], [{"name": "noise", "sd": 0.2, "p": 1}])(painted(), 0, 0, 3)
    assert len({view.image.tobytes() for view in views}) == 3
    for view in views[1:]:
        assert np.array_equal(view.keypoints, views[0].keypoints)
        assert np.array_equal(view.part_masks, views[0].part_masks)
        assert np.array_equal(view.human_map, views[0].human_map)
    plain = Augmentation(["shift"])(painted(), 0, 0, 2)
    assert np.array_equal(plain[0].image, plain[1].image)


@pytest.mark.parametrize("name", APPEARANCE)
def test_appearance_changes_pixels_and_neither_shape_nor_source(name):
    augmentation, before = Augmentation(appearance=[{"name": name, "p": 1}]), photo()
    images = [augmentation(before, 0, index)[0].image for index in range(5)]
    assert all(image.dtype == np.uint8 and image.shape == (SIZE, SIZE, 3) for image in images)
    assert any(not np.array_equal(image, before.image) for image in images)
    untouched = Augmentation(appearance=[{"name": name, "p": 0}])(before, 0, 0)[0].image
    assert np.array_equal(untouched, before.image)


def appearances(name: str, count: int = 20, **options) -> list[np.ndarray]:
    augmentation = Augmentation(appearance=[{"name": name, "p": 1, **options}])
    return [augmentation(photo(), 0, index)[0].image.astype(float) for index in range(count)]


def test_what_the_appearances_mean():
    before = photo().image.astype(float)
    for image in appearances("grey"):
        assert np.array_equal(image[..., 0], image[..., 1])
        assert np.array_equal(image[..., 0], image[..., 2])
    sds = [(image - before).std() / 255 for image in appearances("noise", sd=0.1)]
    assert max(sds) < 0.105
    assert max(sds) > 0.05
    erased = appearances("erase", smallest=0.5, largest=0.5)
    changed = [(np.abs(image - before).sum(axis=-1) > 0).mean() for image in erased]
    assert min(changed) > 0.2
    assert max(changed) <= 0.26
    noisy = before + np.random.default_rng(0).normal(0, 30, before.shape)
    blurred = Augmentation(appearance=[{"name": "blur", "p": 1, "sigma": 3.0}])
    rough = Sample(noisy.clip(0, 255).astype(np.uint8), 0)
    edges = [np.abs(np.diff(blurred(rough, 0, i)[0].image.astype(float), axis=1)).mean() for i in range(20)]
    assert min(edges) < 0.3 * np.abs(np.diff(noisy, axis=1)).mean()
    spread = [image.max(axis=-1) - before.max(axis=-1) for image in appearances("hue", limit=90)]
    assert max(np.abs(s).max() for s in spread) <= 6
    means = [image.mean() - before.mean() for image in appearances("brightness_contrast", contrast=0.0, brightness=0.2)]
    assert min(means) < -15
    assert max(means) > 15
    assert max(map(abs, means)) <= 0.2 * 255 + 2


def test_a_transform_in_the_wrong_half_is_refused():
    with pytest.raises(UserError, match=r"'blur' is listed under geometry; move it to augment\.appearance"):
        Augmentation(geometry=["blur"])
    with pytest.raises(UserError, match=r"augment\.geometry"):
        Augmentation(appearance=[{"name": "flip_horizontal"}])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"geometry": ["flip_horizontall"]}, "did you mean 'flip_horizontal'"),
        ({"geometry": [{"name": "shift", "pixel": 3}]}, "no option 'pixel'; did you mean 'pixels'"),
        ({"geometrie": []}, "no part 'geometrie'; did you mean 'geometry'"),
    ],
)
def test_misspelt_configurations_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        Augmentation.from_config(config)


@pytest.mark.parametrize(
    ("half", "spec", "words"),
    [
        ("geometry", {"name": "flip_vertical", "p": 1.5}, "p of flip_vertical is 1.5; give a number from 0 to 1"),
        ("geometry", {"name": "shift", "pixels": 2.5}, "pixels of shift is 2.5"),
        ("geometry", {"name": "scale", "low": 1.2, "high": 1.1}, "high of scale is 1.1"),
        ("geometry", {"name": "rotate", "limit": "far"}, "limit of rotate is 'far'"),
        ("appearance", {"name": "erase", "boxes": 0}, "boxes of erase is 0"),
        ("appearance", {"name": "noise", "sd": -1}, "sd of noise is -1"),
    ],
)
def test_options_out_of_range_are_refused_when_built(half, spec, words):
    with pytest.raises(UserError, match=words):
        Augmentation(**{half: [spec]}).prepare()


def test_every_transform_knows_its_half_and_was_tested_here():
    ours = {name for name in TRANSFORMS.list() if TRANSFORMS.get(name).__module__.startswith("vitrarium")}
    assert ours == set(HALVES) == {*EXACT, *WARPS, *APPEARANCE}


def test_an_empty_augmentation_is_false_and_changes_nothing():
    nothing = Augmentation.from_config(None)
    assert not nothing
    before = painted()
    assert all(same_samples(view, before) for view in nothing(before, 0, 0, 2))


def test_data_loads_neither_albumentations_nor_lightning_and_the_library_asks_no_network():
    script = """
import sys, socket
def refuse(*args, **kwargs): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import vitrarium.data, vitrarium.data.degrade, vitrarium.data.cache
from vitrarium.data.augmentation import Augmentation
augmentation = Augmentation(["shift"], ["blur"])
assert not {"albumentations", "pytorch_lightning"} & set(sys.modules)
augmentation.prepare()
assert "albumentations" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
