"""Units tied to annotated parts."""

import math
from types import SimpleNamespace

import pytest
import torch

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models import build
from vitrarium.train.checks import check_recipe
from vitrarium.train.terms.base import TERMS, Step
from vitrarium.train.terms.parts import keypoints_on_grid, masks_on_grid, outside_mass

POINTS = SimpleNamespace(name="toy", part_names=("beak", "tail"), gives=frozenset({"keypoints"}))
MASKS = SimpleNamespace(name="toy", part_names=("beak", "tail"), gives=frozenset({"keypoints", "part_masks"}))


def term_of(source=POINTS, **options):
    return TERMS.build({"name": "part_prototypes", **options}, source=source)


def model_of(evidence=None):
    evidence = evidence or {"name": "prototypes", "shared": 4}
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": evidence, "readout": "linear"}
    return build(spec, ("a", "b"), seed=0).double()


def batch_of(rows=2, label=0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(rows, 2, 3, generator=draw) * 16
    points[:, :, 2] = 1
    image = torch.rand(rows, 3, 16, 16, generator=draw, dtype=torch.float64)
    masks = torch.zeros(rows, 2, 16, 16, dtype=torch.bool)
    masks[:, 0, 2:6, 3:9] = masks[:, 1, 12:15, 12:16] = True
    return Batch(image, torch.full((rows,), label), keypoints=points, part_masks=masks)


def step_of(model, batch):
    return Step(model, batch, model(batch.image))


def test_against_a_plain_loop():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    inside = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    inside[0, 1, :3] = 0
    losses = outside_mass(maps, inside, 2.0)
    for b in range(2):
        for m in range(3):
            weights = [math.exp(2 * float(v)) for v in maps[b, m].flatten()]
            hit = sum(w * i for w, i in zip(weights, inside[b, m].flatten().tolist(), strict=True))
            assert float(losses[b, m]) == pytest.approx(-math.log(hit / sum(weights)), abs=1e-10)


def test_a_map_that_is_high_on_the_part_alone_costs_nothing():
    maps, inside = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 2], inside[0, 0, 1, 2] = 5.0, 1.0
    assert float(outside_mass(maps, inside, 10.0)) == pytest.approx(0, abs=1e-6)


def test_nothing_inside_is_finite_and_half_precision_is_made_single():
    maps = torch.randn(1, 1, 3, 3, dtype=torch.float16, requires_grad=True)
    losses = outside_mass(maps, torch.zeros(1, 1, 3, 3), 10.0)
    losses.masked_fill(torch.tensor([[True]]), 0.0).sum().backward()
    assert losses.dtype == torch.float32
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@pytest.mark.parametrize("window", [1, 2])
def test_masks_count_by_the_share_of_the_patch_they_cover(window):
    masks = torch.zeros(1, 2, 12, 8, dtype=torch.bool)
    masks[0, 0, 1:8, 2:5] = masks[0, 1, 11, 7] = True
    grid = (6 - window + 1, 4 - window + 1)
    places = masks_on_grid(masks, grid, window)
    for q in range(2):
        shares = [
            [
                float(masks[0, q, 2 * i : 2 * (i + window), 2 * j : 2 * (j + window)].float().mean())
                for j in range(grid[1])
            ]
            for i in range(grid[0])
        ]
        torch.testing.assert_close(places[0, q], torch.tensor(shares) / max(map(max, shares)))


@pytest.mark.parametrize("window", [1, 3])
def test_keypoints_are_bells_around_the_point(window):
    grid, radius = (4, 6), 0.2
    places = keypoints_on_grid(torch.tensor([[[11.0, 3.0, 1.0]]]), (20, 40), grid, window, radius)
    down, across = 20 / (grid[0] + window - 1), 40 / (grid[1] + window - 1)
    squared = [
        [((i + window / 2) * down - 3) ** 2 + ((j + window / 2) * across - 11) ** 2 for j in range(grid[1])]
        for i in range(grid[0])
    ]
    nearest = min(map(min, squared))
    expected = torch.tensor([[math.exp((nearest - s) / (2 * (radius * 20) ** 2)) for s in row] for row in squared])
    torch.testing.assert_close(places[0, 0], expected, rtol=0, atol=1e-6)
    assert float(places.max()) == 1


