"""The filter loss: formula and gradient re-derived, what it teaches, classes of filters, processes, resuming."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models import Evidence, Output, build
from vitrarium.models.evidence.part_filters import PLACE, WHOLE
from vitrarium.models.layers.templates import find_places
from vitrarium.train.terms.base import Step, build_terms
from vitrarium.train.terms.part_filters import information_of, kept_information, log_mean_exp

from .test_terms import source

SPEC = {"backbone": {"name": "convnet", "widths": (8, 6)}, "evidence": {"name": "part_filters"}, "readout": "linear"}
LABELS = torch.tensor([0, 1, 1, 0, 1])


def model_of(**evidence):
    spec = {**SPEC, "evidence": {**SPEC["evidence"], **evidence}}
    return build(spec, ("a", "b"), seed=0).train()


def term(**options):
    return build_terms({"filter_information": 1.0}, {"filter_information": options}, source())["filter_information"]


def some_maps(images=5, filters=6, size=(3, 4), seed=0, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.rand((images, filters, *size), generator=g, dtype=torch.float64)


def step_of(model, maps, label=LABELS):
    state = {WHOLE: maps, PLACE: find_places(maps, "argmax")}
    pooled = maps.mean((2, 3))
    batch = Batch(torch.zeros(len(maps), 3, 2, 2), label[: len(maps)])
    return Step(model, batch, Output(torch.zeros(len(maps), 2), Evidence(pooled, pooled, maps=maps, state=state)))


def bank(size, beta, tau):
    """Templates by the formula, the last one is "no part here"."""
    height, width = size
    places = [(i, j) for i in range(height) for j in range(width)]
    found = [
        [tau * max(1 - beta * (abs(i - u) / height + abs(j - v) / width), -1) for i, j in places] for u, v in places
    ]
    return torch.tensor([*found, [-tau] * len(places)], dtype=torch.float64)


def plain_information(maps, tau, beta=4.0, positive=None, partition=None):
    """MI(X; T) of each filter over all images, and the paper's gradient of minus its mean, with plain sums."""
    images, filters = maps.shape[:2]
    n = maps.shape[2] * maps.shape[3]
    templates = bank(maps.shape[2:], beta, tau)
    share = n / (n + 1) if positive is None else positive
    prior = [share / n] * n + [1 - share]
    total, gradient = [], torch.zeros_like(maps)
    for m in range(filters):
        trace = [[float((maps[b, m].flatten() * t).sum()) for t in templates] for b in range(images)]
        z = [sum(math.exp(trace[b][t]) for b in range(images)) for t in range(n + 1)]
        if partition is not None:
            z = [images * math.exp(float(v)) for v in partition[m]]
        given = [[math.exp(trace[b][t]) / z[t] for t in range(n + 1)] for b in range(images)]
        p = [sum(prior[t] * given[b][t] for t in range(n + 1)) for b in range(images)]
        total.append(
            sum(prior[t] * given[b][t] * math.log(given[b][t] / p[b]) for b in range(images) for t in range(n + 1))
        )
        for b in range(images):
            for t in range(n + 1):
                inner = trace[b][t] - math.log(z[t]) - math.log(p[b])
                flat = -prior[t] * templates[t] * given[b][t] * inner
                gradient[b, m] += flat.view(maps.shape[2:])
    return torch.tensor(total, dtype=torch.float64), gradient / filters


@pytest.mark.parametrize(
    ("options", "beta"), [({"tau": 0.4}, 4.0), ({}, 4.0), ({"tau": 1.0, "positive": 0.5}, 2.5)], ids=str
)
def test_value_and_gradient_are_the_papers(options, beta):
    """-MI over one batch, and dloss/dx = -sum p(T) T e^(tr xT) / Z_T [tr xT - log Z_T - log p(x)]."""
    maps = some_maps().requires_grad_()
    loss = term(**options)(step_of(model_of(steepness=beta), maps))
    loss.backward()
    tau = options.get("tau", 0.5 / 12)
    information, gradient = plain_information(maps.detach(), tau, beta, options.get("positive"))
    assert (information > 0).all()
    assert float(loss.detach()) == pytest.approx(-float(information.mean()), abs=1e-7)
    torch.testing.assert_close(maps.grad, gradient, rtol=1e-5, atol=1e-8)


def test_each_filter_may_have_its_own_templates():
    model = model_of(learn_steepness=True)
    model.evidence.beta[:] = torch.tensor([3.0, 4, 5, 6, 3.5, 4.5])
    maps = some_maps()
    loss = float(term(tau=0.4)(step_of(model, maps)))
    expected = [float(plain_information(maps[:, m : m + 1], 0.4, float(model.evidence.beta[m]))[0]) for m in range(6)]
    assert loss == pytest.approx(-sum(expected) / 6, abs=1e-6)


