"""What units look at, against loops in double precision; ties, noise, refusals, processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.metrics import METRICS
from vitrarium.eval.metrics.parts.annotation import Marks, merged_sides
from vitrarium.eval.metrics.parts.base import keep_best, merge_best
from vitrarium.eval.metrics.parts.places import peaks, segment_shares, stretched, strongest_places
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout
from vitrarium.eval.metrics.parts.stability import noisy
from vitrarium.models.types import Evidence, Output

CLASSES, UNITS, PARTS, SIZE, IMAGES = 3, 6, 4, 28, 40
NAMES = ("left eye", "right eye", "beak", "tail")


def layout(shared=(4, 5), unused=()):
    """Units 0 to 3 belong to classes 0, 0, 1, 2; the others are shared."""
    owners = torch.zeros(UNITS, CLASSES, dtype=torch.bool)
    owners[range(4), [0, 0, 1, 2]] = True
    owners[list(shared)] = True
    used = torch.ones(UNITS, dtype=torch.bool)
    used[list(unused)] = False
    return UnitLayout(owners, used)


def scene(seed=0, masks=False, images=IMAGES, places=5):
    """Evidence and batch of random maps and parts."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.rand(images, UNITS, places, places, generator=g)
    points = torch.rand(images, PARTS, 3, generator=g) * SIZE - 0.5
    points[:, :, 2] = (torch.rand(images, PARTS, generator=g) < 0.8).float()
    squares = functional.interpolate(torch.rand(images, PARTS, 7, 7, generator=g), SIZE) > 0.8
    batch = Batch(
        image=torch.rand(images, 3, SIZE, SIZE, generator=g),
        label=torch.randint(CLASSES, (images,), generator=g),
        keypoints=None if masks else points,
        part_masks=squares if masks else None,
        index=torch.arange(images),
    )
    return Evidence(maps.amax((2, 3)), maps.amax((2, 3)), maps=maps), batch


def build(name, units=None, **options):
    given = {"classes": CLASSES, "concepts": None, "units": units or layout(), "parts": PARTS, "part_names": NAMES}
    return METRICS.build({"name": name, **options}, **given)


def rows_of(batch, rows):
    return Batch(
        batch.image[rows], batch.label[rows],
        keypoints=None if batch.keypoints is None else batch.keypoints[rows],
        part_masks=None if batch.part_masks is None else batch.part_masks[rows], index=batch.index[rows],
    )  # fmt: skip


def fed(metric, evidence, batch, order=None, size=7):
    for rows in (torch.arange(len(batch)) if order is None else order).split(size):
        assert metric.update_output(Output(torch.zeros(1), evidence[rows]), rows_of(batch, rows))
    return metric


# --- the same by loops ---------------------------------------------------------------------------------------------


