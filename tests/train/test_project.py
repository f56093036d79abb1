"""Projection, pruning and the drift meter, each on its own."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.module import DataModule
from vitrarium.models import build
from vitrarium.models.prototypes.drift import pictures_are_current
from vitrarium.models.prototypes.nearest import Nearest, nearest_patches
from vitrarium.runs import build_source_of, to_plain
from vitrarium.train.events.base import EVENTS, Moment
from vitrarium.train.events.project import distinct, shared_patches
from vitrarium.train.interventions import TrainingDo


@pytest.fixture(scope="module")
def data(tiny):
    config = to_plain(vt.compose(["model=blackbox", *tiny, "data.train=60", "data.val=30"]))
    source = build_source_of(config)
    return source, DataModule(source, batch_size=16, cache_folder="memory")


def moment(data, readout="class_connected", seed=0, **evidence):
    source, module = data
    evidence = {"name": "prototypes", "per_class": 3, "picture": 8, **evidence}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": readout}
    model = build(spec, source.class_names, seed=seed)
    logged = {}
    return Moment(model, source, module.loader, TrainingDo(), 0, log=logged.__setitem__), logged


def run(here, name, **options):
    event = EVENTS.build({"name": name, **options})
    event.check(here.model)
    event.run(here)


def state(model):
    return copy.deepcopy(model.state_dict())


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("similarity", ["cosine", "log_l2"])
@pytest.mark.parametrize("unique", [True, False])
def test_every_prototype_becomes_a_patch_of_its_class(data, similarity, unique):
    here, logged = moment(data, similarity=similarity)
    here.model.train()
    before = state(here.model)
    layer, sources = here.model.evidence, here.model.evidence.sources
    best = nearest_patches(here.model, data[1].loader("train"), 1, layer.owners())
    run(here, "project", unique=unique)
    assert here.model.training
    assert torch.equal(sources.label, layer.class_of)
    assert pictures_are_current(here.model)
    # Nothing is more like a projected prototype than its source.
    again = nearest_patches(here.model, data[1].loader("train"))
    highest = {"cosine": 1.0, "log_l2": float(np.log(1 + 1 / 1e-4))}[similarity]
    torch.testing.assert_close(
        again.similarity[:, 0], torch.full_like(again.similarity[:, 0], highest), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(sources.similarity, again.similarity[:, 0], rtol=1e-3, atol=0)
    if unique:
        assert shared_patches(sources.index, sources.place) == 0 == logged["project/duplicates_left"]
    else:
        assert torch.equal(sources.index, best.index[:, 0])
        torch.testing.assert_close(layer.prototypes.detach(), best.patch, rtol=1e-4, atol=1e-5)
        assert logged["project/duplicates_left"] == logged["project/duplicates"]
    moved = (layer.prototypes.detach() - before["evidence.prototypes"]).flatten(1).norm(dim=1)
    share = moved / before["evidence.prototypes"].flatten(1).norm(dim=1)
    assert logged["project/moved"] == pytest.approx(float(share.mean()), rel=1e-4)
    assert logged["project/similarity"] == pytest.approx(float(best.similarity.mean()), rel=1e-5)
    rows = layer.prototypes.detach().double().flatten(1)
    apart = (rows[:, None] - rows[None]).norm(dim=2)
    assert logged["project/pair_distance"] == pytest.approx(float(apart.mean()), rel=1e-5)
    for name, tensor in here.model.state_dict().items():
        if not name.startswith("evidence.sources") and name != "evidence.prototypes":
            assert torch.equal(tensor, before[name]), name


def test_what_it_logs_is_true(data):
    here, logged = moment(data)
    layer = here.model.evidence
    around = nearest_patches(here.model, data[1].loader("train"), 4)

    def accuracy():
        here.model.eval()
        with torch.no_grad():
            pairs = [(here.model(b.image).logits.argmax(1), b.label) for b in data[1].loader("val")]
        return float(torch.cat([said == true for said, true in pairs]).float().mean())

    before = accuracy()
    run(here, "project", neighbours=4)
    own = around.label == layer.class_of[:, None]
    assert logged["project/class_purity"] == pytest.approx(float(own.float().mean()))
    assert logged["project/class_leaks"] == float((~own[:, 0]).sum())
    assert logged["project/val_accuracy_before"] == pytest.approx(before)
    assert logged["project/val_accuracy_after"] == pytest.approx(accuracy())


def test_projecting_again_changes_nothing_and_is_deterministic(data):
    here, _ = moment(data)
    other, _ = moment(data)
    for one in (here, other):
        run(one, "project")
    same(here.model.state_dict(), other.model.state_dict())
    sources = here.model.evidence.sources
    first = sources.index.clone(), sources.place.clone()
    run(here, "project")
    assert torch.equal(sources.index, first[0])
    assert torch.equal(sources.place, first[1])


def test_without_neighbours_it_finds_the_same(data):
    here, logged = moment(data)
    other, _ = moment(data)
    run(here, "project", neighbours=0)
    run(other, "project")
    assert torch.equal(here.model.evidence.prototypes, other.model.evidence.prototypes)
    assert "project/class_purity" not in logged


def test_shared_prototypes_come_from_any_class(data):
    here, logged = moment(data, "linear", shared=5)
    run(here, "project")
    assert here.model.evidence.sources.known.all()
    assert "project/class_purity" not in logged


def test_pruned_prototypes_are_left_alone(data):
    here, _ = moment(data)
    layer = here.model.evidence
    layer.alive[[0, 4]] = False
    before = layer.prototypes.detach().clone()
    run(here, "project")
    assert torch.equal(layer.prototypes[[0, 4]], before[[0, 4]])
    assert (layer.sources.known == layer.alive).all()


def test_two_prototypes_that_want_one_patch_get_two(data):
    here, logged = moment(data)
    layer = here.model.evidence
    with torch.no_grad():
        layer.prototypes[1] = layer.prototypes[0]
        layer.prototypes[2] = layer.prototypes[0]
    wanted = nearest_patches(here.model, data[1].loader("train"), 3, layer.owners(), patches=False)
    run(here, "project")
    assert logged["project/duplicates"] >= 3
    assert layer.sources.index[:3].tolist() == wanted.index[0].tolist(), "the first takes the best, and so on"


def test_the_most_similar_takes_the_patch():
    place = torch.zeros(3, 2, 2, dtype=torch.int64)
    similarity = torch.tensor([[0.8, 0.5], [0.9, 0.1], [0.7, float("-inf")]])
    nearest = Nearest(similarity, torch.tensor([[4, 6], [4, 8], [4, -1]]), torch.zeros(3, 2), place)
    # The third finds nothing else, and shares.
    assert distinct(nearest, torch.arange(3)).tolist() == [1, 0, 0]
    assert distinct(nearest, torch.tensor([0])).tolist() == [0]


def test_a_class_without_images_is_refused_by_name(data):
    here, _ = moment(data)
    before = state(here.model)
    name = here.model.class_names[1]

    def without(split, shard=False):
        for batch in data[1].loader(split):
            rows = batch.label != 1
            batch.image, batch.label, batch.index = batch.image[rows], batch.label[rows], batch.index[rows]
            yield batch

    here.loaders = without
    with pytest.raises(UserError, match=f"no image of class '{name}', so prototype 3, 4, 5 cannot be projected"):
        run(here, "project")
    same(here.model.state_dict(), before)
    here.model.evidence.alive[3:6] = False
    run(here, "project")


def test_when_all_are_pruned_it_is_refused(data):
    here, _ = moment(data)
    here.model.evidence.alive.fill_(False)
    for name in ("project", "prune_prototypes"):
        with pytest.raises(UserError, match="all prototypes are pruned"):
            run(here, name)


@pytest.mark.parametrize("spare", [True, False])
def test_pruning_counts_neighbours(data, spare, caplog):
    here, logged = moment(data)
    layer = here.model.evidence
    around = nearest_patches(here.model, data[1].loader("train"), 6)
    own = (around.label == layer.class_of[:, None]).sum(1)
    least = int(own.max())  # so strict that classes would be lost
    expected = own >= least
    spared = 0
    for label in range(layer.classes):
        mine = (layer.class_of == label).nonzero().squeeze(1)
        if spare and not expected[mine].any():
            alike = (around.similarity * (around.label == layer.class_of[:, None])).sum(1)
            best = max(mine.tolist(), key=lambda p: (int(own[p]), float(alike[p]), -p))
            expected[best], spared = True, spared + 1
    with caplog.at_level(logging.WARNING):
        run(here, "prune_prototypes", least=least, spare=spare)
    assert torch.equal(layer.alive, expected)
    assert logged["prune/spared"] == spared
    assert ("classes that keep a prototype" in caplog.text) == (spared > 0)
    assert logged["prune/removed"] == float((~expected).sum())
    assert logged["prune/left"] == float(expected.sum())
    assert logged["prune/class_purity"] == pytest.approx(float(own.float().mean()) / 6)
    assert spared > 0 or not spare


def test_pruning_all_is_refused_and_changes_nothing(data):
    here, _ = moment(data)
    owners = here.model.evidence.owners()
    # Nobody's nearest images are of a class that does not occur.
    here.model.readout.owners = lambda: torch.zeros_like(owners).index_fill_(1, torch.tensor([0]), True)
    here.loaders = lambda split, shard=False: (
        b for b in [next(iter(data[1].loader(split)))] if b.label.fill_(1) is not None
    )
    before = state(here.model)
    with pytest.raises(UserError, match="all prototypes would be pruned"):
        run(here, "prune_prototypes", spare=False)
    same(here.model.state_dict(), before)


def test_pruning_by_what_projection_measured(data):
    here, _ = moment(data)
    around = nearest_patches(here.model, data[1].loader("train"), 6)
    own = (around.label == here.model.evidence.class_of[:, None]).sum(1)
    passes = []
    with pytest.raises(UserError, match="no projection with neighbours=6"):
        run(here, "prune_prototypes", measure="projection")
    run(here, "project")
    here.model.backbone.register_forward_hook(lambda *_: passes.append(1))
    run(here, "prune_prototypes", measure="projection", least=2, spare=False)
    assert not passes
    assert torch.equal(here.model.evidence.alive, own >= 2)


def test_drift_is_logged_for_living_prototypes_with_a_source(data):
    here, logged = moment(data)
    run(here, "drift")
    assert not logged
    run(here, "project")
    layer = here.model.evidence
    with torch.no_grad():
        layer.prototypes[1] *= 2
        layer.prototypes[2] *= 4
    layer.alive[2] = False
    run(here, "drift")
    assert logged["drift/max"] == pytest.approx(0.5, rel=1e-3)
    assert logged["drift/mean"] == pytest.approx(0.5 / int(layer.alive.sum()), rel=1e-2)
    assert pictures_are_current(here.model)


def test_options_and_models_that_do_not_fit(data):
    with pytest.raises(UserError, match="neighbours=-1"):
        EVENTS.build({"name": "project", "neighbours": -1})
    with pytest.raises(UserError, match="least=7 of neighbours=6"):
        EVENTS.build({"name": "prune_prototypes", "least": 7})
    with pytest.raises(UserError, match="did you mean 'projection'"):
        EVENTS.build({"name": "prune_prototypes", "measure": "project"})
    with pytest.raises(UserError, match="needs prototypes that belong to classes"):
        run(moment(data, "linear", shared=4)[0], "prune_prototypes")
    other = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ("a", "b"))
    for name in ("project", "drift", "prune_prototypes"):
        with pytest.raises(UserError, match="has no prototypes"):
            EVENTS.build(name).check(other)
