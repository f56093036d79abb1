"""Every backbone with every evidence layer and every readout: built, one step, set, explained, saved, loaded."""

from __future__ import annotations

import itertools

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import Intervention, build, load_model, save_model
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.export import export_model
from vitrarium.models.readouts.base import READOUTS

CONCEPTS = ConceptSet.categorical(
    {"colour": ("red", "blue", "white"), "thorns": (), "size": ("big", "small"), "scent": ()}
)
CLASSES = ("rose", "lily", "daisy")
SMALL = {"name": "convnet", "widths": (8, 8)}
# Readouts that are the rest of a network need one that is cut inside.
BACKBONES = (SMALL, {**SMALL, "cut": "last_norm"})

# Options that change what a layer does; each layer is tested with its defaults and with each of these.
EVIDENCE_OPTIONS = {
    "concepts": [{}, {"activation": "logit"}, {"activation": "hard"}, {"side": 4}, {"bottleneck": False}],
    "concept_prototypes": [
        {"per_concept": 2},
        {"per_concept": 2, "activation": "logit", "addon": "none"},
        {"per_concept": 1, "similarity": "log_l2", "part": 2, "pool": "topk", "top": 2},
    ],
    "prototypes": [
        {"per_class": 2},
        {"per_class": 2, "similarity": "log_l2"},
        {"shared": 3, "similarity": "exp_l2", "part": 2},
        {"per_class": 2, "similarity": "dot", "pool": "topk", "top": 2},
        {"per_class": 2, "pool": "focal"},
    ],
    "softmax_channels": [{}, {"count": 5, "threshold": 0.3}],
    "prototype_pool": [
        {"size": 5, "slots": 2},
        {"size": 4, "slots": 3, "similarity": "log_l2", "mix": "distances", "part": 2},
    ],
    "deformable_prototypes": [
        {"per_class": 2},
        {"per_class": 1, "part": 3, "interpolation": "linear", "addon": "plain", "width": 4},
    ],
    "whitened_axes": [
        {},
        {"reduction": "mean", "groups": 1, "method": "cholesky"},
        {"reduction": "positive_mean", "axes": ["thorns", "scent"], "groups": 2},
        {"reduction": "max", "axes": ["scent"], "method": "iternorm"},
    ],
    "part_filters": [
        {},
        {"filters": 5, "mask": "centre_of_mass", "learn_steepness": True, "reduction": "max"},
        {"mask": "none", "reduction": "pool_max"},
    ],
    "self_learnt_concepts": [
        {"count": 5, "width": 4},
        {"count": 4, "width": 4, "activation": "relu", "reduction": "max", "rotation": True},
        {"count": 2, "width": 4, "activation": "sigmoid", "supervised": True, "head": True},
    ],
}
READOUT_OPTIONS = {
    "mlp": [{}, {"hidden": (8, 8)}],
    "linear": [{}, {"bias": False}],
    "nonnegative": [{}, {"scale": "plain"}],
    "soft_tree": [{}, {"decide": "likely", "depth": 2}, {"decide": "soft"}],
    "input_dependent": [{}, {"hidden": 0, "bias": False}],
}


def ours(registry):
    """Names that the package registers itself (tests register some more)."""
    return [n for n in registry.list() if registry.get(n).__module__.startswith("vitrarium")]


def cases(registry, options):
    return [{"name": name, **chosen} for name in ours(registry) for chosen in options.get(name, [{}])]


def backbone_for(evidence, readout):
    """The first backbone with which the parts fit, or None: what they need is told by a refusal."""
    for backbone in BACKBONES:
        try:
            build({"backbone": backbone, "evidence": evidence, "readout": readout}, CLASSES, CONCEPTS)
        except UserError:
            continue
        return backbone
    return None


def fits(evidence, readout):
    """Whether the parts fit, as they themselves say."""
    return backbone_for(evidence, readout) is not None


EVIDENCES, ALL_READOUTS = cases(EVIDENCE, EVIDENCE_OPTIONS), cases(READOUTS, READOUT_OPTIONS)
PAIRS = [pair for pair in itertools.product(EVIDENCES, ALL_READOUTS) if fits(*pair)]
NAMES = [f"{'-'.join(map(str, e.values()))}+{'-'.join(map(str, r.values()))}" for e, r in PAIRS]


def make(evidence, readout, backbone=None, seed=0):
    backbone = backbone or backbone_for(evidence, readout)
    model = build(
        {"backbone": backbone, "evidence": evidence, "readout": readout}, CLASSES, CONCEPTS, Preprocessing(16), seed
    )
    units = model.evidence.units
    if torch.isnan(units.absent).any():
        # What the event `calibrate` does, with numbers that are easy to recognise.
        model.evidence.absent.fill_(-2.0)
        model.evidence.present.fill_(3.0)
    return model.eval()


