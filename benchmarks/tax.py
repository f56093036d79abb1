"""The training tax: what a preset costs over the black box on the same backbone.

    python benchmarks/tax.py                      # all presets, convnet and resnet18 at 64 px
    python benchmarks/tax.py cbm cbm_side --backbone convnet --json tax.json
    python benchmarks/tax.py concept_whitening --backbone resnet18 --set backbone.cut=layer3.1.bn2

A training step is forward pass under the stage's training intervention, all loss terms, backward pass, optimiser step
and the events that follow each step; of a recipe with several stages the most expensive one counts. A stage that trains
on several views of each image is judged per view: its step divided by their number. An inference step is the forward
pass alone. All are timed on random images of the right shape, batch 64, one thread, with the presets taken in turn, so
that a machine that slows down slows all of them. The ratio is the cost over the black box's (which is never cut). A
preset that refuses a backbone (a covariance of 512 channels from 256 values) is left out, and says why.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from common import interleave, median_spread, report

from vitrarium.configs.compose import compose, options, to_plain
from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.batch import Batch
from vitrarium.data.source import DataSource
from vitrarium.models import build
from vitrarium.models.classifier import PARTS, TransparentClassifier
from vitrarium.models.types import Output
from vitrarium.train.events.base import Moment, build_events
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


class Timed(NamedTuple):
    """Something to time.

    Attributes:
        kind: "train" or "infer".
        stage: of the recipe; empty for "infer".
        views: by which the time is divided.
        run: does it once.
    """

    kind: str
    stage: str
    views: int
    run: Callable[[], Any]


def make_steps(preset: str, backbone: str, source: DataSource, size: int, settings: Sequence[str] = ()) -> list[Timed]:
    """A training step of each stage with epochs, and an inference step; each has run once."""
    config = to_plain(compose([f"model={preset}", f"backbone={backbone}", *settings]))
    spec = {"backbone": config["backbone"], **{p: config["model"][p] for p in ("evidence", "readout")}}
    steps = []
    for name, stage in config["recipe"].items():
        if stage["epochs"] > 0:
            model = build(spec, source.class_names, source.concepts, seed=0)
            steps.append(Timed("train", name, stage["views"], make_train(model, stage, config, source, size)))
    model, batch = build(spec, source.class_names, source.concepts, seed=0).eval(), make_batch(source, size, 1)

    @torch.no_grad()
    def infer() -> None:
        model(batch.image)

    timed = [*steps, Timed("infer", "", 1, infer)]
    for step in timed:
        step.run()
    return timed


def make_train(
    model: TransparentClassifier, stage: dict[str, Any], config: dict[str, Any], source: DataSource, size: int
) -> Callable[[], None]:
    """A step of a stage: what it does not learn is frozen, what happens after each step happens."""
    terms = build_terms(config["loss"], config["terms"], source)
    terms = torch.nn.ModuleDict({name: terms[name] for name in stage["terms"]})
    do, batch = TrainingDo.of(stage["do"]), make_batch(source, size, stage["views"])
    learnt = learnt_parts(model, stage["learn"])
    for part, parameters in model.parts().items():
        for parameter in parameters:
            parameter.requires_grad_(part in learnt)
    frozen = [getattr(model, part) for part in PARTS if part not in learnt]
    optimiser = build_optimiser(model, learnt, config["train"], stage["lr"])
    gradient = any("input_gradient" in t.needs for t in terms.values())
    schedules = [schedule for schedule in build_events(stage["events"]) if schedule.when == "step"]
    moment = Moment(
        model, source, lambda split, shard=False: [make_batch(source, size, 1)], do, seed=0, batch=batch, runs=100.0
    )
    taken = itertools.count(1)

    def train() -> None:
        model.train()
        for part in frozen:
            part.eval()
        batch.image.requires_grad_(gradient)
        step = Step(
            model, batch, model(batch.image, do(model, batch)), [model(v, do(model, batch)) for v in batch.views], 0.5
        )
        loss = sum(config["loss"][name] * term(step) for name, term in terms.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        count, seen = next(taken), step.output.evidence.without_maps().detach()
        moment.answers = [(batch, Output(step.output.logits.detach(), seen))]
        for schedule in schedules:
            if schedule.due("step", count):
                schedule.event.run(moment)

    return train


def most_expensive(
    preset: str, kind: str, steps: list[Timed], times: Mapping[tuple[str, str, str], list[float]]
) -> tuple[float, float, Timed]:
    """Median and spread in seconds per view of the most expensive step of a kind, and which it is."""
    found = []
    for step in steps:
        if step.kind == kind:
            median, spread = median_spread(times[preset, kind, step.stage])
            found.append((median / step.views, spread / step.views, step))
    return max(found, key=lambda cost: cost[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="default: all shipped presets")
    parser.add_argument("--backbone", action="append", help="convnet, resnet18, ...; repeatable (default: these two)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the presets; repeatable")
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = build_source({"name": "flowers", "train": max(64, given.batch), "val": 8, "test": 8})
    presets = [p for p in given.presets or options("model") if p != "blackbox"]
    records = []
    for backbone in given.backbone or ["convnet", "resnet18"]:
        steps = {"blackbox": make_steps("blackbox", backbone, source, given.batch)}
        for preset in presets:
            try:
                steps[preset] = make_steps(preset, backbone, source, given.batch, given.set)
            except UserError as error:
                print(f"{preset} on {backbone}: {error}")
        functions = {(p, s.kind, s.stage): s.run for p, own in steps.items() for s in own}
        times = interleave(functions, given.rounds, 2)
        for kind, target in TARGETS.items():
            costs = {p: most_expensive(p, kind, own, times) for p, own in steps.items()}
            for preset in list(steps)[1:]:
                (median, spread, step), base = costs[preset], costs["blackbox"][0]
                stage = f"stage '{step.stage}', " if len(steps[preset]) > 2 and step.stage else ""
                views = f"per view of {step.views}, " if step.views > 1 else ""
                records.append(
                    {
                        "name": f"{kind} {preset} on {backbone}",
                        "ours": median,
                        "theirs": base,
                        "ratio": median / base,
                        "target": target,
                        "difference": None,
                        "note": f"cost over the black box's; {stage}{views}batch {given.batch}, "
                        f"spread {spread * 1e3:.1f} ms",
                    }
                )
    report(records, given.json)


if __name__ == "__main__":
    main()