def cubic(distance):
    """Keys' kernel with a = -3/4."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def weights(places, size):
    """(size, places) what each cell adds to each pixel; beyond the border the last cell is repeated."""
    found = np.zeros((size, places))
    for pixel in range(size):
        centre = (pixel + 0.5) * places / size - 0.5
        for cell in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            found[pixel, min(max(cell, 0), places - 1)] += cubic(centre - cell)
    return found


def naive_stretch(cells, size):
    """(h, w) to (size, size)."""
    cells = np.asarray(cells, dtype=np.float64)
    return weights(cells.shape[0], size) @ cells @ weights(cells.shape[1], size).T


def naive_inside(batch, image, centre, half):
    """Part by part."""
    found = []
    for q in range(PARTS):
        if batch.keypoints is not None:
            x, y, visible = (float(v) for v in batch.keypoints[image, q])
            found.append(bool(visible) and abs(x - centre[1]) <= half and abs(y - centre[0]) <= half)
            continue
        mask, count, box = batch.part_masks[image, q].numpy(), 0, 0
        for y in range(SIZE):
            for x in range(SIZE):
                if abs(y - centre[0]) <= half and abs(x - centre[1]) <= half:
                    box, count = box + 1, count + mask[y, x]
        found.append(bool(count) and count >= 0.25 * min(box, mask.sum()))
    return found


def visible(batch, image):
    if batch.keypoints is not None:
        return [bool(v) for v in batch.keypoints[image, :, 2]]
    return [bool(m.any()) for m in batch.part_masks[image]]


def naive_images(evidence, batch, unit, units, top, images):
    """By which images a unit is judged."""
    if images == "own" and not bool(units.owners[unit].all()):
        return [i for i in range(len(batch)) if bool(units.owners[unit, batch.label[i]])]
    activation = evidence.activations[:, unit].double().tolist()
    return sorted(range(len(batch)), key=lambda i: (-activation[i], int(batch.index[i])))[:top]


def naive_peak(evidence, image, unit):
    return np.unravel_index(naive_stretch(evidence.maps[image, unit], SIZE).argmax(), (SIZE, SIZE))


def naive_consistency(evidence, batch, units, images, top):
    good = []
    for unit in range(UNITS):
        if not units.used[unit]:
            continue
        chosen = naive_images(evidence, batch, unit, units, top, images)
        means = []
        for q in range(PARTS):
            seen = [i for i in chosen if visible(batch, i)[q]]
            hits = [naive_inside(batch, i, naive_peak(evidence, i, unit), 36 * SIZE / 224)[q] for i in seen]
            means += [np.mean(hits)] if seen else []
        good.append(max(means))
    return good


@pytest.mark.parametrize(("masks", "images"), [(False, "own"), (True, "own"), (False, "top")])
def test_consistency_against_loops(masks, images):
    evidence, batch = scene(1, masks, images=18)
    units = layout(unused=(1,))
    expected = naive_consistency(evidence, batch, units, images, 5)
    cut = float(np.median(expected))  # so that some units pass and some do not
    metric = fed(build("consistency", units, images=images, top=5, threshold=cut), evidence, batch)
    each = metric.each()
    assert each.isnan().tolist() == [False, True, False, False, False, False]
    assert each[~each.isnan()].tolist() == [float(v >= cut) for v in expected]
    assert float(metric.compute()) == pytest.approx(np.mean([v >= cut for v in expected]))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("merge", [False, True])
def test_purity_against_loops(masks, merge):
    evidence, batch = scene(2, masks, images=25)
    metric = fed(build("purity", top=6, merge=merge, patch=60), evidence, batch)
    half, step = 30 * SIZE / 224, SIZE / 5
    groups = [[0, 1], [2], [3]] if merge else [[0], [1], [2], [3]]
    expected = []
    for unit in range(UNITS):
        shares = []
        inside, seen = {}, {}
        for i in naive_images(evidence, batch, unit, layout(), 6, "top"):
            cell = np.unravel_index(int(evidence.maps[i, unit].argmax()), (5, 5))
            centre = [min(max((c + 0.5) * step - 0.5, half - 0.5), SIZE - 0.5 - half) for c in cell]
            inside[i], seen[i] = naive_inside(batch, i, centre, half), visible(batch, i)
        for group in groups:
            known = [i for i in seen if any(seen[i][q] for q in group)]
            shares += [np.mean([any(inside[i][q] for q in group) for i in known])] if known else []
        expected.append(max(shares))
    assert metric.each().tolist() == pytest.approx(expected)
    assert metric.choices["sd"] == pytest.approx(np.std(expected), abs=1e-6)
    assert metric.choices["merged"] == int(merge)


def test_stability_against_loops():
    evidence, batch = scene(3, images=15)
    shaken = Evidence(evidence.activations, evidence.vector, maps=evidence.maps + 0.3 * scene(4, images=15)[0].maps)
    metric = build("stability", top=4)
    assert not metric.update_output(Output(torch.zeros(1), evidence), batch)  # nobody has shown it noise
    for rows in torch.arange(15).split(4):
        part = rows_of(batch, rows)
        metric.update(Sighting.of(evidence[rows], part), Sighting.of(shaken[rows], part))
    expected, half = [], 36 * SIZE / 224
    for unit in range(UNITS):
        same = []
        for i in naive_images(evidence, batch, unit, layout(), 4, "own"):
            before, after = (naive_inside(batch, i, naive_peak(e, i, unit), half) for e in (evidence, shaken))
            same.append(before == after)
        expected.append(np.mean(same))
    assert metric.each().tolist() == pytest.approx(expected)
    assert 0 < float(metric.compute()) < 1


def test_part_localisation_against_loops():
    evidence, batch = scene(5, masks=True, images=14)
    batch.part_masks[3] = False  # nothing to point at: left out
    metrics = {
        way: fed(build("part_localisation", way=way, top=4), evidence, batch) for way in ("energy", "top", "pointing")
    }
    expected = {way: [] for way in metrics}
    for unit in range(UNITS):
        found = {way: [] for way in metrics}
        for i in naive_images(evidence, batch, unit, layout(), 4, "own"):
            inside = batch.part_masks[i].any(0).numpy()
            if not inside.any():
                continue
            large = naive_stretch(evidence.maps[i, unit], SIZE) - float(evidence.maps[i, unit].min())
            large = np.maximum(large, 0)
            best = large.ravel().argsort()[::-1][: round(0.05 * SIZE**2)]
            found["energy"].append((large * inside).sum() / large.sum())
            found["top"].append(inside.ravel()[best].mean())
            found["pointing"].append(float(inside.ravel()[large.argmax()]))
        for way, values in found.items():
            expected[way].append(np.mean(values))
    for way, metric in metrics.items():
        assert metric.each().tolist() == pytest.approx(expected[way], abs=1e-5), way
    chance = metrics["top"].choices["by_chance"]
    assert 0.4 < chance < 0.8


def test_a_human_map_stands_in_for_masks():
    evidence, batch = scene(6, images=4)
    batch.human_map = torch.zeros(4, 1, SIZE, SIZE)
    batch.human_map[:, :, :, : SIZE // 2] = 0.9
    evidence.maps[:] = torch.tensor([1.0, 0, 0, 0, 0])  # all look to the left
    metric = build("part_localisation", way="pointing")
    metric.update(Sighting.of(evidence, batch))
    assert float(metric.compute()) == 1


# --- what a perfect and a random unit score -------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
def test_perfect_units_reach_one_and_random_ones_do_not(masks):
    _, batch = scene(7, masks=masks, images=60)
    if masks:  # one square each
        batch.part_masks[:] = False
    batch_points = torch.randint(4, SIZE - 4, (60, PARTS, 2), generator=torch.Generator().manual_seed(8))
    maps = torch.zeros(60, UNITS, SIZE, SIZE)
    for i in range(60):
        for q in range(PARTS):
            y, x = batch_points[i, q].tolist()
            if masks:
                batch.part_masks[i, q, y - 2 : y + 2, x - 2 : x + 2] = True
            else:
                batch.keypoints[i, q] = torch.tensor([x, y, 1.0])
        for unit in range(UNITS):
            y, x = batch_points[i, unit % PARTS].tolist()
            maps[i, unit, y, x] = 1
    perfect = Evidence(maps.amax((2, 3)), maps.amax((2, 3)), maps=maps)
    chance = torch.rand(60, UNITS, 7, 7, generator=torch.Generator().manual_seed(9))
    random = Evidence(chance.amax((2, 3)), chance.amax((2, 3)), maps=chance)
    for name in ("consistency", "purity"):
        assert float(fed(build(name), perfect, batch).compute()) == 1, name
        assert float(fed(build(name), random, batch).compute()) < 0.6, name
    if masks:
        assert float(fed(build("part_localisation", way="pointing"), perfect, batch).compute()) == 1


# --- places ---------------------------------------------------------------------------------------------------------


def test_stretching_is_cubic_interpolation():
    maps = torch.rand(5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    square = stretched(maps[:, :, :4], (20, 20))
    for cells, large in zip(maps[:, :, :4], square, strict=True):
        assert np.abs(naive_stretch(cells, 20) - large.numpy()).max() < 1e-5
    reference = functional.interpolate(maps[:, None], (21, 33), mode="bicubic", align_corners=False)[:, 0]
    assert torch.allclose(stretched(maps, (21, 33)).double(), reference, atol=1e-5)
    assert peaks(maps, (21, 33)).tolist() == [
        [float(p // 33), float(p % 33)] for p in reference.flatten(1).argmax(1).tolist()
    ]  # fmt: skip


def test_of_equal_peaks_the_first_in_reading_order_is_taken():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2] = maps[0, 1, 0] = maps[0, 3, 1] = 1.0
    maps[1, 0, 3] = maps[1, 2, 0] = 1.0
    assert strongest_places(maps, (4, 4)).tolist() == [[1, 0], [0, 3]]
    # Row and column, never one for the other: both peaks lie where rows and columns differ.
    assert peaks(maps, (4, 4)).tolist() == [[1, 0], [0, 3]]


def test_a_flat_map_looks_nowhere():
    maps = torch.full((1, UNITS, 3, 3), 0.7)
    evidence, batch = scene(0, masks=True, images=1)
    batch.part_masks[:] = True
    evidence = Evidence(evidence.activations, evidence.vector, maps=maps)
    assert peaks(maps[0], (8, 8)).isnan().all()
    assert (
        not Marks.of(batch)
        .inside(torch.zeros(1, dtype=torch.int64), torch.full((1, 2), float("nan")), torch.ones(2))
        .any()
    )
    assert segment_shares(maps[0], batch.part_masks.any(1), torch.zeros(UNITS, dtype=torch.int64), 0.05).sum() == 0
    assert float(fed(build("purity"), evidence, batch).compute()) == 0


# --- annotation -----------------------------------------------------------------------------------------------------


def test_boxes_include_their_edge_and_end_at_the_border():
    keypoints = torch.tensor([[[10.0, 4.0, 1.0], [10.1, 4.0, 1.0], [6.0, 4.0, 0.0], [0.0, 0.0, 1.0]]])
    batch = Batch(torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1, dtype=torch.int64), keypoints=keypoints)
    marks = Marks.of(batch)
    inside = marks.inside(torch.zeros(1, dtype=torch.int64), torch.tensor([[4.0, 6.0]]), torch.tensor([4.0, 4.0]))
    assert inside.tolist() == [[True, False, False, False]]  # on the edge, beyond, invisible, left of it


def test_a_keypoint_outside_its_image_is_refused_by_name():
    evidence, batch = scene(0, images=3)
    batch.keypoints[1, 2] = torch.tensor([SIZE + 3.0, 2.0, 1.0])
    batch.index = torch.tensor([7, 17, 27])
    with pytest.raises(UserError, match=r"'beak' of image 17 at \(31, 2\) lies outside its image of 28 x 28"):
        Marks.of(batch, NAMES)
    batch.keypoints[1, 2] = torch.tensor([float("nan"), 2.0, 1.0])
    with pytest.raises(UserError, match="image 17"):
        build("consistency").update_output(Output(torch.zeros(1), evidence), batch)
    batch.keypoints[1, 2, 2] = 0  # where an invisible part would be does not matter
    assert build("consistency").update_output(Output(torch.zeros(1), evidence), batch)


def test_left_and_right_are_merged_by_name():
    groups = merged_sides(["left_eye", "Right Eye", "bright spot", "left wing", "wing-right", "tail"], 6)
    assert groups.int().argmax(1).tolist() == [0, 0, 1, 2, 2, 3]
    assert merged_sides((), 3).equal(torch.eye(3, dtype=torch.bool))


def test_data_without_parts_and_models_without_maps_add_nothing():
    evidence, batch = scene(0, images=3)
    bare = Batch(batch.image, batch.label, index=batch.index)
    assert not build("consistency").update_output(Output(torch.zeros(1), evidence), bare)
    assert not build("consistency").update_output(Output(torch.zeros(1), evidence.without_maps()), batch)


@pytest.mark.parametrize(
    ("name", "options"),
    [("consistency", {"images": "all"}), ("consistency", {"top": 0}), ("consistency", {"threshold": 0}),
     ("purity", {"patch": 0}), ("part_localisation", {"way": "iou"}), ("part_localisation", {"pixels": 2})],
)  # fmt: skip
def test_mistakes_are_refused(name, options):
    with pytest.raises(UserError):
        build(name, **options)
    with pytest.raises(UserError, match="needs units with maps"):
        METRICS.build(name, classes=3)


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_depends_on_seed_and_image_alone():
    _, batch = scene(0)
    std = torch.tensor([0.25, 0.5, 1.0])
    whole = noisy(batch.image, batch.index, std)
    rows = torch.tensor([9, 2])
    assert noisy(batch.image[rows], batch.index[rows], std).equal(whole[rows])
    assert not noisy(batch.image, batch.index, std, seed=1).equal(whole)
    noise = (whole - batch.image) / std[:, None, None]
    assert float(noise.abs().max()) == pytest.approx(0.25, abs=1e-5)
    inner = noise[noise.abs() < 0.2499]
    assert float((noise.abs() >= 0.2499).float().mean()) == pytest.approx(0.2113, abs=0.01)  # P(|N(0, 0.2)| > 0.25)
    assert abs(float(inner.mean())) < 0.002


# --- streaming ------------------------------------------------------------------------------------------------------

STREAMED = [("consistency", {"top": 5}), ("consistency", {"images": "top", "top": 5}), ("purity", {}),
            ("part_localisation", {"top": 5})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), STREAMED)
def test_order_and_batches_do_not_matter(name, options):
    evidence, batch = scene(11, masks=True)
    evidence.activations = (evidence.activations * 4).round() / 4  # many ties
    one = fed(build(name, **options), evidence, batch)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    other = fed(build(name, **options), evidence, batch, order, size=11)
    assert torch.allclose(one.each(), other.each(), rtol=0, atol=1e-12, equal_nan=True)
    assert one.best.equal(other.best)
    shapes = {k: v.shape for k, v in one.metric_state.items()}
    assert shapes == {k: v.shape for k, v in build(name, **options).metric_state.items()}


@pytest.mark.parametrize(("name", "options"), STREAMED)
def test_two_states_merge_into_that_of_one(name, options):
    evidence, batch = scene(12, masks=True)
    evidence.activations = (evidence.activations * 4).round() / 4
    whole = fed(build(name, **options), evidence, batch)
    for share in (13, IMAGES):  # unequal, then nothing for the second
        first, second = build(name, **options), build(name, **options)
        fed(first, evidence, batch, torch.arange(share))
        if share < IMAGES:
            fed(second, evidence, batch, torch.arange(share, IMAGES))
        first.sums = first.sums + second.sums
        first.best = merge_best(torch.stack([first.best, second.best]))
        assert torch.allclose(first.each(), whole.each(), rtol=0, atol=1e-12, equal_nan=True)
        assert first.best.equal(whole.best)


def test_the_best_are_kept_with_ties_by_index():
    rows = torch.tensor([[[1.0, 5, 0], [2.0, 9, 0], [2.0, 4, 0], [float("-inf"), 0, 0], [1.0, 3, 0]]])
    assert keep_best(rows, 3)[0, :, 1].tolist() == [4, 9, 3]
