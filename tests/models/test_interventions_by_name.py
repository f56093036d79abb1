"""Interventions by name on units with maps: silence, scores, and places where they may not look."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build
from vitrarium.models.intervention import set_units
from vitrarium.models.prediction import predict_batch
from vitrarium.models.regions import Places
from vitrarium.models.units import UnitTable

CLASSES = ("rose", "lily")


def make(**evidence):
    evidence = {"name": "prototypes", "per_class": 3, **evidence}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": "class_connected"}
    return build(spec, CLASSES, None, Preprocessing(32), 0).eval()


@pytest.fixture
def picture():
    return np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def maps_of(model, picture):
    with torch.no_grad():
        return model(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255).evidence.maps[0].double().numpy()


def test_centres_are_in_the_middle_of_what_a_place_covers():
    rows, columns = Places((4, 2), (4, 2)).centres()
    np.testing.assert_allclose(rows, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(columns, [0.25, 0.75])
    # Three parts of 2 x 2 cells along a side of 4: they cover cells 0-1, 1-2, 2-3.
    rows, _ = Places((3, 3), (4, 4)).centres()
    np.testing.assert_allclose(rows, [0.25, 0.5, 0.75])


def test_a_box_bans_the_places_whose_middle_lies_in_it():
    allowed = Places((4, 4), (4, 4)).allowed([(0.1, 0.375, 0.625, 0.6)])
    wanted = np.ones((4, 4))
    wanted[1, :2] = 0  # rows with 0.375 <= y < 0.6, columns with 0.1 <= x < 0.625
    np.testing.assert_array_equal(allowed, wanted)
    with pytest.raises(UserError, match="would ban nothing"):
        Places((4, 4), (4, 4)).allowed([(0.13, 0, 0.37, 1)])


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("similarity", ["cosine", "log_l2"])
def test_a_ban_shifts_the_similarity_to_the_best_place_that_is_left(picture, part, similarity):
    model = make(part=part, similarity=similarity)
    maps = maps_of(model, picture)
    count = maps.shape[1]
    middle = (np.arange(count) + part / 2) / (count + part - 1)
    box = (0.0, 0.0, 0.55, 1.0)
    left = maps[:, :, (middle < box[0]) | (middle >= box[2])].max((1, 2))
    one = model.predict(picture, do={"prototype_2": {"ban": box}})
    for m, unit in enumerate(one.units.values()):
        assert unit == pytest.approx(left[m] if m == 2 else maps[m].max(), abs=1e-5)
    every = model.predict(picture, do={"everywhere": {"ban": box}})
    assert list(every.units.values()) == pytest.approx(list(left), abs=1e-5)
    assert every.corrected == ["everywhere"]
    assert one.corrected == ["prototype_2"]


def test_bans_silence_and_scores_together(picture):
    model = make()
    maps = maps_of(model, picture)
    do = {
        "*": {"ban": [0, 0, 1, 0.5]},
        "prototype_0": "silent",
        "prototype_1": {"score": 0.8},
        "prototype_4": "ban:0,0.5,0.5,1",
        "prototype_5": "yes",
    }
    found = model.predict(picture, do=do)
    half = maps.shape[1] // 2
    wanted = maps[:, half:].max((1, 2))
    wanted[[0, 1, 5]] = 0.0, 0.8, 1.0
    wanted[4] = maps[4, half:, half:].max()
    assert list(found.units.values()) == pytest.approx(list(wanted), abs=1e-5)
    assert found.corrected == ["prototype_0", "prototype_1", "prototype_4", "prototype_5", "everywhere"]
    weight = model.readout.linear.weight.detach().double().numpy()
    logits = weight @ wanted
    share = np.exp(logits) / np.exp(logits).sum()
    assert found.probabilities["rose"] == pytest.approx(share[0], abs=1e-5)


def test_the_backbone_runs_once_for_a_batch(picture):
    model = make()
    runs = []
    model.backbone.register_forward_hook(lambda *_: runs.append(1))
    pixels = torch.rand(3, 3, 32, 32)
    said = predict_batch(model, pixels, {"prototype_2": "ban:0,0,0.5,1", "prototype_1": "silent"})
    assert len(runs) == 1
    assert said.units.shape == (3, 6)
    alone = predict_batch(model, pixels[1:2], {"prototype_2": "ban:0,0,0.5,1", "prototype_1": "silent"})
    np.testing.assert_allclose(said.units[1], alone.units[0], atol=1e-6)
    assert said.corrected == ["prototype_1", "prototype_2"]


def test_silence_needs_only_what_stands_for_absent(picture):
    model = make(similarity="dot")
    assert model.predict(picture, do={"prototype_1": "silent"}).units["prototype_1"] == 0.0
    assert model.predict(picture, do={"prototype_1": "no"}).units["prototype_1"] == 0.0
    assert model.predict(picture, do={"prototype_1": "score:7"}).units["prototype_1"] == 7.0
    with pytest.raises(UserError, match="stands for present"):
        model.predict(picture, do={"prototype_1": "yes"})
    with pytest.raises(UserError, match="stands for"):
        model.predict(picture, do={"prototype_1": 0.5})


def test_scores_of_units_that_are_gates(picture):
    model = make(similarity="exp_l2")
    assert model.predict(picture, do={"prototype_1": "score:1"}).units["prototype_1"] == 1.0
    with pytest.raises(UserError, match="from 0 to 1"):
        model.predict(picture, do={"prototype_1": "score:1.5"})


def test_pruned_prototypes_are_refused(picture):
    model = make()
    model.evidence.alive[1] = False
    with pytest.raises(UserError, match="'prototype_1' was removed"):
        model.predict(picture, do={"prototype_1": "silent"})


def test_any_unit_of_any_model(picture):
    concepts = ConceptSet.categorical({"colour": ("red", "blue"), "thorns": ()})
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": "concepts", "readout": "linear"}
    model = build(spec, CLASSES, concepts, Preprocessing(32), 0).eval()
    found = model.predict(picture, do={"colour=red": {"score": 0.25}, "thorns": "silent"})
    assert found.units["colour=red"] == pytest.approx(0.25)
    assert found.units["thorns"] == 0.0
    assert found.corrected == ["colour=red", "thorns"]
    assert model.predict(picture, do={"everywhere": "ban:0,0,0.5,1"}).units != model.predict(picture).units


def test_what_places_need(picture):
    model = make()
    with pytest.raises(UserError, match="only when the model has seen an image"):
        model.intervention({"prototype_1": "ban:0,0,1,1"})
    made = model.intervention({"prototype_1": "ban:0,0,1,0.5"}, 3, Places((8, 8), (8, 8)))
    assert made.region.shape == (3, 6, 8, 8)
    assert not made.region[:, 1, :4].any()
    assert made.region.sum() == 3 * (6 * 64 - 32)
    made = model.intervention({"*": "ban:0,0,1,0.5"}, 3, Places((8, 8), (8, 8)))
    assert made.region.shape == (3, 1, 8, 8)
    model.evidence.gives = model.evidence.gives - {"maps"}
    with pytest.raises(UserError, match="no maps"):
        model.predict(picture, do={"prototype_1": "ban:0,0,1,1"})


def test_truth_of_0_and_1_needs_one_value():
    table = UnitTable.anonymous("prototype", 3)
    table.absent[0], table.present[1] = -2.0, 3.0
    made = set_units(table, torch.tensor([[0.0, 1.0, float("nan")]]), torch.ones(1, 3, dtype=torch.bool))
    assert made.mask.tolist() == [[True, True, False]]
    assert made.values[0, :2].tolist() == [-2.0, 3.0]


def test_prototypes_have_no_truth():
    with pytest.raises(
        UserError, match=r"prototype units have no concept as truth: .* by hand: --do prototype_0=silent"
    ):
        make().evidence.units.require(truth="concept")
