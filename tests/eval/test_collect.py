from __future__ import annotations

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import answer, chunks, collect
from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating
from vitrarium.models.types import Evidence


def test_one_pass_gives_what_the_model_says(make_model, make_batches):
    model, batches = make_model({"name": "concepts", "side": 2}), make_batches(50, 16)
    seen: list[int] = []
    collected = collect(model, batches, progress=seen.append)
    assert model.backbone.runs == len(batches) == 4
    assert seen == [16, 32, 48, 50]
    with torch.no_grad():
        output = model(torch.cat([b.image for b in batches]))
    torch.testing.assert_close(collected.logits, output.logits)
    torch.testing.assert_close(collected.evidence.activations, output.evidence.activations)
    torch.testing.assert_close(collected.evidence.context["side"], output.evidence.context["side"])
    assert collected.evidence.maps is None
    assert torch.equal(collected.labels, torch.cat([b.label for b in batches]))
    assert torch.equal(collected.concepts, torch.cat([b.concepts for b in batches]))
    assert collected.index.tolist() == list(range(50))
    assert collected.image_shape == (3, 8, 8)
    assert not collected.logits.requires_grad


def test_every_module_gets_its_mode_back(make_model, make_batches):
    model = make_model().train()
    model.backbone.norm.eval()  # a frozen part of a stage
    before = {name: module.training for name, module in model.named_modules()}
    running = model.backbone.norm.running_mean.clone()
    collect(model, make_batches(8, 8))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not model.backbone.norm.training
    assert model.backbone.drop.training
    assert torch.equal(model.backbone.norm.running_mean, running)


def test_mode_comes_back_after_an_error(make_model):
    model = make_model().train()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


def test_tensors_made_under_inference_mode_can_enter_autograd(make_model, make_batches):
    model, batches = make_model(), make_batches(8, 8)
    with torch.inference_mode():
        collected = collect(model, batches)
    assert not collected.logits.is_inference()
    vector = collected.evidence.vector.requires_grad_()
    vector.square().sum().backward()
    assert vector.grad is not None


def test_batches_without_index_and_without_concepts(make_model, make_batches):
    batches = make_batches(20, 6, with_concepts=False)
    for batch in batches:
        batch.index = None
    collected = collect(make_model("features"), batches)
    assert collected.index.tolist() == list(range(20))
    assert collected.concepts is None
    assert collected[:3].concepts is None


def test_rows_can_be_picked(make_model, make_batches):
    collected = collect(make_model(), make_batches(20, 6, shuffled=True))
    mask = torch.arange(20) % 3 == 0
    picked = collected[mask]
    assert len(picked) == 7
    assert torch.equal(picked.index, collected.index[mask])
    assert torch.equal(picked.evidence.probabilities, collected.evidence.probabilities[mask])


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_answers_do_not_depend_on_chunks_and_leave_the_backbone_alone(make_model, make_batches, chunk):
    model, batches = make_model({"name": "concepts", "side": 2}, "mlp"), make_batches(50, 16)
    collected = collect(model, batches)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(50, 8, generator=generator) < 0.4
    do = Intervention(mask, torch.rand(50, 8, generator=generator))
    with torch.no_grad():
        direct = model(torch.cat([b.image for b in batches]), do).logits
    runs = model.backbone.runs
    torch.testing.assert_close(answer(model, collected.evidence, do, chunk), direct)
    torch.testing.assert_close(answer(model, collected.evidence, None, chunk), collected.logits)
    assert model.backbone.runs == runs


def test_sampled_evidence_is_cut_along_the_batch(make_model):
    model = make_model("features")
    vector = torch.randn(5, 9, 6, generator=torch.Generator().manual_seed(0))
    evidence = Evidence(vector.mean(0), vector)
    torch.testing.assert_close(answer(model, evidence, chunk=4), answer(model, evidence, chunk=9))


def test_refusals(make_model, make_batches):
    model = make_model()
    with pytest.raises(UserError, match="gave no image"):
        collect(model, [])
    with pytest.raises(UserError, match="chunk=0"):
        chunks(3, 0)
    with torch.no_grad():
        model.readout.linear.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="logits are not finite for 50 of 50 images"):
        collect(model, make_batches())
