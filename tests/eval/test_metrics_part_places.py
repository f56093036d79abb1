"""Location instability and part interpretability, against loops in double precision; places of parts; refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.metrics import METRICS
from vitrarium.eval.metrics.parts.annotation import Marks
from vitrarium.eval.metrics.parts.places import region_overlaps
from vitrarium.models.types import Evidence, Output

from .test_metrics_parts import (
    IMAGES,
    PARTS,
    SIZE,
    UNITS,
    build,
    fed,
    layout,
    naive_images,
    naive_peak,
    naive_stretch,
    scene,
    visible,
)  # fmt: skip


def place_of_part(batch, image, q):
    if batch.keypoints is not None:
        return batch.keypoints[image, q, [1, 0]].double().numpy()
    return np.argwhere(batch.part_masks[image, q].numpy()).mean(0)


@pytest.mark.parametrize(("masks", "images"), [(False, "own"), (True, "own"), (True, "top")])
def test_location_instability_against_loops(masks, images):
    evidence, batch = scene(1, masks, images=18)
    evidence.maps[2] = 0.5  # flat: it looks nowhere, and the image is left out
    if masks:
        batch.part_masks[:, 3] = False
        batch.part_masks[4, 3, 3:5, 3:5] = True  # seen once: no deviation
    units = layout(unused=(1,))
    metric = fed(build("location_instability", units, images=images, top=5), evidence, batch)
    expected = []
    for unit in range(UNITS):
        chosen = [i for i in naive_images(evidence, batch, unit, units, 5, images) if i != 2]
        deviations = []
        for q in range(PARTS):
            away = [
                np.linalg.norm(place_of_part(batch, i, q) - naive_peak(evidence, i, unit)) / (SIZE * 2**0.5)
                for i in chosen
                if visible(batch, i)[q]
            ]
            deviations += [np.std(away)] if len(away) > 1 else []
        expected.append(float("nan") if unit == 1 else np.mean(deviations))
    assert metric.each().tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert float(metric.compute()) == pytest.approx(np.nanmean(expected), abs=1e-6)


@pytest.mark.parametrize(("level", "overlap"), [(0.5, 0.2), (0.8, 0.05)])
def test_part_interpretability_against_loops(level, overlap):
    evidence, batch = scene(2, masks=True, images=16)
    batch.part_masks[:, 0] = False
    evidence.maps[3] = 0.5  # flat: no region, no part
    metric = fed(build("part_interpretability", top=5, level=level, overlap=overlap), evidence, batch)
    expected = []
    for unit in range(UNITS):
        shares = []
        for q in range(PARTS):
            hits = []
            for i in naive_images(evidence, batch, unit, layout(), 5, "own"):
                mask = batch.part_masks[i, q].numpy()
                if not mask.any():
                    continue
                large = naive_stretch(evidence.maps[i, unit], SIZE) - float(evidence.maps[i, unit].min())
                region = (large >= level * large.max()) if i != 3 else np.zeros_like(mask)
                hits.append((region & mask).sum() / max((region | mask).sum(), 1) > overlap)
            shares += [np.mean(hits)] if hits else []
        expected.append(max(shares))
    assert metric.each().tolist() == pytest.approx(expected)
    assert 0 < float(metric.compute()) < 1


def pointing_at(batch, offset=(0, 0)):
    """Units 0 to 3 respond at parts 0 to 3, some pixels away; units 4 and 5 anywhere."""
    g, maps = torch.Generator().manual_seed(3), torch.zeros(len(batch), UNITS, SIZE, SIZE)
    for i in range(len(batch)):
        for unit in range(UNITS):
            y, x = torch.randint(SIZE, (2,), generator=g).tolist()
            if unit < PARTS:
                place = place_of_part(batch, i, unit).round().astype(int) + np.array(offset)
                y, x = place.tolist()
            maps[i, unit, y, x] = 1
    return Evidence(maps.amax((2, 3)), maps.amax((2, 3)), maps=maps)


def test_a_unit_at_a_fixed_distance_is_stable_and_another_is_not():
    _, batch = scene(7, images=60)
    corners = torch.tensor([[7.0, 4.0], [22.0, 6.0], [8.0, 20.0], [20.0, 19.0]])
    moved = torch.randint(-3, 4, (60, 1, 2), generator=torch.Generator().manual_seed(0))  # the object as a whole
    batch.keypoints = torch.cat([corners + moved, torch.ones(60, PARTS, 1)], 2)
    each = fed(build("location_instability", images="top", top=60), pointing_at(batch, (2, -3)), batch).each()
    assert each[:PARTS].max() < 1e-6
    assert each[PARTS:].min() > 0.1


def test_a_region_that_is_the_mask_is_the_part():
    _, batch = scene(8, masks=True, images=20)
    batch.part_masks[:] = False
    for q in range(PARTS):
        batch.part_masks[:, q, 7 * q : 7 * q + 7, 4 * q : 4 * q + 7] = True
    maps = torch.zeros(20, UNITS, SIZE, SIZE)
    maps[:, :PARTS] = batch.part_masks.float()
    maps[:, 4, :2] = 1.0  # where no part is
    maps[:, 5, 0, 0] = 1.0  # in a part, and much smaller than it
    evidence = Evidence(maps.amax((2, 3)), maps.amax((2, 3)), maps=maps)
    metric = fed(build("part_interpretability", images="top"), evidence, batch)
    assert metric.each().tolist() == [1, 1, 1, 1, 0, 0]
    assert metric.choices["counts"] == "intersection over union above 0.2"


def test_overlaps_are_intersections_over_unions():
    maps = torch.zeros(2, 8, 8)
    maps[0, :4] = 1.0
    masks = torch.zeros(1, 3, 8, 8, dtype=torch.bool)
    masks[0, 0, :4], masks[0, 1, 2:6], masks[0, 2, 6:] = True, True, True
    which = torch.zeros(2, dtype=torch.int64)
    assert region_overlaps(maps, masks, which, 0.5).tolist() == [[1.0, pytest.approx(1 / 3), 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("masks", [False, True])
def test_places_of_parts(masks):
    _, batch = scene(9, masks=masks, images=6)
    if masks:
        batch.part_masks[2, 1] = False
    places = Marks.of(batch).places()
    for i in range(6):
        for q in range(PARTS):
            expected = place_of_part(batch, i, q) if visible(batch, i)[q] else [0, 0]
            assert places[i, q].tolist() == pytest.approx(list(expected), abs=1e-5)


def test_without_masks_no_region_can_be_compared():
    evidence, batch = scene(0)
    assert fed(build("part_interpretability"), evidence, batch).each().isnan().all()
    assert not fed(build("location_instability"), evidence, batch).each().isnan().any()


@pytest.mark.parametrize(
    ("name", "options"),
    [("location_instability", {"images": "all"}), ("location_instability", {"top": 0}),
     ("part_interpretability", {"level": 0}), ("part_interpretability", {"level": 1}),
     ("part_interpretability", {"overlap": 1})],
)  # fmt: skip
def test_mistakes_are_refused(name, options):
    with pytest.raises(UserError):
        build(name, **options)
    with pytest.raises(UserError, match="needs units with maps"):
        METRICS.build(name, classes=3)


@pytest.mark.parametrize("name", ["location_instability", "part_interpretability"])
def test_order_and_batches_do_not_matter_and_the_state_keeps_its_size(name):
    evidence, batch = scene(11, masks=True)
    evidence.activations = (evidence.activations * 4).round() / 4  # many ties
    one = fed(build(name, top=5), evidence, batch)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    other = fed(build(name, top=5), evidence, batch, order, size=11)
    assert torch.allclose(one.each(), other.each(), rtol=0, atol=1e-12, equal_nan=True)
    sizes = [{k: v.shape for k, v in m.metric_state.items()} for m in (one, build(name, top=5))]
    assert sizes[0] == sizes[1]


def test_data_without_parts_add_nothing():
    evidence, batch = scene(0, images=3)
    bare = Batch(batch.image, batch.label, index=batch.index)
    assert not build("location_instability").update_output(Output(torch.zeros(1), evidence), bare)
