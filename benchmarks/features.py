"""A frozen backbone whose features are kept: how soon a second run trains, and how long its epochs take.

    python benchmarks/features.py
    python benchmarks/features.py --json features.json

6,000 JPEG files of 224 px are generated as class folders with 20 concepts. A first `vitrarium train model=cbm
train=frozen` (EfficientNet-Lite0 at 112 px) computes the features; two more runs, of a black box and of a bottleneck
with another seed, each in a process of its own, find them in the cache. Measured from the start of the process to the
first optimiser step, and from epoch to epoch (validation and saving included).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import report
from PIL import Image

COUNT, CLASSES, CONCEPTS, EPOCHS = 6000, 20, 20, 6
START_TARGET, EPOCH_TARGET = 10.0, 2.0

RUN = """
import json, sys, time
began = float(sys.argv[1])
import vitrarium as vt
from vitrarium.train.task import Task
moments = []
step, end = Task.training_step, Task.finish_epoch
def first(self, *given):
    if not moments:
        moments.append(time.time())
    return step(self, *given)
def finish(self):
    moments.append(time.time())
    return end(self)
Task.training_step, Task.finish_epoch = first, finish
vt.fit(*sys.argv[3:], out=sys.argv[2])
print(json.dumps([moment - began for moment in moments]))
"""


def generated_folder(root: Path) -> Path:
    """Class folders of smooth random JPEG files of 224 px, with concepts; 6,000 of them are for training."""
    rng = np.random.default_rng(0)
    truth = rng.random((CLASSES, CONCEPTS)) < 0.4
    lines = [",".join(["image", "split", *(f"concept{k}" for k in range(CONCEPTS))])]
    for index in range(COUNT + 2 * CLASSES * 10):
        c = index % CLASSES
        split = "train" if index < COUNT else ("val", "test")[(index // CLASSES) % 2]
        path = root / f"class{c:02d}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3)).astype(np.uint8))
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(path, quality=85)
        lines.append(",".join([f"{path.parent.name}/{path.name}", split, *(str(int(v)) for v in truth[c])]))
    (root / "concepts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def run(scratch: Path, name: str, *overrides: str) -> list[float]:
    """Train in a process of its own; seconds from its start to the first step, and to the end of each epoch."""
    given = [
        "data=folder", f"data.root={scratch / 'images'}", "data.size=112", "backbone=efficientnet_lite0",
        "train=frozen", f"train.epochs={EPOCHS}", "train.progress=false", *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "VITRARIUM_CACHE": str(scratch / "cache")}
    command = [sys.executable, "-c", RUN, str(time.time()), str(scratch / name), *given]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        generated_folder(scratch / "images")
        first = run(scratch, "first", "model=cbm")
        later = {
            "black box": run(scratch, "blackbox", "model=blackbox"),
            "cbm": run(scratch, "cbm", "model=cbm", "seed=1"),
        }
    records = []
    for name, moments in later.items():
        epochs = np.diff(moments[1:]).tolist()
        for what, ours, theirs, target in (
            ("start of the second run", moments[0], first[0], START_TARGET),
            ("epoch of 6,000 images", statistics.median(epochs), None, EPOCH_TARGET),
        ):
            records.append(
                {
                    "name": f"{what}, {name}",
                    "ours": ours,
                    "theirs": theirs,
                    "ratio": None if theirs is None else theirs / ours,
                    "target": target,
                    "difference": None,
                    "note": "seconds; theirs: the run that computes the features (decoding included); target: at most; "
                    f"epochs from {min(epochs):.2f} to {max(epochs):.2f} s",
                }
            )
    report(records, given.json)


if __name__ == "__main__":
    main()
