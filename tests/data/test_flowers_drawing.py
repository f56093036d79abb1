"""The drawing shows what the attributes say, and masks and keypoints are true to it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vitrarium.data.sets import flowers_drawing as module
from vitrarium.data.sets.flowers import flowers
from vitrarium.data.sets.flowers_brush import Brush, Dice, ellipse
from vitrarium.data.sets.flowers_drawing import Picture, draw_flower
from vitrarium.data.sets.flowers_plant import PETAL_COLOURS
from vitrarium.data.sets.flowers_rules import ATTRIBUTES, PARTS

PLAIN = {
    "petal_colour": "red", "petal_count": "6", "petal_shape": "round", "disc_colour": "yellow",
    "disc_size": "small", "thorns": "no", "leaf_shape": "narrow", "leaf_count": "2",
}  # fmt: skip


def draw(seed: int = 0, size: int = 64, difficulty: float = 0.6, **look: str) -> Picture:
    return draw_flower({**PLAIN, **look}, np.random.default_rng(seed), size, difficulty)


def part(picture: Picture, name: str) -> np.ndarray:
    return picture.masks[PARTS.index(name)] > 0


def pieces(mask: np.ndarray) -> int:
    """Connected pieces of more than a few pixels."""
    count, _, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return sum(int(sizes[k, cv2.CC_STAT_AREA]) > 25 for k in range(1, count))


def test_no_pixel_belongs_to_two_parts() -> None:
    for seed in range(30):
        picture = draw(seed, thorns="yes", difficulty=seed / 30)
        assert (picture.masks > 0).sum(axis=0).max() == 1


def test_a_keypoint_lies_on_its_visible_part() -> None:
    seen = np.zeros(5)
    for seed in range(60):
        picture = draw(seed, thorns="yes", difficulty=0.8)
        for p, (x, y, visible) in enumerate(picture.keypoints):
            assert 0 <= x <= 63
            assert 0 <= y <= 63
            assert visible in (0, 1)
            assert (picture.masks[p, int(y), int(x)] > 0) == bool(visible)
            seen[p] += visible
    assert seen.min() > 50


def test_keypoints_of_an_absent_part_are_unseen() -> None:
    picture = draw(3, thorns="no")
    assert not part(picture, "thorns").any()
    np.testing.assert_array_equal(picture.keypoints[PARTS.index("thorns")], 0)


@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
def test_one_attribute_changes_its_own_part_alone(attribute: str) -> None:
    touched = {"petal": ("petals", "disc"), "disc": ("petals", "disc"), "thorns": ("thorns",), "leaf": ("leaves",)}
    mine = touched[attribute.split("_")[0]]
    for seed in range(5):
        one, other = (draw(seed, difficulty=0.5, **{attribute: v}) for v in ATTRIBUTES[attribute][:2])
        mask = np.any([part(p, name) for p in (one, other) for name in mine], axis=0).astype(np.uint8)
        near = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0  # outlines and blur reach a little beyond
        changed = np.abs(one.image.astype(int) - other.image).max(axis=2)
        assert changed[~near].max() <= 3
        assert changed.max() > 40


@pytest.mark.parametrize("shape", ["round", "pointed"])
@pytest.mark.parametrize("count", ATTRIBUTES["petal_count"])
def test_the_petals_can_be_counted(shape: str, count: str) -> None:
    for seed in range(4):
        picture = draw(seed, 256, 0, petal_count=count, petal_shape=shape)
        x, y, _ = picture.keypoints[PARTS.index("disc")]
        rows, columns = np.mgrid[:256, :256]
        away = np.hypot(columns - x, rows - y) / 256
        assert pieces(part(picture, "petals") & (away > 0.2) & (away < 0.25)) == int(count)


def test_the_leaves_can_be_counted() -> None:
    for seed in range(6):
        for count in ATTRIBUTES["leaf_count"]:
            picture = draw(seed, 256, 0, leaf_count=count)
            assert pieces(part(picture, "leaves")) == int(count)


@pytest.mark.parametrize("name", list(PETAL_COLOURS))
def test_petals_have_the_colour_they_are_called_after(name: str) -> None:
    middles = {n: np.mean(pair, axis=0) for n, pair in PETAL_COLOURS.items()}
    for seed in range(5):
        picture = draw(seed, petal_colour=name, difficulty=0)
        mean = picture.image[part(picture, "petals")].mean(axis=0)
        assert min(middles, key=lambda n: np.abs(middles[n] - mean).sum()) == name


def test_a_large_disc_is_larger() -> None:
    def share(size: str, seed: int) -> float:
        picture = draw(seed, disc_size=size, difficulty=0)
        disc, petals = part(picture, "disc").sum(), part(picture, "petals").sum()
        return float(disc / (disc + petals))

    small, large = ([share(size, seed) for seed in range(12)] for size in ("small", "large"))
    assert max(small) < min(large)


def test_shapes_differ_in_how_they_fill_the_head() -> None:
    area = {s: part(draw(1, 128, 0, petal_shape=s), "petals").sum() for s in ATTRIBUTES["petal_shape"]}
    assert area["pointed"] < 0.9 * area["round"]
    leaf = {s: part(draw(1, 128, 0, leaf_shape=s), "leaves").sum() for s in ATTRIBUTES["leaf_shape"]}
    assert leaf["narrow"] < 0.6 * leaf["oval"]


def test_what_hides_the_flower_is_not_in_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [draw(seed, difficulty=1) for seed in range(20)]
    monkeypatch.setattr(module, "draw_before", lambda *_: None)
    lost = 0
    for seed, picture in enumerate(hidden):
        bare = draw(seed, difficulty=1)
        grown = (picture.masks > 0) & ~(bare.masks > 0).any(axis=0)
        assert not grown.any()
        gone = (bare.masks > 0).any(axis=0) & ~(picture.masks > 0).any(axis=0)
        lost += int(gone.sum())
        if gone.any():
            assert np.abs(picture.image[gone].astype(int) - bare.image[gone]).mean() > 5
    assert lost > 200


def test_difficulty_makes_smaller_hidden_and_tilted_flowers() -> None:
    def petals(difficulty: float) -> float:
        return float(np.mean([part(draw(seed, difficulty=difficulty), "petals").mean() for seed in range(40)]))

    assert petals(0) > 1.15 * petals(0.5) > 1.15 * petals(1)


def test_the_human_map_is_the_visible_part_that_tells_the_species() -> None:
    source = flowers(train=48, val=1, test=1)
    split = source.splits["train"]
    for index in range(48):
        sample = split.sample(index)
        wanted = [PARTS.index(p) for p in split.kinds[sample.label].parts]
        np.testing.assert_array_equal(sample.human_map > 0, (sample.part_masks[wanted] > 0).any(axis=0))


def test_blur_softens_the_human_map_alone_and_scales_with_size() -> None:
    for size in (64, 128):
        options = {"train": 12, "val": 1, "test": 1, "size": size}
        sharp = flowers(**options).splits["train"].sample(0)
        soft = flowers(**options, map_blur=3).splits["train"].sample(0)
        assert sharp.human_map is not None
        assert soft.human_map is not None
        expected = cv2.GaussianBlur(sharp.human_map.astype(np.float64), (0, 0), 3 * size / 64)
        np.testing.assert_allclose(soft.human_map, 255 * expected / expected.max(), atol=2)
        assert soft.human_map.max() == 255
        np.testing.assert_array_equal(soft.image, sharp.image)
        np.testing.assert_array_equal(soft.part_masks, sharp.part_masks)


def test_the_brush_paints_where_it_says() -> None:
    brush = Brush(np.zeros((100, 100, 3), np.uint8))
    brush.fill(ellipse(0.3, 0.6, 0.2, 0.1, points=80), (9, 8, 7), 2)
    rows, columns = np.nonzero(brush.parts == 2)
    assert abs((columns + 0.5).mean() / 100 - 0.3) < 0.005
    assert abs((rows + 0.5).mean() / 100 - 0.6) < 0.005
    assert len(rows) == pytest.approx(np.pi * 0.2 * 0.1 * 10_000, rel=0.1)
    assert (brush.canvas[brush.parts == 2] == (9, 8, 7)).all()
    brush.dot(0.3, 0.6, 0.02, (1, 1, 1))
    assert brush.parts[60, 30] == 2
    brush.dot(0.3, 0.6, 0.02, (1, 1, 1), 0)
    assert brush.parts[60, 30] == 0


def test_dice_answer_within_their_range_and_in_turn() -> None:
    dice = Dice(np.array([0.0, 0.5, 0.999, 0.25, 0.75, 0.1]))
    assert dice.between(2, 4) == 2
    assert dice.pick("abcd") == "c"
    assert dice.count(1, 3) == 3
    assert dice.sign() == -1
    assert dice.chance(0.8)
    assert dice.blend((0, 0, 0), (10, 20, 30)) == pytest.approx((1, 2, 3))
