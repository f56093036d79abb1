"""Does the loader hold training back? Images a second it delivers against those resnet18 consumes.

    python benchmarks/loader.py
    python benchmarks/loader.py --rounds 9 --json loader.json

The loader takes cached images of 64 px through flips and shifts into batches of 64, in this process (workers 0) and in
one beside it (workers 1). The consumer is timm's resnet18 on one thread: forward pass, backward pass and AdamW step.
Blood cells are used where VITRARIUM_DATA says they lie, else a generated folder of JPEG files. Loaders and consumer
take turns; the target is three times what is consumed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import interleave, median_spread, peak_memory_mb, report
from PIL import Image
from torch.nn.functional import cross_entropy

from vitrarium.data import DataSource, build_source
from vitrarium.data.module import DataModule

TARGET = 3.0
BATCH, SIZE, STEPS = 64, 64, 3
AUGMENT = {"geometry": ["flip_horizontal", "flip_vertical", {"name": "shift", "pixels": 4}]}


def generated_folder(root: Path, classes: int = 4, count: int = 400) -> Path:
    """Class folders of smooth random JPEG files of 128 px."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for index in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8))
            coarse.resize((128, 128), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=85)
    return root


def choose_source(scratch: Path) -> DataSource:
    real = Path(os.environ.get("VITRARIUM_DATA", "")) / "wbcatt"
    if os.environ.get("VITRARIUM_DATA") and real.is_dir():
        return build_source({"name": "wbcatt", "root": str(real), "size": SIZE})
    return build_source({"name": "folder", "root": str(generated_folder(scratch / "images")), "size": SIZE})


def epochs_of(module: DataModule) -> Callable[[], None]:
    """A function that takes one epoch off the loader, another one each time."""
    loader, epoch = module.train_dataloader(), iter(range(10**9))

    def run() -> None:
        loader.batch_sampler.set_epoch(next(epoch))
        for batch in loader:
            assert batch.image.shape[1:] == (3, SIZE, SIZE)

    return run


def training_steps(classes: int) -> Callable[[], None]:
    """A function that trains resnet18 for a few steps on one batch."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = torch.rand(BATCH, 3, SIZE, SIZE), torch.randint(classes, (BATCH,))

    def run() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimiser.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = choose_source(Path(scratch))
        modules = {
            w: DataModule(source, BATCH, workers=w, augment=AUGMENT, cache_folder=Path(scratch) / "cache")
            for w in (0, 1)
        }
        count, began = len(source.splits["train"]), time.perf_counter()
        modules[0].split("train")
        decoding = count / (time.perf_counter() - began)
        functions = {f"workers {w}": epochs_of(module) for w, module in modules.items()}
        functions["resnet18"] = training_steps(len(source.class_names))
        times = interleave(functions, given.rounds, 1)
    median, spread = median_spread(times.pop("resnet18"))
    consumed = BATCH * STEPS / median
    records = []
    for name, seconds in times.items():
        taken, varied = median_spread(seconds)
        records.append(
            {
                "name": f"loader, {name}",
                "ours": count / taken,
                "theirs": consumed,
                "ratio": count / taken / consumed,
                "target": TARGET,
                "difference": None,
                "note": f"images a second, {source.name} at {SIZE} px against resnet18 in training; spread "
                f"{varied / taken:.0%} and {spread / median:.0%}; {torch.get_num_threads()} thread, peak memory "
                f"{peak_memory_mb():.0f} MB; decoding once: {decoding:,.0f} images a second",
            }
        )
    report(records, given.json)


if __name__ == "__main__":
    main()
