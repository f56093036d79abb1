"""The streaming search against brute force over all patches at once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models import build
from vitrarium.models.prototypes import nearest as module
from vitrarium.models.prototypes.nearest import Query, allowed_classes, nearest_patches, search

CLASSES = ("a", "b", "c")


def make(readout="class_connected", **evidence):
    evidence = {"name": "prototypes", "per_class": 4, **evidence}
    spec = {"backbone": {"name": "convnet", "widths": (6, 6)}, "evidence": evidence, "readout": readout}
    return build(spec, CLASSES, seed=0)


def images(count=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 24, 24, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def batches(pixels, labels, order=None, size=5):
    order = torch.arange(len(pixels)) if order is None else order
    return [Batch(pixels[rows], labels[rows], index=rows) for rows in order.split(size)]


def brute(model, pixels, labels, count, allowed=None):
    """Every patch of every image by one sort in Python: the definition, slow."""
    model.eval()
    with torch.no_grad():
        latent = model.evidence.embed(model.backbone(pixels))
        maps = model.evidence.similarity(latent)
    found = []
    for p in range(maps.shape[1]):
        per_image = []
        for n in range(len(pixels)):
            if allowed is not None and not allowed[p, labels[n]]:
                continue
            best = max((float(maps[n, p, i, j]), -i, -j) for i in range(maps.shape[2]) for j in range(maps.shape[3]))
            per_image.append((-best[0], n, -best[1], -best[2]))
        found.append(sorted(per_image)[:count])
    return latent, found


@pytest.mark.parametrize(
    ("evidence", "restricted", "count"),
    [
        ({}, True, 1),
        ({"similarity": "log_l2"}, False, 6),
        ({"part": 2, "similarity": "exp_l2"}, True, 3),
        ({"similarity": "dot", "shared": 7}, False, 2),
        ({}, True, 20),  # more than a class has
    ],
    ids=["cosine", "log_l2", "parts", "shared", "too few"],
)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("sparing", [False, True])
def test_equal_to_brute_force(evidence, restricted, count, shuffled, sparing, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 900)  # batches are looked at in pieces
    monkeypatch.setattr(module, "WORTH_SPARING", 0 if sparing else 10**9)
    model = make("linear" if "shared" in evidence else "class_connected", **evidence)
    pixels, labels = images()
    allowed = allowed_classes(model) if restricted else None
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1)) if shuffled else None
    got = nearest_patches(model, batches(pixels, labels, order), count, allowed)
    latent, found = brute(model, pixels, labels, count, allowed)
    part = model.evidence.part
    for p, expected in enumerate(found):
        assert got.index[p].tolist() == [e[1] for e in expected] + [-1] * (count - len(expected))
        assert got.place[p, : len(expected)].tolist() == [[e[2], e[3]] for e in expected]
        assert got.label[p, : len(expected)].tolist() == [int(labels[e[1]]) for e in expected]
        torch.testing.assert_close(got.similarity[p, : len(expected)], torch.tensor([-e[0] for e in expected]))
        assert (got.similarity[p, len(expected) :] == float("-inf")).all()
        _, n, i, j = expected[0]
        torch.testing.assert_close(got.patch[p], latent[n, :, i : i + part, j : j + part])


def test_ties_go_to_the_lower_image_then_row_by_row():
    model = make()
    pixels, labels = images(6)
    pixels[1:], labels[:] = pixels[0], 0  # six times the same image
    with torch.no_grad():
        model.evidence.addon[2].weight.zero_()  # and every place of it the same
    for order in (None, torch.tensor([4, 0, 5, 2, 1, 3])):
        got = nearest_patches(model, batches(pixels, labels, order, size=2), 4)
        assert got.index.tolist() == [[0, 1, 2, 3]] * 12
        assert not got.place.any()


def test_two_queries_share_one_pass():
    model = make()
    pixels, labels = images()
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    allowed = allowed_classes(model)
    own, around = search(model, batches(pixels, labels), [Query(1, allowed, True), Query(6)])
    assert len(passes) == 5
    alone = nearest_patches(model, batches(pixels, labels), 1, allowed)
    assert torch.equal(own.index, alone.index)
    assert torch.equal(own.patch, alone.patch)
    assert around.patch is None
    assert (around.similarity[:, :-1] >= around.similarity[:, 1:]).all()


def test_the_mode_stays_and_the_batch_may_lack_an_index():
    model = make().train()
    pixels, labels = images()
    counted = [Batch(b.image, b.label) for b in batches(pixels, labels)]
    got = nearest_patches(model, counted, 2)
    assert model.training
    assert torch.equal(got.index, nearest_patches(model, batches(pixels, labels), 2).index)
    assert not got.patch.requires_grad


def test_the_readout_decides_which_classes_count():
    model = make()
    owned = allowed_classes(model)
    assert owned.sum(1).tolist() == [1] * 12
    model.readout.owners = lambda: ~owned
    assert torch.equal(allowed_classes(model), ~owned)


def test_refusals():
    model = make()
    with torch.no_grad():
        model.evidence.prototypes[0] = float("nan")
    with pytest.raises(UserError, match="not numbers"):
        nearest_patches(model, batches(*images()))
    other = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, CLASSES)
    with pytest.raises(UserError, match="has no prototypes"):
        nearest_patches(other, batches(*images()))


SCRIPT = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from test_nearest import make, images, batches
from vitrarium.models.prototypes.nearest import allowed_classes, nearest_patches

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model = make().double()
pixels, labels = images()
pixels = pixels.double()
pixels[4], labels[4] = pixels[3], labels[3]  # a tie between the processes
allowed = allowed_classes(model)
alone = nearest_patches(model, batches(pixels, labels), 5, allowed)
mine = torch.arange(rank, len(pixels), 2)
shared = nearest_patches(model, batches(pixels, labels, mine, size=3), 5, allowed, gather=True)
nothing = mine[:0] if rank else torch.arange(len(pixels))
uneven = nearest_patches(model, batches(pixels, labels, nothing) if len(nothing) else [], 5, allowed, gather=True)
for other in (shared, uneven):
    for name in ("index", "label", "place"):
        assert torch.equal(getattr(alone, name), getattr(other, name)), name
    torch.testing.assert_close(alone.similarity, other.similarity)
    torch.testing.assert_close(alone.patch, other.patch)
print("agreed")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_find_what_one_finds(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script)]
    rest = [str(tmp_path / "meeting"), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, str(rank), *rest], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in running:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-2000:]
        assert out.strip() == "agreed"
