"""The training tax: what a preset costs over the black box on the same backbone.

    python benchmarks/tax.py                      # all presets, convnet and resnet18 at 64 px
    python benchmarks/tax.py cbm cbm_side --backbone convnet --json tax.json

A training step is forward pass under the stage's training intervention, all loss terms, backward pass and optimiser
step; an inference step is the forward pass alone. Both are timed on random images of the right shape, batch 64, one
thread, with the presets taken in turn, so that a machine that slows down slows all of them. The ratio is the cost over
the black box's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import interleave, median_spread, report

from vitrarium.configs.compose import compose, options, to_plain
from vitrarium.data import build_source
from vitrarium.data.batch import Batch
from vitrarium.data.source import DataSource
from vitrarium.models import build
from vitrarium.train.interventions import TrainingDo
from vitrarium.train.task import build_optimiser, learnt_parts
from vitrarium.train.terms.base import Step, build_terms

TARGETS = {"train": 1.10, "infer": 1.05}


def make_batch(source: DataSource, size: int, views: int) -> Batch:
    """Random pixels with the labels and concepts of real examples."""
    train = source.splits["train"]
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.rand(size, 3, 64, 64, generator=generator) for _ in range(views)]
    truth = None if train.truth is None else torch.as_tensor(train.truth[:size])
    return Batch(pixels[0], torch.as_tensor(train.labels[:size]), truth, views=tuple(pixels[1:]))


def make_steps(preset: str, backbone: str, source: DataSource, size: int) -> dict[str, Callable[[], Any]]:
    """A training step of the preset's most expensive kind (its first stage with epochs) and an inference step."""
    config = to_plain(compose([f"model={preset}", f"backbone={backbone}"]))
    spec = {"backbone": config["backbone"], **{p: config["model"][p] for p in ("evidence", "readout")}}
    model = build(spec, source.class_names, source.concepts, seed=0)
    stage = next(s for s in config["recipe"].values() if s["epochs"] > 0)
    terms = build_terms(config["loss"], config["terms"], source)
    terms = torch.nn.ModuleDict({name: terms[name] for name in stage["terms"]})
    do, batch = TrainingDo.of(stage["do"]), make_batch(source, size, stage["views"])
    optimiser = build_optimiser(model, learnt_parts(model, stage["learn"]), config["train"])
    gradient = any("input_gradient" in t.needs for t in terms.values())

    def train() -> None:
        model.train()
        batch.image.requires_grad_(gradient)
        step = Step(
            model, batch, model(batch.image, do(model, batch)), [model(v, do(model, batch)) for v in batch.views]
        )
        loss = sum(config["loss"][name] * term(step) for name, term in terms.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        model(batch.image)

    return {"train": train, "infer": infer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="default: all shipped presets")
    parser.add_argument("--backbone", action="append", help="convnet, resnet18, ...; repeatable (default: these two)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = build_source({"name": "flowers", "train": max(64, given.batch), "val": 8, "test": 8})
    presets = [p for p in given.presets or options("model") if p != "blackbox"]
    records = []
    for backbone in given.backbone or ["convnet", "resnet18"]:
        steps = {p: make_steps(p, backbone, source, given.batch) for p in ["blackbox", *presets]}
        for kind, target in TARGETS.items():
            times = interleave({p: s[kind] for p, s in steps.items()}, given.rounds, 2)
            base = median_spread(times["blackbox"])[0]
            for preset in presets:
                median, spread = median_spread(times[preset])
                records.append(
                    {
                        "name": f"{kind} {preset} on {backbone}",
                        "ours": median,
                        "theirs": base,
                        "ratio": median / base,
                        "target": target,
                        "difference": None,
                        "note": f"cost over the black box's; batch {given.batch}, spread {spread * 1e3:.1f} ms",
                    }
                )
    report(records, given.json)


if __name__ == "__main__":
    main()
