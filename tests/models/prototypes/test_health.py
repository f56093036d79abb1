"""The health report: measures against plain loops, and one made-up illness per kind of finding."""

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build
from vitrarium.models.prototypes.drift import weights_checksum
from vitrarium.models.prototypes.health import KINDS, Limits, check_health
from vitrarium.models.prototypes.measures import measure_units
from vitrarium.models.prototypes.nearest import Nearest

CLASSES = ("rose", "lily", "daisy")


def make(seed=0, **options):
    evidence = {"name": "prototypes", "per_class": 2, "picture": 8, **options}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": "class_connected"}
    return build(spec, CLASSES, None, Preprocessing(32), seed).eval()


def images(count=24, size=32, masks=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, size, size, generator=g)
    mask = torch.zeros(count, 1, size, size)
    mask[:, :, 8:20, 8:20] = 1
    mask = mask if masks else None
    return Batch(
        pixels, torch.arange(count) % 3, human_map=mask,
        has_map=torch.ones(count, dtype=torch.bool) if masks else None, index=torch.arange(count),
    )  # fmt: skip


def parts(batch, size):
    def rows(value, start):
        return None if value is None else value[start : start + size]

    names = ("image", "label", "human_map", "has_map", "index")
    return [Batch(**{n: rows(getattr(batch, n), s) for n in names}) for s in range(0, len(batch), size)]


class TestMeasures:
    def test_against_numpy(self):
        model, batch = make(), images()
        found = measure_units(model, parts(batch, 7), best=5, noise=0.1, seed=3)
        with torch.no_grad():
            evidence = model(batch.image).evidence
            drawn = [np.random.default_rng([3, i]).standard_normal((3, 32, 32), np.float32) for i in range(24)]
            noisy = (
                model((batch.image + 0.1 * torch.from_numpy(np.stack(drawn))).clamp(0, 1))
                .evidence.activations.double()
                .numpy()
            )
        a = evidence.activations.double().numpy()
        np.testing.assert_allclose(found.spread, np.ptp(a, axis=0), rtol=1e-5)
        np.testing.assert_allclose(found.correlation, np.corrcoef(a.T), atol=1e-5)
        for m in range(6):
            assert float(found.steadiness[m]) == pytest.approx(np.corrcoef(a[:, m], noisy[:, m])[0, 1], abs=1e-4)
            best = np.argsort(-a[:, m], kind="stable")[:5]
            assert found.best[m].tolist() == best.tolist()
            place = evidence.maps[best, m].flatten(1).argmax(1).numpy()
            row, column = place // 8, place % 8
            edge = (row == 0) | (row == 7) | (column == 0) | (column == 7)
            assert float(found.border[m]) == pytest.approx(edge.mean())
            # The mask covers pixels 8 to 19: rows and columns 2 to 4 of a map with 4 pixels per place.
            inside = (row >= 2) & (row <= 4) & (column >= 2) & (column <= 4)
            assert float(found.inside[m]) == pytest.approx(inside.mean())
        assert float(found.area) == pytest.approx(9 / 64)
        assert float(found.border_expected) == pytest.approx(28 / 64)

    def test_the_size_of_batches_does_not_matter(self):
        model, batch = make(), images()
        one, many = measure_units(model, [batch]), measure_units(model, parts(batch, 5))
        for name in ("spread", "correlation", "steadiness", "border", "inside", "best"):
            torch.testing.assert_close(getattr(one, name), getattr(many, name), equal_nan=True, rtol=1e-4, atol=1e-5)

    def test_small_maps_say_nothing_of_borders_and_data_without_masks_nothing_of_objects(self):
        found = measure_units(make(), [images(size=16, masks=False)])
        assert found.border.isnan().all()
        assert found.inside.isnan().all()
        assert found.area.isnan()


def kinds_of(health, unit):
    return {f.kind for f in health.findings if f.unit == unit}


def look(model, limits=None, **options):
    batch = images(**options)
    return check_health(model, [batch], [batch], limits or Limits(own=0.0, steadiness=-1.0, border=2.0, inside=-1.0))


def test_a_prototype_without_an_answer_is_dead():
    model = make(similarity="dot", addon="none")
    with torch.no_grad():
        model.evidence.prototypes[3] = 0
    health = look(model)
    assert kinds_of(health, "prototype_3") == {"dead"}
    assert [f.edit for f in health.findings if f.unit == "prototype_3"] == ["remove prototype_3"]


