"""Does predict keep up with its backbone? Seconds for a folder of JPEG files against the backbone alone, and memory.

    python benchmarks/predict.py
    python benchmarks/predict.py --images 1000 --rounds 5 --json predict.json
    python benchmarks/predict.py --memory

A folder goes to a CSV file with all columns that predict writes by itself: files are decoded, cropped and resized,
batches of 32 go through the model, contributions are computed, lines written. Loading the model and folding it once are
not counted. The opponent is the backbone of the same model, as it was loaded, on batches that are in memory already,
with as many threads: all cores. Both take turns; the target is 1.2 times the backbone's time. Weights are random, which
costs the same. The images are blood cells where VITRARIUM_DATA says they lie, and generated files of 360 px.

With --memory the peak of a process that answers 3,000 images is set beside that of one that answers 500.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import interleave, median_spread, peak_memory_mb, report
from PIL import Image

import vitrarium as vt
from vitrarium.answering import answer_paths, image_paths
from vitrarium.answers import choose_form
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.folder import save_model

TARGET, BATCH, CLASSES, FEW, MANY = 1.2, 32, 8, 500, 3000
CASES = (
    ("cbm", "timm/tf_efficientnet_lite0", 112),
    ("blackbox", "timm/tf_efficientnet_lite0", 112),
    ("cbm", "timm/resnet18", 64),
    ("blackbox", "timm/resnet18", 64),
)


def build_case(preset: str, backbone: str, size: int) -> TransparentClassifier:
    concepts = ConceptSet(tuple(ConceptGroup(f"concept {k}", (k,), ("yes",), False) for k in range(40)))
    spec = {"backbone": backbone, "evidence": "concepts" if preset == "cbm" else "features", "readout": "linear"}
    names = [f"class {c}" for c in range(CLASSES)]
    return build(spec, names, concepts, Preprocessing(size), seed=0).eval()


def generated_folder(root: Path, count: int, side: int = 360) -> Path:
    """Smooth random JPEG files."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(root / f"{index:05d}.jpg", quality=90)
    return root


def blood_cells(root: Path, count: int) -> Path | None:
    """Links to the first images of the real data set, where it is."""
    data = os.environ.get("VITRARIUM_DATA")
    found = sorted(Path(data, "wbcatt").rglob("*.jpg"))[:count] if data else []
    return repeated(found, root, len(found)) if found else None


def repeated(files: list[Path], root: Path, count: int) -> Path:
    """A folder of links to the files, from the first again when they are used up."""
    root.mkdir(parents=True)
    for index in range(count):
        (root / f"{index:05d}.jpg").symlink_to(files[index % len(files)].resolve())
    return root


def predicting(model: TransparentClassifier, folder: Path, out: Path) -> Callable[[], None]:
    """A function that answers a folder into a file."""

    def run() -> None:
        answer_paths(model, image_paths([str(folder)]), choose_form(model), out, batch_size=BATCH)

    return run


def backbone_alone(model: TransparentClassifier, count: int) -> Callable[[], None]:
    """A function that takes as many images, in memory, through the backbone."""
    assert model.preprocessing is not None
    pixels = torch.rand(BATCH, 3, model.preprocessing.size, model.preprocessing.size)
    sizes = [BATCH] * (count // BATCH) + ([count % BATCH] if count % BATCH else [])

    @torch.no_grad()
    def run() -> None:
        for size in sizes:
            model.backbone(pixels[:size])

    return run


def decoding(model: TransparentClassifier, folder: Path) -> float:
    """Seconds of one core for an image."""
    files = sorted(folder.iterdir())[:100]
    assert model.preprocessing is not None
    began = time.perf_counter()
    for file in files:
        model.preprocessing.pixels(file)
    return (time.perf_counter() - began) / len(files)


def measure(case: tuple[str, str, int], name: str, folder: Path, scratch: Path, rounds: int) -> dict[str, object]:
    preset, backbone, size = case
    model, count = build_case(*case), sum(1 for _ in folder.iterdir())
    began = time.perf_counter()
    folded = model.deploy()
    folding = time.perf_counter() - began
    times = interleave(
        {"ours": predicting(folded, folder, scratch / "out.csv"), "theirs": backbone_alone(model, count)}, rounds, 1
    )
    (ours, varied), (theirs, spread) = median_spread(times["ours"]), median_spread(times["theirs"])
    return {
        "name": f"{preset}, {backbone.removeprefix('timm/')} at {size} px, {name}",
        "ours": 1000 * ours / count,
        "theirs": 1000 * theirs / count,
        "ratio": ours / theirs,
        "target": TARGET,
        "difference": None,
        "note": f"milliseconds an image, {count} images; spread {varied / ours:.0%} and {spread / theirs:.0%}; "
        f"decoding takes {1000 * decoding(model, folder):.2f} ms of one core; folding, not counted, {folding:.2f} s",
    }


def memory(scratch: Path, folder: Path) -> list[dict[str, object]]:
    """Peak memory of a process of its own, by the number of images."""
    records = []
    for case in CASES[:2]:
        saved = save_model(build_case(*case), scratch / f"model-{case[0]}")
        peaks = {}
        for count in (FEW, MANY):
            many = scratch / f"links-{count}"
            if not many.exists():
                repeated(sorted(folder.iterdir()), many, count)
            command = [sys.executable, __file__, "--worker", str(saved), str(many)]
            peaks[count] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        records.append(
            {
                "name": f"{case[0]}, {case[1].removeprefix('timm/')}: peak memory in MB, {MANY} against {FEW} images",
                "ours": peaks[MANY],
                "theirs": peaks[FEW],
                "ratio": peaks[MANY] / peaks[FEW],
                "target": None,
                "difference": peaks[MANY] - peaks[FEW],
                "note": None,
            }
        )
    return records


def work(model: str, folder: str) -> None:
    """What a process of its own does: answer a folder, say how much memory that took."""
    loaded = vt.load(model)
    answer_paths(loaded, image_paths([folder]), choose_form(loaded), Path(folder).with_suffix(".csv"), batch_size=BATCH)
    print(peak_memory_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--json", help="write records to this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker)
        return
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        folders = {"360 px": generated_folder(scratch / "generated", given.images)}
        if given.memory:
            report(memory(scratch, folders["360 px"]), given.json)
            return
        cells = blood_cells(scratch / "cells", given.images)
        if cells is not None:
            folders["blood cells"] = cells
        records = [measure(c, name, f, scratch, given.rounds) for c in CASES for name, f in folders.items()]
    report(records, given.json)


if __name__ == "__main__":
    main()