def test_the_approximation_keeps_one_template_for_each_image():
    """The gradient is that summand of the paper's: T_mu for the filter's own class, "no part here" for the others."""
    model, maps = model_of(), some_maps().requires_grad_()
    loss = term(tau=0.4, approximate=True)(step_of(model, maps))
    loss.backward()
    templates, own = bank((3, 4), 4.0, 0.4), model.evidence.class_of
    flat, n, expected, gradient = maps.detach().flatten(2), 12, 0.0, torch.zeros(5, 6, 12, dtype=torch.float64)
    trace = flat @ templates.T
    z = trace.exp().sum(0)
    given = trace.exp() / z
    p = given.mean(2)  # all priors are 1 / (n + 1)
    for b in range(5):
        for m in range(6):
            kept = int(flat[b, m].argmax()) if int(own[m]) == int(LABELS[b]) else n
            inner = math.log(float(given[b, m, kept])) - math.log(float(p[b, m]))
            expected -= float(given[b, m, kept]) / (n + 1) * inner / 6
            gradient[b, m] = -templates[kept] / (n + 1) * given[b, m, kept] * inner / 6
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(maps.grad.flatten(2), gradient, rtol=1e-5, atol=1e-9)


def test_information_is_between_nothing_and_the_entropy_of_the_templates():
    n = 12
    prior = torch.full((n + 1,), -math.log(n + 1), dtype=torch.float64)
    alike = torch.ones(7, 1, 3, 4, dtype=torch.float64)
    trace = alike.flatten(2) @ bank((3, 4), 4.0, 1.0).T
    assert information_of(trace - log_mean_exp(trace), prior).abs().max() < 1e-12
    # One image for each place and one without a part, sharply: X tells all about T.
    sharp = torch.cat([torch.eye(n), torch.zeros(1, n)]).double().view(n + 1, 1, 3, 4) * 40
    trace = sharp.flatten(2) @ bank((3, 4), 4.0, 1.0).T
    information = information_of(trace - log_mean_exp(trace), prior).mean()
    assert float(information) == pytest.approx(math.log(n + 1), abs=0.05)


def test_the_normaliser_is_a_running_mean_and_takes_no_gradient():
    learnt, model = term(tau=0.4, decay=0.75), model_of()
    batches = [some_maps(seed=s) for s in range(7)]
    templates, mean = bank((3, 4), 4.0, 0.4), None
    for k, maps in enumerate(batches, 1):
        value = float(learnt(step_of(model, maps)))
        new = (maps.flatten(2) @ templates.T).exp().mean(0)
        weight = max(1 / k, 0.25)  # at first a plain mean, so that the start has no more weight than the rest
        mean = new if mean is None else (1 - weight) * mean + weight * new
        torch.testing.assert_close(learnt.log_partition, mean.log(), rtol=0, atol=1e-6)
        expected = plain_information(maps, 0.4, partition=mean.log())[0].mean()
        assert value == pytest.approx(-float(expected), abs=1e-6)
    assert not learnt.log_partition.requires_grad
    assert int(learnt.seen) == 7


def test_maps_of_another_size_begin_anew():
    learnt, model = term(tau=0.4), model_of()
    for _ in range(3):
        learnt(step_of(model, some_maps()))
    fresh = float(term(tau=0.4)(step_of(model, some_maps(size=(4, 4)))))
    assert float(learnt(step_of(model, some_maps(size=(4, 4))))) == pytest.approx(fresh)
    assert int(learnt.seen) == 1


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_no_maps_and_huge_maps_give_numbers(scale):
    learnt, model = term(tau=1.0), model_of()
    for seed in range(3):
        maps = some_maps(seed=seed, scale=scale).float().requires_grad_()
        loss = learnt(step_of(model, maps))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(maps.grad).all()


