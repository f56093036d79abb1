"""Axes turn towards their concepts: the event `align`, the term `axis_ranking`, and both in a recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.batch import Batch
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build
from vitrarium.models.layers.reduction import reduce_map
from vitrarium.train.events.align import Align
from vitrarium.train.events.base import Moment
from vitrarium.train.terms.axes import AxisRanking, pair_losses
from vitrarium.train.terms.base import Step

CUT = {"name": "convnet", "widths": (8, 32), "cut": "last_norm"}


@pytest.fixture(scope="module")
def source():
    return build_source({"name": "flowers", "size": 32, "train": 60, "val": 8, "test": 8})


def make(source, **options):
    spec = {"backbone": CUT, "evidence": {"name": "whitened_axes", **options}, "readout": "network"}
    model = build(spec, source.class_names, source.concepts, Preprocessing(32), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        model.train()(pixels(source))
    return model


def pixels(source):
    split = source.splits["train"]
    images = np.stack([split.sample(i).image for i in range(len(split))])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def moment(model, source, seed=0, logged=None):
    logged = {} if logged is None else logged
    return Moment(model, source, lambda split, shard=False: [], lambda *a: None, seed, log=logged.__setitem__)


def objective(model, source, units):
    """Mean over concepts of the mean activation of the axis on all images of the concept."""
    truth = torch.as_tensor(source.splits["train"].truth)
    with torch.no_grad():
        said = model.eval()(pixels(source)).evidence.activations
    present = (truth > 0.5).float()
    counted = present.sum(0) > 0
    means = (said[:, :units] * present).sum(0) / present.sum(0).clamp_min(1)
    return float(means[counted].mean())


@pytest.mark.parametrize("reduction", ["mean", "max", "positive_mean", "pool_max"])
def test_axes_say_more_on_images_of_their_concepts(source, reduction):
    model, event, logged = make(source, reduction=reduction), Align(images=60, memory=0.0), {}
    units = len(source.concepts)
    before = objective(model, source, units)
    for n in range(6):
        event.run(moment(model, source, n, logged))
    after = objective(model, source, units)
    assert after > before + 0.05
    rotation = model.evidence.rotation[0].double()
    assert float((rotation @ rotation.T - torch.eye(32).double()).abs().max()) < 1e-5
    # All images of each concept were drawn, so what is logged is the objective before the last step.
    assert logged["align/objective"] <= after + 1e-4


def test_it_leaves_modes_and_weights_alone(source):
    model = make(source)
    model.train()
    model.backbone.eval()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    statistics = model.evidence.whitening.running_covariance.clone()
    Align(images=4).run(moment(model, source))
    assert model.training
    assert model.evidence.training
    assert not model.backbone.training
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert torch.equal(statistics, model.evidence.whitening.running_covariance)


def test_the_gradient_is_that_of_the_activation(source):
    """Of axes in groups of channels, by autograd in float64."""
    model = make(source, groups=2).double()
    event, layer = Align(images=60), model.evidence
    batch, member = event._draw(moment(model, source), layer)
    batch = batch.to(torch.float64)
    sums, counts = event._gradients(model, layer, batch, member.double())
    with torch.no_grad():
        whitened = layer.eval().whitening(model.eval().backbone(batch.image).map)
    rotation = layer.rotation.clone().requires_grad_()
    maps = torch.cat(
        [torch.einsum("ij,bjhw->bihw", rotation[g], whitened[:, 16 * g : 16 * g + 16]) for g in range(2)], 1
    )
    said = reduce_map(maps[:, layer.axis_of], layer.reduction)[:, : member.shape[1]]
    (said * member).sum().backward()
    torch.testing.assert_close(sums, rotation.grad.flatten(0, 1)[layer.axis_of[: len(sums)]], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(counts, member.double().sum(0))


def test_the_released_gradient_is_another(source):
    model = make(source, reduction="max")
    draws = [Align(images=8, released=released) for released in (False, True)]
    found = []
    for event in draws:
        batch, member = event._draw(moment(model, source), model.evidence)
        found.append(event._gradients(model, model.evidence, batch, member)[0])
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_an_axis_without_images_takes_no_step(source):
    model = make(source)
    layer = model.evidence
    gradient = torch.randn(3, 32)
    before = layer.rotation.clone()
    layer.rotate(gradient, torch.tensor([False, False, False]), 2)
    assert torch.equal(layer.rotation, before)
    alone, both = make(source).evidence, make(source).evidence
    alone.rotate(gradient, torch.tensor([True, False, False]), 2)
    both.rotate(gradient * torch.tensor([[1.0], [0], [0]]), torch.tensor([True, True, True]), 2)
    torch.testing.assert_close(alone.rotation, both.rotation, rtol=0, atol=1e-5)


def test_memory_is_a_plain_average(source):
    model, event = make(source), Align(images=60, memory=0.75, steps=1)
    given = []
    layer = model.evidence
    layer.rotate = lambda gradient, seen, steps: given.append(gradient.clone())
    sums = []
    real = event._gradients
    event._gradients = lambda *args: sums.append(real(*args)) or sums[-1]
    for n in range(3):
        event.run(moment(model, source, n))
    means = [s / c.clamp_min(1e-12)[:, None] for s, c in sums]
    torch.testing.assert_close(given[0], means[0])
    torch.testing.assert_close(given[1], 0.75 * means[0] + 0.25 * means[1])
    torch.testing.assert_close(given[2], 0.75 * given[1] + 0.25 * means[2])


def test_images_from_a_folder(source, tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name, count in (("bright", 5), ("dark rim", 1)):
        (tmp_path / name).mkdir()
        for n in range(count):
            Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(tmp_path / name / f"{n}.png")
    model = make(source, axes=["bright", "dark rim"])
    event = Align(images=4, folder=str(tmp_path))
    event.check(model)
    before = model.evidence.rotation.clone()
    for n in range(2):
        event.run(moment(model, source, n))
    assert not torch.equal(model.evidence.rotation, before)
    assert caplog.text.count("dark rim (1)") == 1
    with pytest.raises(UserError, match="no folder of images for the axis 'glossy'"):
        event.check(make(source, axes=["glossy"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        event.check(make(source, axes=["empty"]))


def test_refusals(source):
    for options in ({"images": 0}, {"memory": 1.0}, {"steps": 0}):
        with pytest.raises(UserError, match="event 'align'"):
            Align(**options)
    plain = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ("a", "b"))
    with pytest.raises(UserError, match="has none"):
        Align().check(plain)
    with pytest.raises(UserError, match="no concept of the training data"):
        Align().run(moment(make(source, axes=["thornz"]), source))


def test_pairs_are_compared_one_by_one():
    torch.manual_seed(0)
    said, truth = torch.randn(9, 3, dtype=torch.float64), (torch.rand(9, 3) < 0.4).double()
    truth[2, 1] = float("nan")
    sums, counts = pair_losses(said, truth)
    for k in range(3):
        losses = [
            np.log1p(np.exp(float(said[j, k] - said[i, k])))
            for i in range(9)
            for j in range(9)
            if truth[i, k] == 1 and truth[j, k] == 0
        ]
        assert float(counts[k]) == len(losses)
        assert float(sums[k]) == pytest.approx(sum(losses))


def test_the_term_teaches_backbone_and_not_the_rotation(source):
    model = make(source)
    term = AxisRanking(source)
    term.check(model)
    truth = torch.as_tensor(source.splits["train"].truth).clone()
    truth[:, 0] = 1.0  # no pairs
    output = model.train()(pixels(source))
    term(Step(model, Batch(pixels(source), torch.zeros(60, dtype=torch.int64), truth), output)).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.readout.parameters())
    empty = AxisRanking(source)(
        Step(model, Batch(pixels(source), torch.zeros(60), torch.full_like(truth, float("nan"))), output)
    )
    assert float(empty.detach()) == 0
    plain = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ("a", "b"))
    with pytest.raises(UserError, match="axes that are named"):
        term.check(plain)


@pytest.mark.parametrize("preset", ["concept_whitening", "concept_whitening_paper", "concept_whitening_subspaces"])
def test_trains_resumes_and_is_corrected(preset, tiny, tmp_path, dying):
    tiny = [t for t in tiny if not t.startswith("backbone.widths")]
    settings = [f"model={preset}", *tiny, "backbone.widths=[8,48]", "train.save_seconds=0", "train.epochs=2"]
    settings += ["recipe.joint.events.align.every=2"]
    whole = vt.fit(*settings, out=tmp_path / "whole")

    with dying(4):
        vt.fit(*settings, out=tmp_path / "run")
    run = vt.fit(*settings, out=tmp_path / "run", resume=True)
    first, second = (load_file(r.folder / "model" / "model.safetensors") for r in (whole, run))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True, msg=key)
    model = vt.load(run.folder)
    assert not torch.equal(model.evidence.rotation[0], torch.eye(48))
    assert not torch.isnan(model.evidence.present).any()
    evaluation = vt.evaluate(run)
    assert 0 <= evaluation.value("accuracy_fully_corrected") <= 1
