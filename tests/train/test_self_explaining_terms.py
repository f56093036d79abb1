"""Terms of self-explaining models against plain loops in float64, whom they teach, and what they refuse."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

import vitrarium as vt
from vitrarium.configs.compose import compose, to_plain
from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.batch import Batch
from vitrarium.models import build
from vitrarium.models.types import Evidence, Output
from vitrarium.train.checks import check_recipe
from vitrarium.train.terms import robustness
from vitrarium.train.terms.base import Step, build_terms
from vitrarium.train.terms.self_explaining import infidelity, turned

CLASSES = ("a", "b", "c")
STAGE = {
    "epochs": 1,
    "learn": {},
    "select": [],
    "views": 1,
    "do": {"kind": "none", "probability": 0.25, "per": "sample"},
}


@pytest.fixture(scope="module")
def source():
    return build_source({"name": "flowers", "train": 24, "val": 8, "test": 8, "size": 32})


def model_of(readout="input_dependent", names=CLASSES, concepts=None, **evidence):
    layer = {"name": "self_learnt_concepts", "count": 4, "width": 4, "head": True, "rotation": True, **evidence}
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": layer, "readout": readout}
    return build(spec, names, concepts, seed=0).double()


def step_of(model, labels=(0, 1, 2), seed=0, size=16, image=None):
    if image is None:
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(len(labels), 3, size, size, generator=generator, dtype=torch.float64)
    batch = Batch(image.requires_grad_(), torch.tensor(labels))
    return Step(model, batch, model.on(batch))


def term_of(name, source=None, **options):
    return build_terms({name: 1.0}, {name: options} if options else {}, source)[name].double()


def taught(model, loss):
    """Names of the parameters that the loss moves, up to the second dot."""
    model.zero_grad()
    loss.backward()
    moved = [n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    return {".".join(name.split(".")[:2]) for name in moved}


# Reconstruction, sparsity.


def test_reconstruction_is_the_mean_squared_error_of_pixels():
    model = model_of()
    step = step_of(model)
    decoded = model.evidence.decode(step.output.evidence.activations, (16, 16))
    by_hand = [float((decoded[b] - step.batch.image[b]).detach().square().mean()) for b in range(3)]
    loss = term_of("reconstruction")(step)
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 3, abs=1e-12)
    assert taught(model, loss) == {"backbone.network", "evidence.to_maps", "evidence.decoder"}


def test_sparsity_is_the_sum_of_sizes_and_leaves_annotated_units_alone(source):
    model = model_of(activation="identity")
    step = step_of(model)
    rows = step.output.evidence.activations.tolist()
    loss = term_of("sparsity")(step)
    assert float(loss.detach()) == pytest.approx(sum(abs(v) for row in rows for v in row) / 3, abs=1e-12)
    assert taught(model, loss) == {"backbone.network", "evidence.to_maps"}

    annotated = model_of(concepts=source.concepts, supervised=True)
    step = step_of(annotated)
    known = len(source.concepts)
    free = step.output.evidence.activations[:, known:]
    assert free.shape[1] == 4
    term_of("sparsity")(step).backward()
    gradient = annotated.evidence.to_maps.weight.grad.flatten(1).abs().sum(1)
    assert float(gradient[:known].sum()) == 0 < float(gradient[known:].min())
    with pytest.raises(UserError, match="no unit that is not annotated"):
        term_of("sparsity").check(model_of(concepts=source.concepts, supervised=True, count=0))


# The head, and fidelity to it.


def test_the_head_learns_from_its_own_cross_entropy(source):
    model = model_of("linear", names=source.class_names)
    step = step_of(model, labels=(0, 1, 2))
    logits = step.output.evidence.context["head"].tolist()
    by_hand = [math.log(sum(math.exp(v) for v in row)) - row[c] for c, row in enumerate(logits)]
    loss = term_of("head_cross_entropy", source)(step)
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 3, abs=1e-12)
    assert taught(model, loss) == {"backbone.network", "evidence.head"}


@pytest.mark.parametrize("form", ["squared", "kl"])
def test_fidelity_moves_the_readout_towards_a_head_that_does_not_move(form):
    model = model_of("linear")
    step = step_of(model)
    rows = zip(step.output.logits.tolist(), step.output.evidence.context["head"].tolist(), strict=True)
    by_hand = 0.0
    for said, head in rows:
        if form == "squared":
            by_hand += sum((s - h) ** 2 for s, h in zip(said, head, strict=True)) / len(head)
        else:
            p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (head, said))
            by_hand += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = term_of("fidelity", form=form)(step)
    assert float(loss.detach()) == pytest.approx(by_hand / 3, abs=1e-12)
    assert taught(model, loss) == {"backbone.network", "evidence.to_maps", "readout.linear"}


def test_divergence_does_not_mind_a_constant_and_both_forms_are_0_at_the_head():
    head = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert infidelity(head, head, "squared").tolist() == [0] * 5
    torch.testing.assert_close(infidelity(head + 3, head, "kl"), torch.zeros(5, dtype=torch.float64))
    assert float(infidelity(head + 3, head, "squared")[0]) == pytest.approx(9)
    half = infidelity(head.bfloat16(), head.bfloat16() + 1, "squared")
    assert half.dtype == torch.float32


# Robustness.


def change_by_loops(model, step, at):
    """(B,) sum over classes of |grad f_c - theta_c^T J_h|^2, one gradient for each image, class and unit."""
    evidence = step.output.evidence
    theta, total = model.readout.relevances(evidence), []
    for b in range(len(step.batch)):
        squares = []
        for c in range(step.output.logits.shape[1]):
            (difference,) = torch.autograd.grad(step.output.logits[b, c], at, create_graph=True)
            for m in range(theta.shape[2]):
                (row,) = torch.autograd.grad(evidence.activations[b, m], at, create_graph=True)
                difference = difference - theta[b, c, m] * row
            squares.append(difference.square().sum())
        total.append(torch.stack(squares).sum())
    return torch.stack(total)


def gradients_of(model, loss):
    asked = [p for name, p in model.named_parameters() if not name.startswith(("evidence.decoder", "evidence.head"))]
    found = torch.autograd.grad(loss, asked, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(asked, found, strict=True)]


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
@pytest.mark.parametrize("wrt", ["pixels", "features"])
def test_robustness_and_its_gradient_are_those_of_the_loops(wrt, activation):
    model = model_of({"name": "input_dependent", "hidden": 6}, activation=activation, rotation=False).eval()
    step = step_of(model, labels=(0, 1))
    loss = term_of("robustness", wrt=wrt, projections=0)(step)
    by_loops = change_by_loops(model, step, step.batch.image if wrt == "pixels" else step.output.features.map).mean()
    assert float(by_loops.detach()) > 1e-12
    torch.testing.assert_close(loss, by_loops, rtol=1e-10, atol=0)
    # The penalty teaches the units as well as their relevances: a gradient that holds the units still is another one.
    ours, theirs = gradients_of(model, loss), gradients_of(model, by_loops)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-14)
    assert taught(model, loss) == {"backbone.network", "evidence.to_maps", "readout.hidden", "readout.relevance"}


def test_the_root_is_the_norm_of_each_image_and_finite_where_relevances_are_constant():
    model = model_of().eval()
    step = step_of(model)
    by_loops = change_by_loops(model, step, step.batch.image).sqrt().mean()
    loss = term_of("robustness", projections=0, squared=False)(step)
    assert float(loss.detach()) == pytest.approx(float(by_loops.detach()), rel=1e-4)
    with torch.no_grad():
        model.readout.relevance.weight.zero_()
    constant = term_of("robustness", projections=0, squared=False)(step_of(model))
    assert 0 <= float(constant.detach()) < 1e-6
    constant.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_projections_are_right_on_average(monkeypatch):
    model = model_of().eval()
    step = step_of(model, labels=(0, 1))
    every = torch.tensor(list(itertools.product((0, 1), repeat=6))).view(-1, 2, 3)

    def draw(high, shape, device=None):
        assert (high, tuple(shape)) == (2, (len(every), 2, 3))
        return every

    exact = term_of("robustness", projections=0)(step)
    monkeypatch.setattr(robustness.torch, "randint", draw)
    torch.testing.assert_close(term_of("robustness", projections=len(every))(step), exact, rtol=1e-10, atol=0)


def test_robustness_works_while_norms_learn_and_on_a_frozen_backbone():
    model = model_of().train()
    for options in ({}, {"projections": 3}, {"projections": 0}):
        loss = term_of("robustness", **options)(step_of(model))
        assert "backbone.network" in taught(model, loss)
    model.backbone.requires_grad_(False)
    model.eval()
    batch = Batch(torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1]))
    loss = term_of("robustness", wrt="features", projections=0)(Step(model, batch, model.on(batch)))
    assert taught(model, loss) == {"evidence.to_maps", "readout.hidden", "readout.relevance"}


def test_pixels_get_a_gradient_only_where_they_are_asked_for():
    assert term_of("robustness").needs == {"input_gradient"}
    assert term_of("robustness", wrt="features").needs == frozenset()


# Rotation.


def test_images_are_turned_by_quarters_and_told_from_the_units(monkeypatch):
    image = torch.rand(4, 3, 6, 6)
    turns = torch.tensor([0, 1, 2, 3])
    by_hand = torch.stack([image[b].rot90(b, (1, 2)) for b in range(4)])
    assert torch.equal(turned(image, turns), by_hand)
    with pytest.raises(UserError, match="6 x 8 cannot be turned"):
        turned(torch.rand(1, 3, 6, 8), turns[:1])

    model = model_of().eval()
    step = step_of(model)
    drawn = torch.tensor([3, 0, 1])
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: drawn)
    loss = term_of("rotation")(step)
    seen = model(torch.stack([step.batch.image.detach()[b].rot90(int(k), (1, 2)) for b, k in enumerate(drawn)]))
    likely = model.evidence.tell_turn(seen.evidence.activations).log_softmax(1).detach()
    assert float(loss.detach()) == pytest.approx(-sum(float(likely[b, k]) for b, k in enumerate(drawn)) / 3, abs=1e-6)
    assert taught(model, loss) == {"backbone.network", "evidence.to_maps", "evidence.turns"}


# Refusals, before anything is trained.


@pytest.mark.parametrize(
    ("name", "evidence", "readout", "said"),
    [
        ("reconstruction", {"decoder": False}, "linear", "needs decodes"),
        ("fidelity", {"head": False}, "linear", "needs head"),
        ("head_cross_entropy", {"head": False}, "linear", "needs head"),
        ("rotation", {"rotation": False}, "linear", "needs turns"),
        ("robustness", {}, "linear", "relevances that depend on the image"),
    ],
)
def test_models_that_lack_what_a_term_teaches_are_refused(name, evidence, readout, said, source):
    model = model_of(readout, names=source.class_names, **evidence)
    terms = build_terms({name: 1.0}, {}, source)
    with pytest.raises(UserError, match=said):
        check_recipe(model, source, {"joint": {**STAGE, "terms": [name]}}, terms, {"joint": []})
    with pytest.raises(UserError, match="needs"):
        check_recipe(
            build({"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": "features", "readout": "linear"},
                  source.class_names), source, {"joint": {**STAGE, "terms": [name]}}, terms, {"joint": []},
        )  # fmt: skip


@pytest.mark.parametrize("name", ["reconstruction", "rotation", "robustness"])
def test_kept_features_are_refused_where_pixels_are_needed(name, source):
    model = model_of(names=source.class_names)
    stage = {**STAGE, "terms": [name], "learn": {"evidence": 1.0, "readout": 1.0}}
    with pytest.raises(UserError, match=r"pixels|input_gradient"):
        check_recipe(
            model, source, {"joint": stage}, build_terms({name: 1.0}, {}, source), {"joint": []}, features=True
        )


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fidelity", {"form": "sqared"}, "squared"),
        ("robustness", {"wrt": "pixel"}, "pixels"),
        ("robustness", {"projections": -1}, "0 \\(exact\\) or more"),
        ("robustness", {"projections": 2, "squared": False}, "needs projections=0"),
    ],
)
def test_impossible_options_are_refused(name, options, said):
    with pytest.raises(UserError, match=said):
        term_of(name, **options)


# Presets.


@pytest.mark.parametrize("preset", ["senn", "antehoc"])
def test_presets_leave_no_parameter_unused(preset, source, tiny):
    """Several processes wait for the gradient of every parameter that is learnt."""
    from vitrarium.training import build_model

    config = to_plain(compose([f"model={preset}", *tiny]))
    model = build_model(config, source).train()
    terms = build_terms(config["loss"], config["terms"], source)
    batch = Batch(torch.rand(4, 3, 32, 32, requires_grad=True), torch.tensor([0, 1, 2, 3]))
    step = Step(model, batch, model.on(batch))
    total = sum(config["loss"][name] * terms[name](step) for name in config["recipe"]["joint"]["terms"])
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_with_all_terms_it_trains_and_takes_do(tiny, tmp_path):
    options = ("model=antehoc", *tiny, "model.evidence.supervised=true", "model.evidence.rotation=true",
               "model.readout.name=input_dependent", "loss.concepts=1", "loss.rotation=1", "loss.robustness=0.01",
               "recipe.joint.terms=[cross_entropy,head_cross_entropy,fidelity,reconstruction,sparsity,concepts,rotation,robustness]",
               "train.epochs=1", "data.train=24", "train.save_seconds=0")  # fmt: skip
    run = vt.fit(*options, out=tmp_path / "run")
    model = vt.load(run.folder)
    units = model.evidence.units
    assert units.truth == "concept"
    assert units.free == 32
    do = {next(g.name for g in units.groups if not g.categorical): "yes"}
    image = run.source.splits["test"].sample(0).image
    assert model.predict(image, do=do).corrected == list(do)


def test_losses_do_not_look_at_the_maps(source):
    """Terms read the answer they are given: the same numbers from evidence without maps."""
    model = model_of("linear")
    step = step_of(model)
    bare = Output(step.output.logits, replace(step.output.evidence, maps=None))
    assert isinstance(bare.evidence, Evidence)
    for name in ("sparsity", "fidelity", "reconstruction"):
        assert torch.equal(term_of(name)(step), term_of(name)(Step(model, step.batch, bare)))