def test_under_autocast_it_is_single_precision():
    model, maps = model_of(), some_maps(scale=8.0)
    expected = float(term(tau=0.4)(step_of(model, maps)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = term(tau=0.4)(step_of(model, maps.float()))
    assert said.dtype == torch.float32
    assert float(said) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("approximate", [False, True])
def test_what_it_teaches_reaches_the_backbone_and_raises_information(approximate):
    model, learnt = model_of(), term(tau=0.3, approximate=approximate)
    x = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.arange(24) % 2)
    optimiser = torch.optim.Adam(model.backbone.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = learnt(Step(model, batch, model(x)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert model.backbone.network.stage1.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.readout.parameters())
    if not approximate:
        assert losses[-1] < 1.3 * losses[0] < 0  # more information than at first


# --- classes ---------------------------------------------------------------------------------------------------------


def test_a_filter_belongs_to_the_class_that_it_responds_to_most():
    learnt, model = term(decay=0.5), model_of()
    mean, count = torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for seed, labels in enumerate(([0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1])):
        maps = some_maps(seed=seed)
        learnt(step_of(model, maps, torch.tensor(labels)))
        mean, count = mean * 0.5, count * 0.5
        for b, c in enumerate(labels):
            mean[c] += maps[b].mean((1, 2))
            count[c] += 1
        if seed == 0:
            assert model.evidence.class_of.tolist() == [0] * 6  # nothing else was seen
    assert model.evidence.class_of.tolist() == (mean / count[:, None]).argmax(0).tolist()
    assert len(set(model.evidence.class_of.tolist())) == 2


def test_a_silent_filter_has_no_class():
    model, maps = model_of(), some_maps()
    maps[:, 3] = 0
    term()(step_of(model, maps))
    assert int(model.evidence.class_of[3]) == -1
    assert (model.evidence.class_of[[0, 1, 2, 4, 5]] >= 0).all()


# --- refusals, state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"decay": 1.0}, {"decay": -0.1}, {"positive": 1.0}, {"positive": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="tau above 0"):
        term(**options)


def test_other_evidence_is_refused():
    with pytest.raises(UserError, match="part_filters"):
        term().check(build({**SPEC, "evidence": "features"}, ("a", "b")))
    term().check(model_of())


def test_its_state_travels_to_a_fresh_term():
    learnt, model = term(tau=0.4), model_of()
    for seed in range(3):
        learnt(step_of(model, some_maps(seed=seed)))
    fresh = term(tau=0.4)
    fresh.load_state_dict(learnt.state_dict())
    other = copy.deepcopy(model)
    maps = some_maps(seed=9)
    assert float(fresh(step_of(other, maps))) == float(learnt(step_of(model, maps)))
    for name, value in learnt.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    term(tau=0.4).load_state_dict(term().state_dict())  # that of a term that has seen nothing


# --- processes -------------------------------------------------------------------------------------------------------

WORKER = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from tests.train.test_part_filters import work
work(1, sys.argv[1])
"""
SHARES = (slice(0, 3), slice(3, 5))


def losses_of(rows, approximate):
    """Loss and gradient of a few steps over some images of each batch."""
    learnt, model, found = term(tau=0.4, approximate=approximate, decay=0.6), model_of(), []
    for seed in range(3):
        maps = some_maps(seed=seed)[rows].requires_grad_()
        loss = learnt(step_of(model, maps, LABELS[rows]))
        loss.backward()
        found.append([float(loss.detach()), maps.grad.tolist()])
    return {"steps": found, "classes": model.evidence.class_of.tolist(), "partition": learnt.log_partition.tolist()}


def work(rank, folder):
    """One of two processes."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=90)
    )
    try:
        found = [losses_of(SHARES[rank], approximate) for approximate in (False, True)]
        dist.barrier()
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_two_processes_have_the_gradient_of_one(tmp_path):
    root = str(Path(__file__).parents[2])
    other = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), root])
    try:
        work(0, str(tmp_path))
        assert other.wait(timeout=90) == 0
    finally:
        other.kill()
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for kind, approximate in enumerate((False, True)):
        whole, parts = losses_of(slice(0, 5), approximate), [answer[kind] for answer in answers]
        for step in range(3):
            # Distributed training averages the gradients.
            together = torch.cat([torch.tensor(part["steps"][step][1]) for part in parts]) / 2
            torch.testing.assert_close(together, torch.tensor(whole["steps"][step][1]), rtol=1e-5, atol=1e-9)
            shared = sum(part["steps"][step][0] for part in parts) / 2
            assert shared == pytest.approx(whole["steps"][step][0], abs=1e-7)
        for part in parts:
            assert part["classes"] == whole["classes"]
            torch.testing.assert_close(torch.tensor(part["partition"]), torch.tensor(whole["partition"]))


def test_kept_information_is_the_summand():
    ratio = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = torch.log_softmax(torch.arange(5.0, dtype=torch.float64), 0)
    places, own = torch.tensor([[0, 1], [2, 3], [1, 1]]), torch.tensor([[True, False], [False, True], [True, True]])
    said = kept_information(ratio, prior, places, own)
    for b in range(3):
        for m in range(2):
            t = int(places[b, m]) if own[b, m] else 4
            marginal = sum(math.exp(float(prior[k] + ratio[b, m, k])) for k in range(5))
            expected = math.exp(float(prior[t] + ratio[b, m, t])) * (float(ratio[b, m, t]) - math.log(marginal))
            assert float(said[b, m]) == pytest.approx(expected)
