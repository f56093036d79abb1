"""Prototypes tied to concepts: formula, projection, corrections, curves."""

import pytest
import torch

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import Features, Intervention, build

CONCEPTS = ConceptSet.categorical({"colour": ("red", "blue"), "thorns": (), "scent": ()})
CLASSES = ("rose", "lily", "daisy")


def make(seed=0, **options):
    evidence = {"name": "concept_prototypes", "per_concept": 2, "picture": 8, **options}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": "linear"}
    return build(spec, CLASSES, CONCEPTS, Preprocessing(16), seed).eval()


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize(("pool", "top"), [("max", 1), ("topk", 3)])
def test_against_a_plain_loop(pool, top, mode):
    layer = make(addon="none", pool=pool, top=top).evidence.double().train(mode == "training")
    scale, offset = [0.1, 0.5, 1.0, 2.0], [0.3, -0.3, 0.1, 0.0]
    with torch.no_grad():
        layer.log_scale.copy_(torch.tensor(scale).log())
        layer.offset.copy_(torch.tensor(offset))
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, p = layer(Features(x)), layer.prototypes.detach()[:, :, 0, 0]
    for b in range(3):
        scores = []
        for k in range(4):
            own = [
                scale[k] * max(float(torch.cosine_similarity(z, p[2 * k + n], dim=0)) for n in range(2)) + offset[k]
                for z in x[b].flatten(1).T
            ]
            assert seen.maps[b, k].flatten().tolist() == pytest.approx(own, abs=1e-6)
            scores.append(sum(sorted(own)[-top:]) / top)
        expected = torch.tensor(scores, dtype=torch.float64)
        torch.testing.assert_close(seen.scores[b], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.probabilities[b, :2], expected[:2].softmax(0), rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.activations[b, 2:], expected[2:].sigmoid(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "log_l2", "dot"])
def test_a_value_shifts_the_map_of_a_score(similarity):
    model = make(activation="logit", similarity=similarity)
    x, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    seen = model(x, Intervention(mask, torch.full((2, 4), 7.5))).evidence
    torch.testing.assert_close(seen.maps.flatten(2).amax(2), seen.activations, rtol=0, atol=1e-4)
    assert torch.equal(seen.activations[mask], torch.full((2,), 7.5))


def test_at_first_half_of_the_highest_similarity_is_undecided():
    for similarity, highest in (("cosine", 1.0), ("log_l2", 9.21034), ("exp_l2", 1.0)):
        layer = make(similarity=similarity).evidence
        halves = layer.log_scale.exp() * highest / 2 + layer.offset
        torch.testing.assert_close(halves, torch.zeros(4), rtol=0, atol=1e-4)


def test_prototypes_of_a_concept_share_its_unit_and_belong_to_all_classes():
    layer = make().evidence
    assert layer.unit_of_prototype.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert layer.owners().all()
    assert layer.owners().shape == (8, 3)
    assert layer.unit_owners().shape == (4, 3)
    assert layer.unit_owners().all()
    assert layer.units.truth == "concept"
    assert layer.reduce(layer.similarity(torch.randn(1, 8, 4, 4))).shape == (1, 4)


def test_a_banned_place_is_not_looked_at():
    model, x = make(), torch.rand(2, 3, 16, 16)
    maps = model(x).evidence.maps
    region = torch.ones(2, 1, *maps.shape[2:])
    region[:, :, 0] = 0
    nothing = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4)
    seen = model(x, Intervention(*nothing, region=region)).evidence
    torch.testing.assert_close(seen.scores, maps[:, :, 1:].flatten(2).amax(2))
    nowhere = model(x, Intervention(*nothing, region=torch.zeros(2, 1, *maps.shape[2:]))).evidence
    torch.testing.assert_close(nowhere.scores, model.evidence.offset.expand(2, -1))


def test_every_part_of_it_learns():
    model = make().train()
    seen = model(torch.rand(4, 3, 16, 16)).evidence
    seen.scores.square().sum().backward()
    layer = model.evidence
    for learnt in (layer.prototypes, layer.log_scale, layer.offset, *model.backbone.parameters()):
        assert learnt.grad is not None
        assert learnt.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "hard"}, "no activation 'hard'"),
        ({"addon": "sigmod"}, "no addon 'sigmod'"),
        ({"pool": "focal"}, "no pool 'focal'"),
        ({"addon": "none", "width": 5}, "width=5"),
        ({"per_concept": 0}, "per_concept=0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_trained_projected_corrected(tiny, tmp_path):
    run = vt.fit("model=concept_prototypes", *tiny, "model.evidence.picture=16", out=tmp_path / "run")
    model = run.model
    assert bool(model.evidence.sources.known.all())
    torch.testing.assert_close(
        model.evidence.sources.similarity, torch.ones(len(model.evidence.sources.index)), atol=1e-5, rtol=0
    )
    curves = vt.intervene(run, policies=["random"], trials=2)
    assert curves[0].policy == "random"
    said = model.predict(run.source.splits["test"].sample(0).image, do={"petal_colour": "red"})
    assert any(name.startswith("petal_colour") for name in said.corrected)
    assert len(vt.gallery(model).rooms) == 1


def test_data_without_concepts_are_refused():
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": "concept_prototypes", "readout": "linear"}
    with pytest.raises(UserError, match="needs a data set with concepts"):
        build(spec, CLASSES, None, Preprocessing(16), 0)
