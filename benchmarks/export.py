"""Exported and deployed models against the model as it is loaded, for one image.

    python benchmarks/export.py                     # convnet and resnet18 at 64 px, EfficientNet-Lite0 at 112 px
    python benchmarks/export.py convnet:64 --batch 64 --json export.json

The model is a joint CBM with random weights, which cost as much as learnt ones. Torch eager, the deployed copy and the
file in onnxruntime answer the same image in turn, on one thread each, so that a machine that slows down slows all of
them. The ratio is how many times faster than torch eager the other is: the target for ONNX is 1, not slower.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import interleave, median_spread, report

from vitrarium.configs.compose import compose, to_plain
from vitrarium.data import build_source
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build
from vitrarium.models.deploy import deploy
from vitrarium.models.export import RUNNERS, export_model

CASES = ("convnet:64", "resnet18:64", "efficientnet_lite0:112")


def make_answers(backbone: str, size: int, batch: int, folder: Path) -> tuple[dict[str, Callable[[], Any]], float]:
    """The three ways to the same answer, and the largest difference between file and model."""
    config = to_plain(compose(["model=cbm", f"backbone={backbone}"]))
    given = {key: value for key, value in config["backbone"].items() if key != "weights"}
    spec = {"backbone": given, **{part: config["model"][part] for part in ("evidence", "readout")}}
    source = build_source({"name": "flowers", "train": 64, "val": 8, "test": 8})
    model = build(spec, source.class_names, source.concepts, Preprocessing(size), seed=0).eval()
    exported = export_model(model, folder / f"{backbone}.onnx")
    deployed, run = deploy(model), RUNNERS["onnx"](exported.path)
    image = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    values = torch.zeros(batch, len(model.evidence.units))
    mask = values.bool()
    return {
        "eager": lambda: model(image),
        "deployed": lambda: deployed(image),
        "onnx": lambda: run(image, mask, values),
    }, exported.difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="BACKBONE:SIZE", help="default: the three above")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    # onnxruntime takes as many threads as torch.
    torch.set_num_threads(1)
    records = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for case in given.cases:
            backbone, _, size = case.partition(":")
            with torch.inference_mode(False):
                answers, difference = make_answers(backbone, int(size), given.batch, Path(folder))
            times = interleave(answers, given.rounds, 10)
            base, base_spread = median_spread(times["eager"])
            for name, target in (("onnx", 1.0), ("deployed", None)):
                median, spread = median_spread(times[name])
                records.append(
                    {
                        "name": f"{name} {case}",
                        "ours": median * 1e3,
                        "theirs": base * 1e3,
                        "ratio": base / median,
                        "target": target,
                        "difference": difference if name == "onnx" else None,
                        "note": f"ms for {given.batch} image(s) against torch eager, "
                        f"spread {spread * 1e3:.2f} and {base_spread * 1e3:.2f} ms",
                    }
                )
    report(records, given.json)


if __name__ == "__main__":
    main()
