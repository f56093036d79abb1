"""Boxes against numpy, misalignment on a network whose sight is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import build
from vitrarium.models.prototypes import boxes as module
from vitrarium.models.prototypes.boxes import inside_boxes, misalignment, percentile_boxes, upsampled
from vitrarium.models.prototypes.receptive import receptive_field


def test_percentile_boxes_are_numpys(monkeypatch):
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 3 * 20 * 28)
    maps = torch.randn(8, 4, 5, generator=torch.Generator().manual_seed(0))
    boxes = percentile_boxes(maps, (20, 28), 0.93)
    large = upsampled(maps, (20, 28)).double().numpy()
    for box, map in zip(boxes, large, strict=True):
        rows, columns = np.nonzero(map >= np.percentile(map, 93) - 1e-7)
        expected = [columns.min() / 28, rows.min() / 20, (columns.max() + 1) / 28, (rows.max() + 1) / 20]
        assert box.tolist() == pytest.approx(expected)


def test_a_flat_map_is_the_whole_image_and_a_peak_is_where_it_is():
    maps = torch.zeros(2, 4, 4)
    maps[1, 0, 3] = 1
    boxes = percentile_boxes(maps, (64, 64))
    assert boxes[0].tolist() == [0, 0, 1, 1]
    left, top, right, bottom = boxes[1].tolist()
    assert left > 0.7
    assert top == 0
    assert right == 1
    assert bottom < 0.3
    assert percentile_boxes(maps[:0], (64, 64)).shape == (0, 4)


def test_maps_of_parts_lie_over_the_middle_of_the_parts():
    """A 3 x 3 part at place (0, 0) of a 6 x 6 map has its middle in cell (1, 1)."""
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 1
    peak = int(upsampled(maps, (60, 60), (6, 6)).flatten().argmax())
    assert abs(peak // 60 - 25) <= 1
    assert abs(peak % 60 - 35) <= 1


def test_upsampling_is_torchs_cubic():
    maps = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(maps[:, None], (1, 1, 0, 1), mode="replicate")
    expected = torch.nn.functional.interpolate(padded, size=(37, 50), mode="bicubic", align_corners=False)[:, 0]
    torch.testing.assert_close(upsampled(maps, (37, 50), (5, 8)), expected, rtol=1e-4, atol=1e-5)


def test_inside_boxes():
    inside = inside_boxes(torch.tensor([[0.25, 0.0, 0.5, 0.75]]), (4, 8))
    assert inside[0, 0].int().tolist() == [[0, 0, 1, 1, 0, 0, 0, 0]] * 3 + [[0] * 8]


@pytest.fixture
def looking():
    """A model, images, its best place in each, and the pixels that this place can see."""
    spec = {
        "backbone": {"name": "convnet", "widths": (6, 6)},
        "evidence": {"name": "prototypes", "per_class": 3},
        "readout": "class_connected",
    }
    model = build(spec, ("a", "b"), seed=0).eval()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    units, places = torch.arange(6), torch.tensor([[0, 0], [2, 7], [4, 1], [7, 6], [3, 3], [5, 5]])
    with torch.no_grad():
        # Prototype n is the patch of image n at place n, so nothing is more like it.
        latent = model.evidence.embed(model.backbone(images))
        model.evidence.place_prototypes(units, model.evidence.patches(latent, units, places))
    return model, images, units, receptive_field(model, 32).boxes(places)


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_the_true_receptive_field_keeps_and_loses_all(looking, fill):
    model, images, units, fields = looking
    kept, lost = misalignment(model, images, units, fields, fill, batch=4)
    torch.testing.assert_close(kept, torch.ones(6), rtol=0, atol=1e-4)
    # The mean colour is that of the whole image, the blur reaches into the box: inside there may be a trace left.
    torch.testing.assert_close(lost, torch.ones(6), rtol=0, atol=1e-4)


def test_a_box_elsewhere_keeps_and_loses_nothing(looking):
    model, images, units, fields = looking
    elsewhere = torch.where(fields[:, :1] > 0.4, torch.tensor([0.0, 0, 0.2, 1]), torch.tensor([0.95, 0, 1.0, 1]))
    clear = (fields[:, 0] >= 0.2) & (fields[:, 0] > 0.4) | ((fields[:, 2] <= 0.95) & (fields[:, 0] <= 0.4))
    assert clear.sum() >= 3
    kept, lost = misalignment(model, images, units, elsewhere)
    torch.testing.assert_close(kept[clear], torch.zeros(int(clear.sum())), rtol=0, atol=1e-4)
    torch.testing.assert_close(lost[clear], torch.zeros(int(clear.sum())), rtol=0, atol=1e-4)


def test_by_hand(looking):
    model, images, units, _ = looking
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).expand(6, 4)
    kept, lost = misalignment(model, images, units, box)
    n, unit = 3, int(units[3])
    image, mean = images[n], images[n].mean((1, 2), keepdim=True)
    with_inside, without = mean.expand(3, 32, 32).clone(), image.clone()
    with_inside[:, 8:24, 8:24], without[:, 8:24, 8:24] = image[:, 8:24, 8:24], mean
    with torch.no_grad():
        stack = torch.stack([image, with_inside, without, mean.expand(3, 32, 32)])
        maps = model(stack).evidence.maps[:, unit].flatten(1).double()
    s, out, inside, nothing = maps[:, int(maps[0].argmax())].tolist()
    assert float(kept[n]) == pytest.approx((out - nothing) / (s - nothing), rel=1e-4, abs=1e-5)
    assert float(lost[n]) == pytest.approx((s - inside) / (s - nothing), rel=1e-4, abs=1e-5)


def test_an_empty_image_proves_nothing(looking):
    model, images, units, fields = looking
    kept, lost = misalignment(model, torch.full_like(images, 0.5), units, fields)
    assert kept.isnan().all()
    assert lost.isnan().all()


def test_refusals(looking):
    with pytest.raises(UserError, match="no percentile"):
        percentile_boxes(torch.zeros(1, 2, 2), (4, 4), 95)
    with pytest.raises(UserError, match="cannot become 'black'"):
        misalignment(*looking, fill="black")