def test_a_prototype_that_no_class_listens_to_is_dead():
    model = make()
    with torch.no_grad():
        model.readout.linear.weight[:, 2] = 0
    assert kinds_of(look(model), "prototype_2") == {"dead"}


def test_two_alike_prototypes_of_a_class_are_duplicates_and_of_two_classes_are_not():
    model = make()
    with torch.no_grad():
        model.evidence.prototypes[1] = 2 * model.evidence.prototypes[0]
        model.evidence.prototypes[2] = 2 * model.evidence.prototypes[0]
    health = look(model, Limits(own=0.0, steadiness=-1.0, border=2.0, inside=-1.0, correlation=0.99999))
    assert kinds_of(health, "prototype_1") == {"duplicate"}
    assert not kinds_of(health, "prototype_2")
    assert [f.edit for f in health.findings] == ["merge prototype_1 into=prototype_0"]


def test_background_border_noise_and_leak_begin_at_their_limits():
    model = make()
    everything = Limits(own=1.1, steadiness=1.1, border=0.0, inside=1.0, correlation=2.0)
    batch = images()
    health = check_health(model, [batch], [batch], everything)
    assert health.counts()["class leak"] == health.counts()["noise"] == 6
    # No more than half the share of places that touch the object counts as looking beside it.
    assert health.counts()["background"] == sum(float(s) <= 4.5 / 64 for s in health.measures.inside)
    assert not look(model).findings


def test_no_edit_is_suggested_that_would_be_refused():
    model, batch = make(), images()
    model.evidence.alive[:4] = torch.tensor([True, False, False, True])
    health = check_health(model, [batch], [batch], Limits(own=1.1, steadiness=-1.0, border=2.0, inside=-1.0))
    edits = {f.unit: f.edit for f in health.findings if f.kind == "class leak"}
    assert edits["prototype_0"] == "re-home prototype_0 rank=2"
    assert edits["prototype_3"] == "re-home prototype_3 rank=2"
    assert edits["prototype_5"] == "remove prototype_5"


def test_pictures_of_other_weights_are_stale():
    model = make()
    sources = model.evidence.sources
    sources.index.fill_(0)
    sources.place[:] = torch.arange(12).view(6, 2)
    sources.drift.fill_(0.0)
    sources.state.fill_(weights_checksum(model))
    assert not look(model).findings
    sources.drift[4] = 0.5
    assert kinds_of(look(model), "prototype_4") == {"stale"}
    with torch.no_grad():
        next(model.backbone.parameters()).add_(0.1)
    assert look(model).counts()["stale"] == 6


def test_two_prototypes_from_one_patch_are_duplicates():
    model = make()
    sources = model.evidence.sources
    sources.index.fill_(0)
    sources.digest.fill_(7)
    sources.place[:] = torch.arange(12).view(6, 2)
    sources.place[5] = sources.place[4]
    sources.drift.fill_(0.0)
    sources.state.fill_(weights_checksum(model))
    assert kinds_of(look(model, Limits(0, 0, 2.0, -1.0, 0.0, 2.0, -1.0)), "prototype_5") == {"duplicate"}


def test_own_share_counts_classes_that_own():
    label = torch.tensor([[0, 0, 1], [2, 1, -1]])
    nearest = Nearest(torch.zeros(2, 3), torch.where(label < 0, -1, 0), label, torch.zeros(2, 3, 2))
    owners = torch.tensor([[True, False, False], [False, True, True]])
    assert nearest.share_of(owners).tolist() == pytest.approx([2 / 3, 1.0])


def test_pruned_units_are_not_looked_at_and_a_model_without_any_is_refused():
    model = make()
    with torch.no_grad():
        model.readout.linear.weight[:, 2] = 0
        model.evidence.alive[2] = False
    assert not kinds_of(look(model), "prototype_2")
    model.evidence.alive.fill_(False)
    with pytest.raises(UserError, match="all prototypes are pruned"):
        look(model)


def test_what_could_not_be_looked_at_is_said():
    notes = look(make(), size=16, masks=False).notes
    assert len(notes) == 2
    assert "background" in notes[0]
    assert "border" in notes[1]
    assert set(look(make()).counts()) == set(KINDS)
