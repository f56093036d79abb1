"""PIP-Net: formulas in loops, gradients where they belong, an evaluation that changes nothing, exact resuming."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models import Evidence, Output, build
from vitrarium.train import distributed
from vitrarium.train.events.base import EVENTS, Moment
from vitrarium.train.events.silence_unused import used_units
from vitrarium.train.interventions import TrainingDo
from vitrarium.train.terms.base import Step, build_terms
from vitrarium.train.terms.pipnet import alignment, uniformity_loss

from .test_terms import source

SMALL = {"name": "convnet", "widths": (8, 8)}
SPEC = {"backbone": SMALL, "evidence": {"name": "softmax_channels", "count": 6}, "readout": "nonnegative"}


def pipnet(seed=0, **evidence):
    spec = {**SPEC, "evidence": {**SPEC["evidence"], **evidence}}
    return build(spec, ("a", "b"), seed=seed)


def shares(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def a_step(model, views=2, progress=0.0, images=4):
    generator = torch.Generator().manual_seed(1)
    pixels = [torch.rand(images, 3, 16, 16, generator=generator) for _ in range(views)]
    batch = Batch(pixels[0], torch.tensor([0, 1, 1, 0])[:images], views=tuple(pixels[1:]))
    return Step(model, batch, model(batch.image), [model(view) for view in batch.views], progress)


def term(name, **options):
    return build_terms({name: 1.0}, {name: options}, source())[name]


class TestAlign:
    def test_formula(self):
        one, two = shares(2, 5, 3, 2, seed=0), shares(2, 5, 3, 2, seed=1)
        said = alignment(one, two)
        assert said.shape == (2, 3, 2)
        for i in range(2):
            for y in range(3):
                for x in range(2):
                    product = sum(float(one[i, m, y, x]) * float(two[i, m, y, x]) for m in range(5))
                    assert float(said[i, y, x]) == pytest.approx(-math.log(product), abs=1e-8)

    def test_each_view_follows_the_other_with_half_the_weight(self):
        """The gradient is that of -1/2 log <a, b> in a with b fixed, and the other way round."""
        one, two = (shares(2, 5, 3, 2, seed=s).requires_grad_() for s in (0, 1))
        alignment(one, two).sum().backward()
        product = (one * two).sum(1, keepdim=True).detach()
        torch.testing.assert_close(one.grad, -two.detach() / product / 2, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(two.grad, -one.detach() / product / 2, rtol=1e-7, atol=1e-9)

    def test_the_term_is_the_mean_over_places_and_follows_the_ramp(self):
        model = pipnet()
        step = a_step(model, progress=0.25)
        expected = alignment(step.output.evidence.maps, step.views[0].evidence.maps).mean()
        torch.testing.assert_close(term("align")(step), expected)
        torch.testing.assert_close(term("align", ramp=True)(step), 0.25 * expected)
        three = a_step(model, views=3)
        maps = three.output.evidence.maps
        both = [alignment(maps, view.evidence.maps).mean() for view in three.views]
        torch.testing.assert_close(term("align")(three), (both[0] + both[1]) / 2)

    def test_agreement_on_one_prototype_costs_nothing_and_doubt_costs(self):
        sure = torch.zeros(1, 4, 1, 1)
        sure[:, 2] = 1
        assert float(alignment(sure, sure)) == pytest.approx(0, abs=1e-6)
        assert float(alignment(torch.full_like(sure, 0.25), torch.full_like(sure, 0.25))) == pytest.approx(math.log(4))
        assert torch.isfinite(alignment(sure, sure.roll(1, 1))).all()

    def test_it_learns_that_views_agree(self):
        """What two views must agree on is learnt: less of it is left after some steps, on a backbone from scratch."""
        model = pipnet().train()
        optimiser = torch.optim.Adam([*model.backbone.parameters(), *model.evidence.parameters()], lr=1e-2)
        losses = []
        for _ in range(15):
            loss = term("align")(a_step(model))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] / 2

    def test_maps_of_different_sizes(self):
        with pytest.raises(UserError, match="need one geometry"):
            alignment(shares(2, 5, 3, 2, seed=0), shares(2, 5, 2, 3, seed=0))


class TestUniformity:
    def test_formula(self):
        presence = torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=torch.float64)
        expected = -sum(math.log(math.tanh(float(s))) for s in presence) / 4
        assert float(uniformity_loss(presence)) == pytest.approx(expected, abs=1e-8)
        assert float(uniformity_loss(torch.zeros(3))) == pytest.approx(-math.log(1e-10), rel=1e-5)

    def test_the_mean_over_views_of_maxima_summed_over_the_batch(self):
        model = pipnet(threshold=0.9).eval()
        step = a_step(model)
        expected = [uniformity_loss(o.evidence.maps.flatten(2).amax(2).sum(0)) for o in (step.output, step.views[0])]
        torch.testing.assert_close(term("uniformity")(step), (expected[0] + expected[1]) / 2)
        assert (step.output.evidence.activations == 0).any(), "the threshold of evaluation is not the term's"


@pytest.mark.parametrize("name", ["align", "uniformity", "views_cross_entropy"])
def test_gradients_reach_what_they_must_teach(name):
    model = pipnet().train()
    term(name)(a_step(model)).backward()
    parts = model.parts()
    for part in ("backbone", "evidence"):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parts[part] if p.dim() > 1), part
    reached = model.readout.weight.grad is not None and bool((model.readout.weight.grad != 0).all())
    assert reached == (name == "views_cross_entropy")


def test_both_views_are_classified():
    model = pipnet().train()
    step = a_step(model)
    logits = [answer.logits.double() for answer in (step.output, step.views[0])]
    losses = [-view.log_softmax(1)[i, int(c)] for view in logits for i, c in enumerate(step.batch.label)]
    assert float(term("views_cross_entropy")(step).detach()) == pytest.approx(float(sum(losses).detach()) / 8, rel=1e-6)


def in_processes(monkeypatch, parts, compute):
    """``compute(part)`` of each part as if a process of its own had done it: what one sums up meets what others do."""
    sent = [[] for _ in parts]
    results = []
    monkeypatch.setattr(distributed, "world_size", lambda: len(parts))
    for final in (False, True):
        for rank, part in enumerate(parts):
            calls = itertools.count()

            def all_reduce(tensor, rank=rank, calls=calls, final=final):
                if not final:
                    sent[rank].append(tensor.clone())
                    return
                call = next(calls)
                tensor.copy_(sum(others[call] for others in sent))

            monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
            result = compute(part)
            if final:
                results.append(result)
    monkeypatch.undo()
    return results


@pytest.mark.parametrize("name", ["align", "uniformity"])
def test_processes_together_have_the_gradient_of_one(name, monkeypatch):
    whole = [shares(6, 5, 2, 2, seed=s) for s in (3, 4)]

    def compute(rows):
        maps = [w[rows].clone().requires_grad_() for w in whole]
        answers = [Output(m, Evidence(m, m, maps=m)) for m in maps]
        loss = term(name)(Step(None, None, answers[0], answers[1:]))
        return float(loss.detach()), torch.autograd.grad(loss, maps)

    loss, expected = compute(slice(0, 6))
    parts = in_processes(monkeypatch, [slice(0, 4), slice(4, 6)], compute)
    for view in (0, 1):
        # Distributed training averages the gradients.
        together = torch.cat([gradients[view] for _, gradients in parts]) / len(parts)
        torch.testing.assert_close(together, expected[view], rtol=1e-9, atol=1e-12)
    assert sum(one for one, _ in parts) / len(parts) == pytest.approx(loss)


def moment(model, batches):
    return Moment(model, None, lambda split, shard=False: batches, TrainingDo(), seed=0)


class TestShrink:
    def test_formula(self):
        model = pipnet()
        weight = model.readout.weight
        with torch.no_grad():
            weight[0, :3] = torch.tensor([0.3, 0.05, -0.2])
        before = weight.detach().clone()
        EVENTS.build({"name": "shrink", "amount": 0.1}).run(moment(model, []))
        torch.testing.assert_close(weight.detach(), (before - 0.1).clamp_min(0))
        assert weight[0, 0] > 0
        assert (weight[0, 1:3] == 0).all()

    def test_a_weight_at_zero_stays_there(self):
        model = pipnet().train()
        with torch.no_grad():
            model.readout.weight[:, 2] = 0
        term("views_cross_entropy")(a_step(model)).backward()
        assert (model.readout.weight.grad[:, 2] == 0).all()

    def test_refusals(self):
        with pytest.raises(UserError, match="small number above 0"):
            EVENTS.build({"name": "shrink", "amount": 0.0})
        linear = build({**SPEC, "readout": "linear"}, ("a", "b"))
        with pytest.raises(UserError, match="nonnegative"):
            EVENTS.build("shrink").check(linear)


class TestSilenceUnused:
    def test_what_no_training_image_shows(self):
        model = pipnet(threshold=0.3).train()
        with torch.no_grad():
            model.evidence.mix.bias[4] = -50.0
        batches = [Batch(torch.rand(3, 3, 16, 16), torch.zeros(3, dtype=torch.int64)) for _ in range(2)]
        copied = copy.deepcopy(model).eval()
        seen = torch.cat([copied(b.image).evidence.maps.flatten(2).amax(2) for b in batches]).amax(0) >= 0.3
        assert not seen[4]
        assert seen.any()
        logged = {}
        here = moment(model, batches)
        here.log = logged.__setitem__
        EVENTS.build("silence_unused").run(here)
        assert torch.equal(model.evidence.alive, seen)
        assert (model.readout.weight[:, ~seen] == 0).all()
        assert (model.readout.weight[:, seen] != 0).all()
        assert torch.equal(used_units(model), seen)
        assert logged == {"silence_unused/silenced": float((~seen).sum()), "silence_unused/used": float(seen.sum())}
        assert model.training

    def test_if_nothing_was_seen_nothing_is_silenced(self, caplog):
        model = pipnet()
        with torch.no_grad():
            model.evidence.mix.weight.zero_()
            model.evidence.mix.bias.zero_()
        batches = [Batch(torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))]
        EVENTS.build({"name": "silence_unused", "threshold": 0.5}).run(moment(model, batches))
        assert model.evidence.alive.all()
        assert "none was silenced" in caplog.text

    def test_refusals(self):
        with pytest.raises(UserError, match="threshold=1"):
            EVENTS.build({"name": "silence_unused", "threshold": 1.0})
        with pytest.raises(UserError, match="between 0 and 1"):
            EVENTS.build("silence_unused").check(
                build({**SPEC, "evidence": "features", "readout": "linear"}, ("a", "b"))
            )


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return vt.fit("model=pipnet", *tiny, *RECIPE, out=tmp_path_factory.mktemp("pipnet") / "run")


RECIPE = ("recipe.pretrain.epochs=1", "recipe.classify.epochs=1", "recipe.classify.events.shrink.amount=0.02")


def state(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_prototypes_in_use_have_a_picture(run):
    layer = vt.load(run.folder).evidence
    assert layer.alive.any()
    assert torch.equal(layer.sources.known, layer.alive)


def test_evaluation_leaves_the_model_as_it_is(run):
    model = vt.load(run.folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = state(run.folder)
    vt.evaluate(run)
    with torch.no_grad():
        for _ in range(3):
            model.eval()(torch.rand(4, 3, 32, 32))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    for name, value in state(run.folder).items():
        torch.testing.assert_close(value, file[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_the_recipe_shrinks_after_each_step_and_resumes_in_the_middle(run, tiny, tmp_path, dying):
    # 6 steps an epoch: weights of about 1 lost 0.02 in each of them, apart from what they learnt.
    assert float(state(run.folder)["readout.weight"].mean()) < 0.97
    settings = ["model=pipnet", *tiny, *RECIPE, "train.save_seconds=0"]
    with dying(9):
        vt.fit(*settings, out=tmp_path / "run")
    again = vt.fit(*settings, out=tmp_path / "run", resume=True)
    whole, resumed = state(run.folder), state(again.folder)
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_recipe_that_asks_for_views_it_does_not_draw_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="needs views"):
        vt.fit("model=pipnet", *tiny, "recipe.classify.views=1", out=tmp_path / "run")
    with pytest.raises(UserError, match="needs shares"):
        vt.fit("model=blackbox", *tiny, "loss.align=1", "recipe.joint.terms=[cross_entropy,align]",
               "recipe.joint.views=2", out=tmp_path / "other")  # fmt: skip
