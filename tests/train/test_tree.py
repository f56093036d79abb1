"""Events of the tree: leaves that learn without gradients, pruning, and the comparison of its decisions."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.data.module import DataModule
from vitrarium.models import build
from vitrarium.runs import build_source_of, to_plain
from vitrarium.train.events.base import EVENTS, Moment
from vitrarium.train.interventions import TrainingDo

PRESET = """
model: {preset: p, family: test, readout: {name: soft_tree, decide: soft},
        evidence: {name: prototypes, shared: 7, similarity: exp_l2}}
loss: {cross_entropy: 1.0}
recipe:
  joint: {epochs: 2, terms: [cross_entropy], events: {update_leaves: {when: step}}}
"""


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(PRESET)
    return f"model={path}"


@pytest.fixture(scope="module")
def data(tiny):
    source = build_source_of(to_plain(vt.compose(["model=blackbox", *tiny])))
    return source, DataModule(source, batch_size=16, cache_folder="memory")


@pytest.fixture
def moment(data):
    source, module = data
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "readout": "soft_tree"}
    evidence = {"name": "prototypes", "shared": 7, "similarity": "exp_l2"}
    model = build({**spec, "evidence": evidence}, source.class_names, source.concepts, seed=0).double().train()
    return Moment(model, source, module.loader, TrainingDo(), seed=0)


def seen(moment, count=12, seed=0):
    """A batch and what the model answers to it."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    batch = Batch(image, torch.randint(0, len(moment.model.class_names), (count,), generator=generator))
    with torch.no_grad():
        return batch, moment.model(image)


def naive(leaves, old, batches, steps):
    """One update written as the paper's sum, image by image; ``batches`` hold path probabilities and labels."""
    answer = (leaves - old / steps).clamp_min(0)
    shares = leaves.softmax(1)
    for paths, labels in batches:
        for path, label in zip(paths, labels, strict=True):
            said = path @ shares
            answer += path[:, None] * shares * functional.one_hot(label, leaves.shape[1]) / said
    return answer


