"""Run a recipe: one Lightning fit per stage, resumable at any step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from vitrarium.configs.errors import Interrupted, UserError
from vitrarium.configs.files import write_text
from vitrarium.data.batch import Batch
from vitrarium.data.module import DataModule
from vitrarium.data.source import DataSource, Split
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.types import Output
from vitrarium.train.callbacks import Interruption, Keeper, Selection
from vitrarium.train.checks import check_recipe
from vitrarium.train.events.base import Moment, Schedule, build_events
from vitrarium.train.features import keep_features
from vitrarium.train.logs import build_loggers, rewind
from vitrarium.train.progress import Bar, build_progress, quiet
from vitrarium.train.snapshot import Snapshot
from vitrarium.train.task import Task, derive, without_frozen
from vitrarium.train.terms.base import build_terms


@dataclass
class Result:
    """What training came to.

    Attributes:
        seconds: training time over all sessions.
        images: images seen.
    """

    seconds: float
    images: int


class Recipe:
    """Trains a model through the stages of a recipe.

    Args:
        model: the classifier; trained in place.
        source: the data.
        data: loaders of the data.
        config: the plain configuration of the run.
        folder: the run folder; ``checkpoints/`` and ``metrics.csv`` are written there.

    Raises:
        UserError: a recipe that asks for what the data or the model do not give, before anything is trained.
    """

    def __init__(
        self,
        model: TransparentClassifier,
        source: DataSource,
        data: DataModule,
        config: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.model, self.source, self.data, self.config, self.folder = model, source, data, config, folder
        if config["train"]["features"] < 0:
            raise UserError(f"train.features is {config['train']['features']}", "give a number of appearances, or 0")
        self.stages = without_frozen(config["recipe"], config["train"]["freeze"], model)
        self.terms: nn.ModuleDict = build_terms(config["loss"], config["terms"], source)
        self.events = {name: build_events(stage["events"]) for name, stage in self.stages.items()}
        self.interruption = Interruption()
        self._shared: tuple[tuple[int, str, int], dict[str, Any]] = ((-1, "", 0), {})
        self.checkpoint = folder / "checkpoints" / "last.ckpt"
        check_recipe(model, source, self.stages, self.terms, self.events, bool(config["train"]["features"]))

    def prepare(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Decode the images, or compute the features that are kept in their place: damaged images are met here.

        Raises:
            UserError: an image that cannot be read, features larger than the cache may be.
        """
        appearances = self.config["train"]["features"]
        if appearances:
            asked = {label for stage in self.stages.values() for label in stage["terms"]}
            needs = frozenset[str]().union(*(self.terms[label].needs for label in asked))  # type: ignore[arg-type]
            pooled = self.model.evidence.reads_mean and "maps" not in needs
            keep_features(self.model, self.data, appearances, pooled, progress, self.config["train"]["accelerator"])
        else:
            for split in ("train", "val"):
                self.data.split(split)

    def run(self, resume: bool = False) -> Result:
        """Train all stages; with ``resume`` go on where the last session stopped.

        Raises:
            Interrupted: the user stopped it; the state is saved.
            UserError: a loss that is not finite, a full disk; the last good state is kept.
        """
        snapshot = Snapshot.load(self.checkpoint) if resume and self.checkpoint.exists() else None
        seconds, images = (snapshot.seconds, snapshot.images) if snapshot else (0.0, 0)
        if snapshot is None and first_process():
            # Whatever an earlier session logged before its first save is done again.
            (self.folder / "metrics.csv").unlink(missing_ok=True)
        elif snapshot is not None and snapshot.stage >= len(self.stages):
            self._restore(snapshot, [])
        with self.interruption.listening(), quiet():
            for number, name in enumerate(self.stages):
                if snapshot is not None and number < snapshot.stage:
                    continue
                here = snapshot if snapshot is not None and number == snapshot.stage else None
                seconds, images = self._stage(number, name, here, seconds, images)
        return Result(seconds, images)

    def _stage(
        self, number: int, name: str, snapshot: Snapshot | None, seconds: float, images: int
    ) -> tuple[float, int]:
        """One stage: start events, epochs, best weights, end events, and a snapshot at its border."""
        stage, began = self.stages[name], time.monotonic()
        if snapshot is not None:
            self._restore(snapshot, self.events[name])
            rewind(self.folder / "metrics.csv", name, list(self.stages)[:number], snapshot.epoch)
        fresh = snapshot is None or (snapshot.epoch == 0 and snapshot.batch == 0 and not snapshot.done)
        if fresh:
            self._run_events(name, "start", number)
        seconds += time.monotonic() - began
        if stage["epochs"] > 0 and not (snapshot is not None and snapshot.done):
            seconds, images = self._fit(number, name, None if fresh else snapshot, seconds, images)
        began = time.monotonic()
        best = self._best(name)
        if stage["epochs"] > 0 and stage["select"] and best.exists():
            self.model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
        self._run_events(name, "end", number)
        seconds += time.monotonic() - began
        self._border(number + 1, seconds, images)
        return seconds, images

    def _fit(self, number: int, name: str, snapshot: Snapshot | None, seconds: float, images: int) -> tuple[float, int]:
        """The epochs of a stage."""
        stage, train = self.stages[name], self.config["train"]
        terms = nn.ModuleDict({label: self.terms[label] for label in stage["terms"]})
        start = (snapshot.epoch, snapshot.batch) if snapshot is not None else (0, 0)
        self.data.begin_stage(derive(self.config["seed"], name), stage["views"], start)
        batches = self.data.batches_per_epoch()
        steps = -(-batches // train["accumulate"]) * stage["epochs"]
        weights = {label: self.config["loss"][label] for label in stage["terms"]}
        task = Task(self.model, terms, weights, stage, train, name, derive(self.config["seed"], number), steps)
        selection = Selection(stage["select"], stage["patience"], self._best(name))
        if snapshot is not None:
            selection.load_state_dict(snapshot.selection)
            terms.load_state_dict(snapshot.terms)
        keeper = Keeper(
            self.checkpoint, number, train["save_seconds"], selection, self.events[name], self.interruption,
            lambda schedule, count, task, batch: self._run_event(schedule, name, number, count, task, batch),
            snapshot, (seconds, images), batches,
        )  # fmt: skip
        trainer = self._trainer(name, stage, [selection, keeper])
        # Lightning trains in whatever mode it finds; ours says which parts are in which.
        task.train()
        trainer.fit(task, datamodule=self.data)
        if trainer.interrupted:
            raise Interrupted("stopped; the state is that of the last save")
        self.model.cpu()
        return keeper.seconds, keeper.images

    def _trainer(self, name: str, stage: Mapping[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        train = self.config["train"]
        shown = build_progress(train["progress"], name)
        return pl.Trainer(
            max_epochs=stage["epochs"],
            accelerator=train["accelerator"],
            devices=train["devices"],
            strategy=train["strategy"],
            precision=train["precision"],
            accumulate_grad_batches=train["accumulate"],
            gradient_clip_val=train["clip"] or None,
            logger=build_loggers(self.folder, name, train["tensorboard"]),
            callbacks=[*callbacks, *shown],
            enable_progress_bar=any(isinstance(c, Bar) for c in shown),
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            # Gradients are explanations here: inference mode would forbid them even inside enable_grad.
            inference_mode=False,
            # A loader per epoch, so that the first one after resuming can start at the batch where training stopped.
            reload_dataloaders_every_n_epochs=1,
            log_every_n_steps=10**9,
        )

    def _run_events(self, name: str, when: str, number: int) -> None:
        for schedule in self.events[name]:
            if schedule.due(when):
                self._run_event(schedule, name, number, 0, None, None)

    def _run_event(
        self, schedule: Schedule, name: str, number: int, count: int, task: Task | None, batch: Batch | None
    ) -> None:
        from vitrarium.train.interventions import TrainingDo

        border = (number, schedule.when, count)
        if self._shared[0] != border:
            self._shared = (border, {})
        moment = Moment(
            self.model, self.source, self._clean, TrainingDo.of(self.stages[name]["do"]),
            derive(self.config["seed"], number, schedule.label, schedule.when, count), batch,
            (lambda key, value: self._note(name, key, value)) if task is None else task.log,
            float(schedule.when == "end") if task is None else task.progress,
            *self._place(schedule, name, count, task), self._examples, self._shared[1],
        )  # fmt: skip
        schedule.event.run(moment)

    def _place(
        self, schedule: Schedule, name: str, count: int, task: Task | None
    ) -> tuple[Sequence[tuple[Batch, Output]], int, float]:
        """What the step has answered, the epoch, and how often the event runs in one."""
        if task is None:
            return (), 0, 1.0
        if schedule.when == "epoch":
            return (), count - 1, 1 / schedule.every
        steps = task.steps // self.stages[name]["epochs"]
        return task.answers, (count - 1) // steps, steps / schedule.every

    def _clean(self, split: str, shard: bool = False) -> Iterable[Batch]:
        return self.data.loader(split, shard=shard)

    def _examples(self, split: str) -> Split:
        # Where features stand in for images nothing was decoded, and few images are asked for.
        return self.source.splits[split] if split in self.data.features else self.data.split(split)

    def _note(self, stage: str, key: str, value: float) -> None:
        for logger in build_loggers(self.folder, stage, False):
            logger.log_metrics({key: float(value), "epoch": 0}, step=0)

    def _best(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"best-{name}.ckpt"

    def _border(self, number: int, seconds: float, images: int) -> None:
        """The snapshot between two stages: only the model and the terms travel on."""
        if first_process():
            Snapshot(
                stage=number,
                model=self.model.state_dict(),
                terms=self.terms.state_dict(),
                seconds=seconds,
                images=images,
            ).save(self.checkpoint)

    def _restore(self, snapshot: Snapshot, events: list[Schedule]) -> None:
        """Model, terms and events as they were."""
        try:
            self.model.load_state_dict(snapshot.model)
        except RuntimeError as error:
            raise UserError(
                f"'{self.checkpoint}' is the checkpoint of another model: {str(error).splitlines()[-1].strip()}",
                "resume with the configuration that began the run, or choose another run folder",
            ) from error
        # Inside a stage a snapshot holds the terms of that stage, at a border all of them.
        self.terms.load_state_dict(snapshot.terms, strict=False)
        for schedule in events:
            if schedule.label in snapshot.events:
                schedule.event.load_state_dict(snapshot.events[schedule.label])


def first_process() -> bool:
    """Whether this process is the one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=2))
