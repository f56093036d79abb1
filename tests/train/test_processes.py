"""One and two processes train the same model: norm-free and in float64, so that only the order of sums differs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

# 44 images and batches of 8: the last batch of an epoch is smaller, and unknown concepts fall unevenly on the
# processes.
SETTINGS = [
    "model=cbm",
    "data.train=44",
    "data.missing_concepts=0.3",
    "backbone.norm=none",
    "train.precision=64-true",
    "train.accelerator=cpu",
    "train.threads=1",
    "terms.cross_entropy.class_weight=balanced",
    "terms.concepts.imbalance=pos_weight",
    "data.imbalance=3",
    "train.balance=0.7",
]


def train(folder, tiny, *more):
    tiny = [t for t in tiny if not t.startswith("data.train")]
    command = [sys.executable, "-m", "vitrarium", "train", *tiny, *SETTINGS, *more, "-o", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_one_and_two_processes_agree(tiny, tmp_path):
    one = train(tmp_path / "one", tiny)
    two = train(tmp_path / "two", tiny, "train.devices=2", "train.strategy=ddp")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-7, atol=1e-9, msg=name)
    logged = [(tmp_path / f / "metrics.csv").read_text().splitlines() for f in ("one", "two")]
    assert [r.split(",")[:4] for r in logged[0]] == [r.split(",")[:4] for r in logged[1]]
    for a, b in zip(*logged, strict=True):
        if a.split(",")[3] in ("val/accuracy", "val/concept_accuracy"):
            assert float(a.split(",")[4]) == pytest.approx(float(b.split(",")[4]), abs=1e-6)