def test_leaves_follow_the_formula_over_two_epochs(moment):
    event, tree, steps = EVENTS.build("update_leaves"), moment.model.readout, 3
    expected = tree.leaves.clone()
    for step in range(2 * steps):
        if step % steps == 0:
            old = expected.clone()
        answers = [seen(moment, seed=2 * step), seen(moment, 5, seed=2 * step + 1)]
        batches = [(tree.paths(o.evidence.vector)[-1].exp(), b.label) for b, o in answers]
        expected = naive(expected, old, batches, steps)
        event.run(replace(moment, answers=answers, epoch=step // steps, runs=float(steps)))
        torch.testing.assert_close(tree.leaves, expected, rtol=0, atol=1e-12)
    # The start is forgotten: what is left is at most two epochs of images, at least the last.
    assert 3 * 17 - 1e-9 <= float(tree.leaves.sum()) <= 6 * 17
    assert float(tree.reach.sum()) == pytest.approx(1)


def test_its_state_resumes_in_the_middle_of_an_epoch(moment):
    moments = [replace(moment, answers=[seen(moment, seed=s)], epoch=0, runs=2.0) for s in (0, 1)]
    first, second, tree = EVENTS.build("update_leaves"), EVENTS.build("update_leaves"), moment.model.readout
    first.run(moments[0])
    second.load_state_dict(first.state_dict())
    between = tree.leaves.clone()
    first.run(moments[1])
    whole = tree.leaves.clone()
    tree.leaves.copy_(between)
    second.run(moments[1])
    assert torch.equal(tree.leaves, whole)


def test_refusals(moment):
    event = EVENTS.build("update_leaves")
    with pytest.raises(UserError, match="when: step"):
        event.run(moment)
    moment.model.readout.eval()
    with pytest.raises(UserError, match="does not learn the readout"):
        event.run(replace(moment, answers=[seen(moment)]))
    other = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ("a", "b"))
    for name in ("update_leaves", "prune_tree", "count_leaves", "compare_decisions"):
        with pytest.raises(UserError, match="works on the readout 'soft_tree'"):
            EVENTS.build(name).check(other)
    with pytest.raises(UserError, match="between 0 and 1"):
        EVENTS.build({"name": "prune_tree", "threshold": 1.5})


def test_pruning_cuts_what_has_learnt_nothing_and_masks_its_units(moment):
    model, tree, logged = moment.model.eval(), moment.model.readout, {}
    classes = tree.leaves.shape[1]
    tree.leaves.zero_()
    tree.leaves[[0, 3, 6, 7], [1, 2, 3, 4]] = 5.0
    EVENTS.build("prune_tree").run(replace(moment, log=logged.__setitem__))
    assert tree.kept.tolist() == [True, False, False, True, False, False, True, True]
    assert model.evidence.alive.tolist() == [True, True, False, False, False, False, True]
    assert logged == {"tree/leaves": 4.0, "tree/nodes": 3.0}
    assert tree.leaves.shape == (8, classes)
    # A masked unit counts as absent in the vector, and the tree no longer asks it.
    _, output = seen(moment)
    assert (output.evidence.vector[:, ~tree.decides] == 0).all()
    assert set(tree.leaf(output.evidence.vector, "greedy").tolist()) <= {0, 3, 6, 7}


def test_the_threshold_is_that_of_the_paper_for_its_200_classes(moment):
    tree = moment.model.readout
    for classes, threshold in ((200, 0.01), (tree.leaves.shape[1], None)):
        level = threshold or 1 / classes + 0.005
        for least, cut in ((level - 1e-4, True), (level + 1e-4, False)):
            leaves = torch.full((8, classes), (1 - least) / (classes - 1)).log()
            leaves[:, 0] = torch.tensor(least).log()
            leaves[:2, 0] = 9.0
            tree.leaves, tree.kept = leaves.double(), torch.ones(8, dtype=torch.bool)
            EVENTS.build("prune_tree").run(moment)
            assert bool(tree.kept[2:].any()) is not cut


def test_a_tree_without_knowledge_is_not_cut_to_nothing(moment):
    moment.model.readout.leaves.zero_()
    with pytest.raises(UserError, match="train longer"):
        EVENTS.build("prune_tree").run(moment)
    assert moment.model.readout.kept.all()
    assert moment.model.evidence.alive.all()


@pytest.mark.parametrize("decide", ["greedy", "likely", "soft"])
def test_counted_leaves_are_shares_of_training_images(moment, decide):
    model, tree = moment.model.float().eval(), moment.model.readout
    tree.decide, classes = decide, tree.leaves.shape[1]
    batches = list(DataModule(moment.source, batch_size=7, cache_folder="memory").loader("train"))
    with torch.no_grad():
        vector = torch.cat([model(b.image).evidence.vector for b in batches])
        before = tree.leaf(vector, decide)
        paths = tree.paths(vector)[-1].exp()
    labels = torch.cat([b.label for b in batches])
    EVENTS.build("count_leaves").run(moment)
    for leaf in range(8):
        mine = labels[before == leaf]
        soft = torch.tensor([float(paths[labels == c, leaf].sum()) for c in range(classes)])
        counts = soft if decide == "soft" or not len(mine) else mine.bincount(minlength=classes)
        expected = (counts + 1 / classes) / (counts.sum() + 1)
        torch.testing.assert_close(tree.leaves.softmax(1)[leaf], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(tree.leaf(vector, decide), before)
    assert torch.isfinite(tree.leaves).all()


def test_decisions_are_compared_on_validation(moment):
    logged, tree = {}, moment.model.float().readout
    EVENTS.build("compare_decisions").run(replace(moment, log=logged.__setitem__))
    assert moment.model.training
    moment.model.eval()
    batch = next(iter(DataModule(moment.source, batch_size=100, cache_folder="memory").loader("val")))
    with torch.no_grad():
        evidence = moment.model(batch.image).evidence
    classes = {way: answer.argmax(1) for way, answer in tree.answers(evidence).items()}
    for way in classes:
        assert logged[f"tree/accuracy_{way}"] == pytest.approx(float((classes[way] == batch.label).float().mean()))
    same = float((classes["likely"] == classes["greedy"]).float().mean())
    assert logged["tree/agreement_likely_greedy"] == pytest.approx(same)
    assert logged["tree/path_length"] == 3.0


def weights(run):
    return load_file(run.folder / "model" / "model.safetensors")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_and_resumes_bit_for_bit(preset, accumulate, tiny, tmp_path, dying):
    settings = [preset, *tiny, "train.save_seconds=0", f"train.accumulate={accumulate}"]
    whole = weights(vt.fit(*settings, out=tmp_path / "whole"))
    assert float(whole["readout.leaves"].std(0).max()) > 0.01
    # In the middle of the second epoch: the leaves of its beginning are known to the event alone.
    with dying({1: 8, 2: 4}[accumulate]):
        vt.fit(*settings, out=tmp_path / "run")
    again = weights(vt.fit(*settings, out=tmp_path / "run", resume=True))
    for name in whole:
        torch.testing.assert_close(again[name], whole[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_each_image_runs_through_the_backbone_once(preset, tiny, tmp_path, monkeypatch):
    """And every image of an epoch comes into some leaf, also those of accumulated batches."""
    from vitrarium.models.backbones.convnet import ConvNet

    forward, images = ConvNet.forward, []

    def counted(self, x):
        if self.training:
            images.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(ConvNet, "forward", counted)
    run = vt.fit(preset, *tiny, "train.epochs=1", "recipe.joint.epochs=1", "train.accumulate=4", out=tmp_path / "run")
    assert sum(images) == 48
    # Two updates: half of the start is taken off by each, the 48 images are added, some of them between the two.
    assert float(weights(run)["readout.leaves"].sum()) == pytest.approx(48, abs=1e-3)


def test_the_preset_logs_its_decisions(tiny, tmp_path):
    run = vt.fit("model=prototree", *tiny, out=tmp_path / "run")
    with (run.folder / "metrics.csv").open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert {"tree/leaves", "tree/accuracy_greedy", "tree/agreement_soft_greedy", "tree/path_length"} <= names


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_one_and_two_processes_learn_the_same_leaves(preset, tiny, tmp_path):
    tiny = [t for t in tiny if not t.startswith("data.train")]
    settings = [
        preset,
        *tiny,
        "data.train=44",
        "backbone.norm=none",
        "train.precision=64-true",
        "train.accelerator=cpu",
    ]
    one = weights(vt.fit(*settings, out=tmp_path / "one"))
    command = [sys.executable, "-m", "vitrarium", "train", *settings, "train.devices=2", "train.strategy=ddp"]
    command += ["train.threads=1", "-o", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-7, atol=1e-9, equal_nan=True, msg=name)
