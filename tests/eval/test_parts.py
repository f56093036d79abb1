"""Parts in an evaluation: who is measured, the floors beside prototypes, the sizes, what is refused or noted."""

from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.collect import collect
from vitrarium.eval.evaluate import evaluate
from vitrarium.eval.floors import CHANNELS, PATCHES, channels, random_patches
from vitrarium.eval.metrics import METRICS
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout
from vitrarium.eval.metrics.parts.stability import noisy
from vitrarium.eval.parts import PartsWatch
from vitrarium.eval.scorecard import Scorecard
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.readouts.base import READOUTS
from vitrarium.models.types import Evidence, Features

IDENTITY = {"run": "r", "preset": "p", "family": "prototypes", "data": "toy", "seed": 4}
LOOKING = {"consistency", "consistency@top", "purity", "stability", "part_localisation@energy", "part_localisation@top",
           "part_localisation@pointing", "location_instability", "location_instability@top",
           "part_interpretability"}  # fmt: skip
PROTOTYPES = {"name": "prototypes", "per_class": 2}


@pytest.fixture
def make_batches():
    def make(split="test", images=40, batch=16, kind="masks", shuffled=False):
        g = torch.Generator().manual_seed(len(split))
        pixels, labels = torch.rand(images, 3, 16, 16, generator=g), torch.randint(3, (images,), generator=g)
        masks = torch.rand(images, 2, 16, 16, generator=g) > 0.8
        points = torch.cat([torch.rand(images, 2, 2, generator=g) * 15, torch.ones(images, 2, 1)], 2)
        order = torch.randperm(images, generator=g) if shuffled else torch.arange(images)
        return [
            Batch(pixels[r], labels[r], part_masks=masks[r] if kind == "masks" else None,
                  keypoints=points[r] if kind == "keypoints" else None, index=r)
            for r in order.split(batch)
        ]  # fmt: skip

    return make


@pytest.fixture
def build(make_model):
    def make(evidence=PROTOTYPES, readout="class_connected", seed=0):
        torch.manual_seed(seed)
        backbone = make_model().backbone
        layer = EVIDENCE.build(evidence, channels=backbone.channels, concepts=None, classes=3)
        head = READOUTS.build(readout, layer=layer, classes=3)
        return TransparentClassifier(backbone, layer, head, ("a", "b", "c")).eval()

    return make


def records(model, make_batches, **options):
    def loader_for(split, degradation):
        return make_batches(split, **options)

    return evaluate(model, loader_for, identity=IDENTITY, bootstrap=20, parts=("left eye", "right eye"))


@pytest.mark.parametrize("kind", ["masks", "keypoints"])
def test_prototypes_are_measured_beside_their_floors(build, make_batches, kind):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluation = records(model, make_batches, kind=kind)
    need_masks = ("part_localisation", "part_interpretability")
    wanted = LOOKING if kind == "masks" else {m for m in LOOKING if not m.startswith(need_masks)}
    for scope in ("all", PATCHES, CHANNELS):
        found = [r for r in evaluation.records if r.scope == scope and r.category in ("alignment", "stability")]
        assert {r.metric for r in found} == wanted, scope
        for r in found:
            assert 0 <= r.low <= r.value <= r.high <= 1
            assert "over units" in r.choices["interval"]
            assert r.choices["annotation"] == ("part masks" if kind == "masks" else "keypoints")
            assert r.category == METRICS.get(r.metric.split("@")[0]).category
            assert r.choices["judged"] == 6
    assert not evaluation.notes
    assert all(torch.equal(v.nan_to_num(9), before[k].nan_to_num(9)) for k, v in model.state_dict().items())
    purity = next(r for r in evaluation.records if r.metric == "purity")
    assert (purity.choices["merged"], purity.choices["parts"]) == (1, 1)  # two eyes
    assert "sd" in purity.choices


def test_numbers_are_those_of_the_metrics(build, make_batches):
    model = build()
    evaluation = records(model, make_batches)
    layout = UnitLayout.of(model)
    consistency = METRICS.build("consistency", classes=3, units=layout, parts=2)
    stability = METRICS.build("stability", classes=3, units=layout, parts=2)
    with torch.no_grad():
        batch = make_batches(batch=40)[0]  # in another batch size
        sight = Sighting.of(model(batch.image).evidence, batch)
        shaken = Sighting.of(model(noisy(batch.image, batch.index, model.backbone.std)).evidence, batch)
    consistency.update(sight)
    stability.update(sight, shaken)
    assert evaluation.value("consistency") == pytest.approx(float(consistency.compute()))
    assert evaluation.value("stability") == pytest.approx(float(stability.compute()))


def test_everything_with_maps_is_measured_and_floors_are_for_prototypes(build, make_batches):
    evaluation = records(build("features", "linear"), make_batches)
    assert {r.metric for r in evaluation.records if r.category in ("alignment", "stability")} == LOOKING
    assert not [r for r in evaluation.records if "floor" in r.scope]
    evaluation = records(build("softmax_channels", "nonnegative"), make_batches)
    assert {r.scope for r in evaluation.records} >= {"all", PATCHES, CHANNELS}


def test_part_filters_are_measured_beside_the_raw_channels(build, make_batches):
    model = build("part_filters", "linear")
    model.evidence.class_of[:3] = torch.tensor([0, 1, 2])
    evaluation = records(model, make_batches)
    assert {r.scope for r in evaluation.records if r.metric == "location_instability"} == {"all", CHANNELS}
    layout = UnitLayout.of(model)
    assert layout.owners[:3].equal(torch.eye(3, dtype=torch.bool))
    assert layout.shared[3:].all()
    assert len(records(model, make_batches, kind="none").notes) == 1


