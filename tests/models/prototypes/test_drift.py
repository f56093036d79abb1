"""Pictures do not go stale in silence: checksum, drift, sources."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.source import Split
from vitrarium.models import build, load_model, save_model
from vitrarium.models.prototypes.boxes import percentile_boxes
from vitrarium.models.prototypes.drift import (
    describe_drift,
    digest_of,
    measure_drift,
    pictures_are_current,
    record_drift,
    weights_checksum,
)
from vitrarium.models.prototypes.placing import place_at
from vitrarium.models.prototypes.receptive import receptive_field


class Noise(Split):
    def __init__(self, count=9, seed=0):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (count, 24, 24, 3), np.uint8)
        self.labels = np.arange(count) % 2
        self.read = []

    def sample(self, index):
        self.read.append(index)
        return Sample(self.images[index], int(self.labels[index]), index=index)


def make(**evidence):
    spec = {
        "backbone": {"name": "convnet", "widths": (6, 6)},
        "evidence": {"name": "prototypes", "per_class": 3, "picture": 8, **evidence},
        "readout": "class_connected",
    }
    return build(spec, ("a", "b"), seed=0)


WHICH, INDEX = torch.tensor([0, 1, 2, 4]), torch.tensor([2, 4, 2, 7])
PLACE = torch.tensor([[0, 1], [3, 2], [4, 4], [1, 0]])


def placed(**evidence):
    model, split = make(**evidence), Noise()
    moved = place_at(model, split, WHICH, INDEX, PLACE, batch=2)
    return model, split, moved


@pytest.mark.parametrize("evidence", [{}, {"similarity": "log_l2"}, {"part": 2, "similarity": "exp_l2"}])
def test_a_placed_prototype_is_its_patch(evidence):
    before = make(**evidence)
    model, split, moved = placed(**evidence)
    layer, sources, part = model.evidence, model.evidence.sources, model.evidence.part
    model.eval()
    pixels = torch.from_numpy(split.images[INDEX.numpy()]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        latent = layer.embed(model.backbone(pixels))
        maps = layer.similarity(latent)[range(4), WHICH]
    for n, (p, (i, j)) in enumerate(zip(WHICH.tolist(), PLACE.tolist(), strict=True)):
        patch = latent[n, :, i : i + part, j : j + part]
        torch.testing.assert_close(layer.prototypes[p], patch)
        assert int(maps[n].flatten().argmax()) == i * maps.shape[2] + j
        old = before.evidence.prototypes[p].detach()
        assert float(moved[n]) == pytest.approx(float((old - patch).norm() / old.norm()), rel=1e-5)
    # The root of a distance that rounds to 1e-6 is 1e-3.
    torch.testing.assert_close(sources.similarity[WHICH], torch.full((4,), layer.highest), rtol=0, atol=5e-3)
    assert sources.known.tolist() == [True, True, True, False, True, False]
    assert sources.label[WHICH].tolist() == [0, 0, 0, 1]
    assert torch.equal(sources.place[WHICH], PLACE)
    assert sources.drift[WHICH].tolist() == [0] * 4
    assert sources.drift[[3, 5]].isnan().all()
    grid = (latent.shape[2], latent.shape[3])
    torch.testing.assert_close(sources.box[WHICH], percentile_boxes(maps, (24, 24), 0.95, grid))
    torch.testing.assert_close(sources.field[WHICH], receptive_field(model, 24).boxes(PLACE))
    assert [int(d) for d in sources.digest[WHICH]] == [digest_of(split.images[i]) for i in INDEX]
    small = split.images[7].reshape(8, 3, 8, 3, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(sources.picture[4].numpy() - small).mean() < 16
    assert torch.equal(layer.prototypes[3], before.evidence.prototypes[3])


def test_each_image_is_read_once():
    _, split, _ = placed()
    # Once for the patches, and the first again for its size.
    assert sorted(split.read) == sorted([2, 4, 7, 2])


def test_a_field_that_cannot_be_measured_is_refused_before_anything_moves(monkeypatch):
    def refuse(model, size):
        raise UserError("the receptive field cannot be measured", "")

    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr("vitrarium.models.prototypes.placing.receptive_field", refuse)
    with pytest.raises(UserError, match="cannot be measured"):
        place_at(model, Noise(), WHICH, INDEX, PLACE)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_drift_is_how_far_the_patch_has_moved():
    model, split, _ = placed()
    assert measure_drift(model, split)[WHICH].max() < 1e-5
    with torch.no_grad():
        model.evidence.addon[2].bias += 0.3
        model.evidence.prototypes[1] *= 2
    drift = measure_drift(model, split, batch=1)
    model.eval()
    with torch.no_grad():
        pixels = torch.from_numpy(split.images[INDEX.numpy()]).permute(0, 3, 1, 2).float() / 255
        latent = model.evidence.embed(model.backbone(pixels)).double()
    for n, p in enumerate(WHICH.tolist()):
        own = model.evidence.prototypes[p].detach().double().flatten()
        now = latent[n, :, PLACE[n, 0], PLACE[n, 1]]
        assert float(drift[p]) == pytest.approx(float((own - now).norm() / own.norm()), rel=1e-5)
    assert drift[[3, 5]].isnan().all()
    # Twice as long as its patch, which has moved as well: further away than the others.
    assert drift[1] == drift[WHICH].max() > 0.4


def test_pictures_say_whether_they_are_current():
    model, split, _ = placed()
    assert pictures_are_current(model)
    assert describe_drift(model, 0) == "drift 0.0 %"
    assert "no source" in describe_drift(model, 3)
    with torch.no_grad():
        model.readout.linear.weight += 1
    model.evidence.alive[5] = False
    assert pictures_are_current(model), "the readout decides no similarity"
    with torch.no_grad():
        model.backbone.network[0].conv1.weight[0, 0, 0, 0] += 1e-3
    assert not pictures_are_current(model)
    assert "stale" in describe_drift(model, 0)
    record_drift(model, split)
    assert pictures_are_current(model)
    assert describe_drift(model, 0).startswith("drift 0.")


def test_one_prototype_placed_by_hand_leaves_the_others_as_they_were():
    model, split, _ = placed()
    with torch.no_grad():
        model.evidence.prototypes[0] *= 1.5
    record_drift(model, split)
    drift = model.evidence.sources.drift.clone()
    place_at(model, split, torch.tensor([1]), torch.tensor([5]), torch.tensor([[0, 0]]))
    assert pictures_are_current(model)
    assert float(model.evidence.sources.drift[0]) == pytest.approx(1 / 3, rel=1e-4)
    assert torch.equal(model.evidence.sources.drift[[0, 2, 4]], drift[[0, 2, 4]])
    with torch.no_grad():
        model.evidence.addon[0].bias += 1
    place_at(model, split, torch.tensor([1]), torch.tensor([3]), torch.tensor([[0, 0]]))
    assert describe_drift(model, 1) == "drift 0.0 %"
    assert "stale" in describe_drift(model, 0), "nobody has measured it with these weights"


def test_the_checksum_sees_every_weight_and_travels(tmp_path):
    model, _, _ = placed()
    total = weights_checksum(model)
    assert weights_checksum(copy.deepcopy(model).double()) == total
    save_model(model, tmp_path / "model")
    assert pictures_are_current(load_model(tmp_path / "model"))
    assert pictures_are_current(model.deploy())
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        swapped.evidence.prototypes.copy_(swapped.evidence.prototypes[[1, 0, 2, 3, 4, 5]])
    assert weights_checksum(swapped) != total
    assert not pictures_are_current(swapped.deploy())
    norm = next(m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_mean[0] += 1e-6
    assert weights_checksum(model) != total


def test_units_without_vectors_drift_by_similarity():
    model, split, _ = placed()
    first = model.evidence.sources.similarity.clone()
    type(model.evidence).vectors, kept = None, type(model.evidence).vectors
    try:
        with torch.no_grad():
            model.evidence.prototypes[0] = -model.evidence.prototypes[0]
        assert measure_drift(model, split)[WHICH].tolist() == pytest.approx([2, 0, 0, 0], abs=1e-4)
        moved = place_at(model, split, torch.tensor([3]), torch.tensor([1]), torch.tensor([[2, 2]]))
        assert moved.isnan().all()
        assert int(model.evidence.sources.index[3]) == 1
    finally:
        type(model.evidence).vectors = kept
    assert torch.equal(first[WHICH], model.evidence.sources.similarity[WHICH])


def test_nothing_changes_when_an_image_cannot_be_read():
    model, split, _ = placed()
    before = copy.deepcopy(model.state_dict())
    split.sample = lambda index: Noise().sample(index) if index < 6 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        place_at(model, split, torch.tensor([0, 1]), torch.tensor([1, 8]), torch.tensor([[0, 0], [0, 0]]), batch=1)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_refusals():
    model, split, _ = placed()
    with pytest.raises(UserError, match="their pixels differ"):
        measure_drift(model, Noise(seed=1))
    with pytest.raises(UserError, match="comes from image 7, and this split has 5"):
        measure_drift(model, Noise(5))
    with pytest.raises(UserError, match="no image 9 among 9"):
        place_at(model, split, torch.tensor([0]), torch.tensor([9]), torch.tensor([[0, 0]]))
    with pytest.raises(UserError, match="outside the similarity map of 6 x 6"):
        place_at(model, split, torch.tensor([0]), torch.tensor([1]), torch.tensor([[0, 6]]))