def check_export(model, path, format):
    """Exported and checked against the model, or refused as its parts say; what they say is true both ways."""
    problems = [part.export_problem(format) for part in (model.evidence, model.readout)]
    if not any(problems):
        assert export_model(model, path, format).difference <= 1e-4
        return
    with pytest.raises(UserError, match="cannot be exported"):
        export_model(model, path, format)
    for part in (model.evidence, model.readout):
        part.export_problem = lambda format: None
    with pytest.raises(UserError):
        export_model(model, path, format)


@pytest.mark.parametrize(("evidence", "readout"), PAIRS, ids=NAMES)
class TestPair:
    def test_shapes_and_one_step(self, evidence, readout):
        model = make(evidence, readout).train()
        output = model(torch.rand(4, 3, 16, 16))
        units = len(model.evidence.units)
        assert output.logits.shape == (4, 3)
        assert output.evidence.activations.shape == (4, units)
        assert output.evidence.vector.shape[-2:] == (4, model.evidence.vector_size)
        if "maps" in model.evidence.gives:
            assert output.evidence.maps.shape[:2] == (4, units)
        assert ("probabilities" in model.evidence.gives) == (output.evidence.probabilities is not None)
        assert ("scores" in model.evidence.gives) == (output.evidence.scores is not None)
        torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0])).backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())

    def test_contributions_add_up(self, evidence, readout):
        model = make(evidence, readout).double()
        output = model(torch.rand(5, 3, 16, 16, dtype=torch.float64))
        classes = torch.tensor([0, 1, 2, 1, 0])
        said = model.contributions(output.evidence, classes)
        assert said.units.shape == (5, len(model.evidence.units))
        total = said.units.sum(1) + said.remainder + said.bias
        logit = output.logits.gather(1, classes[:, None])[:, 0]
        if said.additive:
            torch.testing.assert_close(total, logit, rtol=0, atol=1e-9)

    def test_setting_nothing_changes_nothing(self, evidence, readout):
        model = make(evidence, readout)
        x, units = torch.rand(3, 3, 16, 16), len(model.evidence.units)
        nothing = Intervention(torch.zeros(3, units, dtype=torch.bool), torch.full((3, units), float("nan")))
        assert torch.equal(model(x).logits, model(x, nothing).logits)

    def test_set_units_have_their_values(self, evidence, readout):
        model = make(evidence, readout)
        x, units = torch.rand(3, 3, 16, 16), len(model.evidence.units)
        mask = torch.zeros(3, units, dtype=torch.bool)
        mask[0, 0] = mask[2, -1] = True
        values = torch.full((3, units), 0.75)
        before, after = model(x), model(x, Intervention(mask, values))
        assert torch.equal(after.evidence.activations[mask], values[mask])
        assert torch.equal(after.evidence.activations[~mask], before.evidence.activations[~mask])
        assert torch.equal(after.logits[1], before.logits[1])
        if model.evidence.maps_average_to_activations:
            means = after.evidence.maps.mean((2, 3))
            torch.testing.assert_close(means[mask], values[mask], rtol=1e-4, atol=1e-5)

    def test_cached_evidence_answers_like_the_model(self, evidence, readout):
        model = make(evidence, readout)
        x, units = torch.rand(4, 3, 16, 16), len(model.evidence.units)
        with torch.no_grad():
            whole = model(x).evidence.without_maps()
            again = type(whole).cat([whole[:1], whole[1:]])
            do = Intervention(torch.rand(4, units) < 0.5, torch.rand(4, units))
            torch.testing.assert_close(model.answer(again, do).logits, model(x, do).logits)

    def test_banning_the_whole_image_silences_every_unit(self, evidence, readout):
        model = make(evidence, readout)
        if "maps" not in model.evidence.gives:
            with pytest.raises(UserError):
                model.evidence.confine(model(torch.rand(1, 3, 16, 16)).evidence, torch.ones(1, 1, 4, 4))
            return
        x, units = torch.rand(2, 3, 16, 16), len(model.evidence.units)
        size = model(x).evidence.maps.shape[-2:]
        nothing = torch.zeros(2, units, dtype=torch.bool), torch.zeros(2, units)
        everywhere = model(x, Intervention(*nothing, region=torch.ones(2, 1, *size)))
        torch.testing.assert_close(everywhere.logits, model(x).logits)
        nowhere = model(x, Intervention(*nothing, region=torch.zeros(2, 1, *size)))
        blind = model(x.flip(-1) * 0.5, Intervention(*nothing, region=torch.zeros(2, 1, *size)))
        torch.testing.assert_close(nowhere.evidence.activations, blind.evidence.activations)

    def test_silence_by_name_is_a_ban_of_everything(self, evidence, readout):
        model = make(evidence, readout)
        # A concept that may look nowhere still has an opinion: its offset.
        if "prototypes" not in model.evidence.gives or model.evidence.units.truth == "concept":
            return
        picture = (torch.rand(20, 24, 3) * 255).byte().numpy()
        names = model.evidence.units.names
        banned = model.predict(picture, do={"everywhere": {"ban": [0, 0, 1, 1]}})
        silent = model.predict(picture, do=dict.fromkeys(names, "silent"))
        assert set(banned.units.values()) == set(silent.units.values()) == {0.0}
        assert banned.probabilities == silent.probabilities
        one = model.predict(picture, do={names[1]: "ban:0,0,1,1"})
        assert one.corrected == [names[1]]
        assert one.probabilities == pytest.approx(model.predict(picture, do={names[1]: "silent"}).probabilities)

    def test_saved_and_loaded_it_is_the_same(self, evidence, readout, tmp_path):
        model = make(evidence, readout, seed=3)
        save_model(model, tmp_path / "model")
        again, x = load_model(tmp_path / "model"), torch.rand(2, 3, 16, 16)
        assert torch.equal(again(x).logits, model(x).logits)
        ours, theirs = model.evidence.units, again.evidence.units
        assert ours.names == theirs.names
        torch.testing.assert_close(ours.absent, theirs.absent, equal_nan=True)

    def test_torch_export_follows_it(self, evidence, readout, tmp_path):
        model = make(evidence, readout)
        if any(not p.requires_grad for p in model.parameters()):
            pytest.fail("a fresh model is wholly trainable")
        check_export(model, tmp_path / "model.pt2", "torch")

    def test_predicts_from_an_array_by_name(self, evidence, readout):
        model = make(evidence, readout)
        picture = (torch.rand(20, 24, 3) * 255).byte().numpy()
        plain = model.predict(picture)
        assert sum(plain.probabilities.values()) == pytest.approx(1, abs=1e-5)
        if model.evidence.units.truth == "concept":
            corrected = model.predict(picture, do={"colour": "blue", "scent": "yes"})
            assert corrected.corrected == ["colour=red", "colour=blue", "colour=white", "scent"]
            low, high = float(model.evidence.absent[0]), float(model.evidence.present[0])
            assert corrected.units["colour=red"] == pytest.approx(low)
            assert corrected.units["colour=blue"] == pytest.approx(high)