def test_without_parts_nothing_runs_and_a_note_says_so(build, make_batches):
    model = build()
    evaluation = records(model, make_batches, kind="none")
    assert evaluation.notes == [
        "nothing said of parts (consistency, purity, stability, location instability ...): the data has neither "
        "keypoints nor part masks"
    ]
    assert not [r for r in evaluation.records if r.category in ("alignment", "stability")]
    model.backbone.runs = 0
    collect(model, make_batches(kind="none"), watch=PartsWatch(Scorecard(model, IDENTITY, "test"), make_batches))
    assert model.backbone.runs == len(make_batches())  # no pass under noise, none for floors
    plain = build("features", "linear")
    assert records(plain, make_batches, kind="none").notes == []


def test_a_keypoint_outside_its_image_stops_the_evaluation(build, make_batches):
    batches = make_batches(kind="keypoints")
    batches[1].keypoints[2, 1, 0] = 40.0
    with pytest.raises(UserError, match="'right eye' of image 18 at"):
        evaluate(build(), lambda s, d: batches, identity=IDENTITY, bootstrap=0, parts=("left eye", "right eye"))


# --- floors ---------------------------------------------------------------------------------------------------------


def test_random_patches_are_patches_of_own_classes_whatever_the_batches(build, make_batches):
    model = build({"name": "prototypes", "per_class": 2, "part": 2})
    owners = UnitLayout.of(model).owners
    one = random_patches(model, make_batches("val", images=12, batch=5), owners)
    other = random_patches(model, make_batches("val", images=12, batch=12, shuffled=True), owners)
    assert torch.allclose(one.vectors, other.vectors, atol=1e-5)
    assert not torch.allclose(
        random_patches(model, make_batches("val", images=12), owners, seed=1).vectors, one.vectors
    )
    with torch.no_grad():
        batch = make_batches("val", images=12, batch=12)[0]
        latent = model.evidence.embed(model.look(batch))
        windows = latent.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        for p, patch in enumerate(one.vectors):
            near = (windows - patch).flatten(2).norm(dim=2)
            image = int(near.min(1).values.argmin())
            assert float(near.min()) < 1e-5
            assert int(batch.label[image]) == p // 2
        evidence = one(model.look(batch))
    assert torch.allclose(evidence.activations.max(0).values, torch.ones(6), atol=1e-5)  # each finds its own patch


def test_a_class_without_images_gets_patches_of_others(build, make_batches):
    batches = [b for b in make_batches("val", images=12, batch=12)]
    batches[0].label[:] = 1
    model = build()
    drawn = random_patches(model, batches, UnitLayout.of(model).owners)
    assert (drawn.vectors.flatten(1).norm(dim=1) > 0).all()
    with pytest.raises(UserError, match="no images"):
        random_patches(model, [], UnitLayout.of(model).owners)


def test_raw_channels_are_as_active_as_their_strongest_place():
    features = Features(torch.rand(2, 5, 3, 3))
    evidence = channels(features)
    assert evidence.maps is features.map
    assert evidence.activations.equal(features.map.flatten(2).amax(2))


# --- units and sizes ------------------------------------------------------------------------------------------------


def test_who_owns_and_who_is_used(build):
    model = build()
    with torch.no_grad():
        model.readout.linear.weight[:, 3] = 0
    model.evidence.alive[0] = False
    layout = UnitLayout.of(model)
    assert layout.owners.equal(torch.eye(3, dtype=torch.bool).repeat_interleave(2, 0))
    assert layout.used.tolist() == [False, True, True, False, True, True]
    assert not layout.shared.any()
    assert METRICS.build("global_size").of(model) == 4
    plain = UnitLayout.of(build("features", "linear"))
    assert plain.shared.all()
    assert plain.used.all()


def test_sizes_by_hand(build):
    model = build({"name": "prototypes", "shared": 4}, {"name": "linear", "bias": False})
    weight = torch.tensor([[1.0, 0.0, 5e-4, 2.0], [0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
    with torch.no_grad():
        model.readout.linear.weight.copy_(weight)
    activations = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0]])
    evidence = Evidence(activations, activations)
    logits = activations @ weight.T
    assert logits.argmax(1).tolist() == [0, 2, 0]
    # Of the class that is predicted: units 0 and 3 (unit 2 says next to nothing), unit 2, unit 0.
    assert METRICS.build("local_size").each(model, evidence, logits, chunk=2).tolist() == [2, 1, 1]
    assert METRICS.build({"name": "local_size", "threshold": 0}).each(model, evidence, logits).tolist() == [3, 1, 1]
    assert METRICS.build("head_sparsity").of(model) == pytest.approx(8 / 12)
    assert METRICS.build("global_size").of(model) == 3
    model.evidence.alive[3] = False
    assert METRICS.build("head_sparsity").of(model) == pytest.approx(7 / 9)
    assert METRICS.build("path_length").each(model, evidence) is None
    assert METRICS.build("head_sparsity").of(build("features", {"name": "mlp", "hidden": [4]})) is None
    with pytest.raises(UserError):
        METRICS.build({"name": "local_size", "threshold": -1})


def test_a_tree_has_a_path_length(build, make_batches):
    model = build(
        {"name": "prototypes", "similarity": "exp_l2", "shared": 7, "width": 4},
        {"name": "soft_tree", "decide": "greedy"},
    )
    collected = collect(model, make_batches())
    lengths = METRICS.build("path_length").each(model, collected.evidence, chunk=7)
    assert lengths.equal(model.readout.path_length(collected.evidence).double())
    evaluation = records(model, make_batches)
    assert evaluation.value("path_length") == pytest.approx(float(lengths.mean()))
    assert "head_sparsity" not in {r.metric for r in evaluation.records}