def test_units_are_spread_over_parts_or_named():
    assert term_of().part_of(5).tolist() == [0, 1, 0, 1, 0]
    assert term_of(parts={"tail": [0, 2]}).part_of(4).tolist() == [1, -1, 1, -1]


def test_masks_go_before_keypoints_and_decide_what_is_needed():
    assert term_of(MASKS).needs == {"maps", "prototypes", "part_masks"}
    assert term_of(MASKS, annotation="keypoints").needs == {"maps", "prototypes", "keypoints"}
    assert term_of(POINTS).needs == {"maps", "prototypes", "keypoints"}


@pytest.mark.parametrize("source", [POINTS, MASKS])
def test_it_is_the_mean_over_units_whose_part_is_visible(source):
    model, batch = model_of(), batch_of()
    batch.keypoints[0, 1, 2] = 0
    batch.part_masks[0, 1] = False
    step, term = step_of(model, batch), term_of(source, parts={"beak": [3], "tail": [0, 1]})
    maps = step.output.evidence.maps
    grid = tuple(maps.shape[2:])
    inside = (
        masks_on_grid(batch.part_masks, grid) if source is MASKS else keypoints_on_grid(batch.keypoints, (16, 16), grid)
    )
    each = [(0, 3, 0), (1, 3, 0), (1, 0, 1), (1, 1, 1)]
    expected = [outside_mass(maps[b, m][None, None], inside[b, q][None, None], 10.0) for b, m, q in each]
    torch.testing.assert_close(term(step), torch.stack(expected).mean(), rtol=0, atol=1e-6)


def test_units_of_other_classes_and_pruned_ones_are_left_alone():
    model = model_of({"name": "prototypes", "per_class": 2})
    model.evidence.alive[0] = False
    step = step_of(model, batch_of(label=0))
    step.output.evidence.maps.retain_grad()
    term_of()(step).backward()
    assert step.output.evidence.maps.grad.abs().sum((0, 2, 3)).ne(0).tolist() == [False, True, False, False]


def test_its_gradient_reaches_prototypes_and_backbone_and_pulls_the_best_place_in():
    model, batch = model_of().train(), batch_of()
    term = term_of(MASKS, parts={"tail": [2]})
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    first = None
    for _ in range(60):
        loss = term(step_of(model, batch))
        first = float(loss.detach()) if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.evidence.prototypes.grad[2].abs().sum() > 0
    assert not model.evidence.prototypes.grad[[0, 1, 3]].any()
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters() if p.grad is not None)
    assert float(loss.detach()) < 0.6 * first
    maps = step_of(model, batch).output.evidence.maps[:, 2]
    best = maps.flatten(1).argmax(1)
    assert bool(
        (masks_on_grid(batch.part_masks, tuple(maps.shape[1:]))[:, 1].flatten(1).gather(1, best[:, None]) > 0).all()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {"beek": [0]}}, "no part 'beek'.*beak"),
        ({"sharpness": 0}, "sharpness=0"),
        ({"radius": -1}, "radius=-1"),
        ({"annotation": "maps"}, "no annotation 'maps'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        term_of(**options)


@pytest.mark.parametrize(
    ("parts", "message"),
    [({"beak": [4]}, "unit 4, and there are 4"), ({"beak": [1], "tail": [1]}, "unit 1 is tied to")],
)
def test_units_that_do_not_fit_the_model_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        term_of(parts=parts).check(model_of())


def test_data_without_parts_are_refused():
    bare = SimpleNamespace(name="bare", part_names=(), gives=frozenset())
    with pytest.raises(UserError, match="'bare' has none"):
        term_of(bare)


def test_masks_that_the_data_do_not_give_are_refused_before_training():
    term, stage = (
        term_of(annotation="part_masks"),
        {"epochs": 1, "learn": {"evidence": 1.0}, "terms": ["p"], "views": 1},
    )
    with pytest.raises(UserError, match="needs part_masks"):
        check_recipe(
            model_of(), POINTS, {"joint": {**stage, "select": [], "do": {}}}, torch.nn.ModuleDict({"p": term}), {}
        )


def test_it_trains_on_flowers(tiny, tmp_path):
    options = ["loss.part_prototypes=0.5", "recipe.joint.terms=[cross_entropy,part_prototypes]"]
    run = vt.fit("model=protopnet_cosine", *tiny, *options, "recipe.project.events={}", out=tmp_path / "run")
    assert "loss/part_prototypes" in (run.folder / "metrics.csv").read_text()