# ONNX takes seconds: each evidence layer under one readout, each readout on one layer.
ONCE = [(e, {"name": "linear"}) for e in EVIDENCES]
ONCE += [next((e, r) for e, r in PAIRS if r == readout) for readout in ALL_READOUTS]


@pytest.mark.parametrize(("evidence", "readout"), ONCE)
def test_onnx_says_the_same(evidence, readout, tmp_path):
    check_export(make(evidence, readout), tmp_path / "model.onnx", "onnx")


@pytest.mark.parametrize(("evidence", "readout"), PAIRS, ids=NAMES)
def test_deployed_it_answers_the_same(evidence, readout):
    model = make(evidence, readout).double()
    deployed, x, units = model.deploy(), torch.rand(3, 3, 16, 16).double(), len(model.evidence.units)
    do = Intervention(torch.rand(3, units) < 0.5, torch.rand(3, units))
    for given in (None, do):
        ours, theirs = model(x, given), deployed(x, given)
        torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(theirs.evidence.activations, ours.evidence.activations, rtol=0, atol=1e-9)
    assert deployed.evidence.units.names == model.evidence.units.names


def test_the_same_seed_gives_the_same_backbone_whatever_stands_on_it():
    first = make({"name": "features"}, {"name": "linear"}, seed=5)
    second = make({"name": "concepts"}, {"name": "mlp"}, seed=5)
    for a, b in zip(first.backbone.parameters(), second.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backbone", ["resnet20", "timm/resnet10t", "timm/convnext_atto", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize(
    "evidence", [{"name": "features"}, {"name": "concepts", "side": 3}], ids=["features", "concepts"]
)
def test_other_backbones(backbone, evidence, tmp_path):
    spec = {"name": backbone, **({"image_size": 64} if "vit" in backbone else {})}
    model = make(evidence, {"name": "linear"}, spec)
    x = torch.rand(2, 3, 64, 64)
    assert model(x).logits.shape == (2, 3)
    save_model(model, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model")(x).logits, model(x).logits)


def test_parts_that_do_not_fit_are_refused_by_name():
    with pytest.raises(UserError, match="needs a data set with concepts"):
        build({"backbone": SMALL, "evidence": "concepts", "readout": "linear"}, CLASSES)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"evidence": "concept"}, "did you mean 'concepts'"),
        ({"evidence": {"name": "concepts", "activatoin": "hard"}}, "did you mean 'activation'"),
        ({"evidence": {"name": "concepts", "activation": "softmax"}}, "no activation 'softmax'"),
        ({"evidence": {"name": "concepts", "side": 2, "bottleneck": False}}, "side channel"),
        ({"readout": "linaer"}, "did you mean 'linear'"),
        ({"backbone": "convnot"}, "did you mean 'convnet'"),
    ],
)
def test_refusals(spec, said):
    with pytest.raises(UserError, match=said):
        build({"backbone": SMALL, "evidence": "features", "readout": "linear", **spec}, CLASSES, CONCEPTS)
