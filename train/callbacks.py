"""What watches over a stage: the choice of the best epoch, saving, interruption, step and epoch events."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from vitrarium.configs.errors import Interrupted, UserError, closest
from vitrarium.configs.files import whole_file
from vitrarium.train.distributed import world_size
from vitrarium.train.events.base import Schedule
from vitrarium.train.snapshot import Snapshot
from vitrarium.train.task import Task


class Selection(pl.Callback):
    """Keeps the weights of the epoch with the best mean of some validation metrics, and stops when it no longer rises.

    Args:
        metrics: names as logged under ``val/``; empty keeps the last epoch.
        patience: epochs without improvement before stopping; 0 = never.
        path: where the best weights are kept.
    """

    def __init__(self, metrics: list[str], patience: int, path: Path) -> None:
        self.metrics, self.patience, self.path = metrics, patience, path
        self.best, self.best_epoch, self.stopped = float("-inf"), -1, False

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Compare this epoch with the best so far."""
        if not self.metrics:
            return
        assert isinstance(task, Task)
        score = sum(self._value(trainer, task, name) for name in self.metrics) / len(self.metrics)
        epoch = trainer.current_epoch
        if score > self.best:
            self.best, self.best_epoch = score, epoch
            if trainer.is_global_zero:
                _write_weights(task.model.state_dict(), self.path)
        elif self.patience and epoch - self.best_epoch >= self.patience:
            self.stopped = trainer.should_stop = True

    def _value(self, trainer: pl.Trainer, task: Task, name: str) -> float:
        """The metric, turned so that higher is better; NaN (not defined on this split) never wins."""
        if f"val/{name}" not in trainer.callback_metrics:
            raise UserError(f"'{name}' cannot select the best epoch", closest(name, task.validation.keys()))
        value = float(trainer.callback_metrics[f"val/{name}"])
        if value != value:
            return float("-inf")
        return value if task.validation[name].higher_is_better else -value

    def state_dict(self) -> dict[str, Any]:
        """For the snapshot."""
        return {"best": self.best, "best_epoch": self.best_epoch, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the snapshot."""
        self.best, self.best_epoch, self.stopped = state["best"], state["best_epoch"], state["stopped"]


def _write_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """Tensors to a file, whole or not at all."""
    try:
        with whole_file(path) as beside:
            torch.save(state, beside)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"weights could not be written to '{path}': {error}", "free some space, then go on with --resume"
        ) from error


class Interruption:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop at the next step; the second stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers, and put the old ones back; outside the main thread nothing is installed."""
        previous: dict[signal.Signals, Any] = {}
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise Interrupted("stopped at once; the state is that of the last save")
        self.asked = True

    def agreed(self) -> bool:
        """Whether any process was asked."""
        if world_size() == 1:
            return self.asked
        flag = torch.tensor(float(self.asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag > 0)


class Keeper(pl.Callback):
    """Saves the state of training, restores it, and runs the events of steps and epochs.

    Args:
        path: of the snapshot.
        stage: position in the recipe.
        every: least seconds between two saves inside an epoch; 0 = after every step.
        selection: its state travels in the snapshot.
        events: of the stage.
        interruption: whether the user asked to stop.
        run_event: runs one event at a moment.
        restored: the snapshot to go on from, or None.
        before: seconds and images of earlier stages.
        batches: batches of a whole epoch.
    """

    def __init__(
        self,
        path: Path,
        stage: int,
        every: float,
        selection: Selection,
        events: list[Schedule],
        interruption: Interruption,
        run_event: Callable[[Schedule, int, Any, Any], None],
        restored: Snapshot | None,
        before: tuple[float, int],
        batches: int,
    ) -> None:
        self.path, self.stage, self.every, self.batches = path, stage, every, batches
        self.selection, self.events, self.interruption = selection, events, interruption
        self.run_event, self.restored = run_event, restored
        self.seconds, self.images = before
        self.start_batch = restored.batch if restored is not None else 0
        self._clock = self._saved = time.monotonic()
        self._stop = False

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Put the optimiser, the counters and the events where they were."""
        assert isinstance(task, Task)
        self._clock = self._saved = time.monotonic()
        task.remembers = any(schedule.when == "step" for schedule in self.events)
        snapshot = self.restored
        if snapshot is None:
            return
        trainer.optimizers[0].load_state_dict(snapshot.optimizer)
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(snapshot.scheduler)
        trainer.precision_plugin.load_state_dict(snapshot.scaler)
        task.batches, task.counted = snapshot.progress["batches"], snapshot.progress["counted"]
        task.sums = dict(snapshot.progress["sums"])
        epochs = trainer.fit_loop.epoch_progress.current
        for count in ("ready", "started", "processed", "completed"):
            setattr(epochs, count, snapshot.epoch)
        steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        steps.total.ready = steps.total.completed = snapshot.step
        trainer.fit_loop.epoch_loop._batches_that_stepped = snapshot.step

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step events, then a save if it is time."""
        assert isinstance(task, Task)
        self.images += len(batch) * world_size()
        done = self.start_batch + batch_idx + 1
        accumulate = trainer.accumulate_grad_batches
        stepped = done % accumulate == 0 or done >= self.batches
        if stepped:
            for schedule in self.events:
                if schedule.due("step", trainer.global_step):
                    self.run_event(schedule, trainer.global_step, task, batch)
            task.answers.clear()
        if done >= self.batches or not stepped:
            return
        asked = self.interruption.agreed()
        if asked or time.monotonic() - self._saved >= self.every:
            self.save(trainer, task, trainer.current_epoch, done)
        if asked:
            raise Interrupted(f"stopped in stage '{task.name}', epoch {trainer.current_epoch + 1}; the state is saved")

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Epoch events, then a save. Runs after :class:`Selection`, so its verdict is in the snapshot."""
        assert isinstance(task, Task)
        epoch = trainer.current_epoch + 1
        self.start_batch = 0
        for schedule in self.events:
            if schedule.due("epoch", epoch):
                self.run_event(schedule, epoch, task, None)
        task.finish_epoch()
        finished = self.selection.stopped or epoch >= (trainer.max_epochs or 0)
        self.save(trainer, task, epoch, 0, finished)
        self._stop = self.interruption.agreed() and not finished

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Stop if the user asked at the end of the epoch before: only now are its losses in ``metrics.csv``."""
        assert isinstance(task, Task)
        if self._stop:
            raise Interrupted(f"stopped in stage '{task.name}' after epoch {trainer.current_epoch}; the state is saved")

    def save(self, trainer: pl.Trainer, task: Task, epoch: int, batch: int, done: bool = False) -> None:
        """Write the snapshot, in the first process only: all hold the same state."""
        now = time.monotonic()
        self.seconds, self._clock, self._saved = self.seconds + now - self._clock, now, now
        if not trainer.is_global_zero:
            return
        Snapshot(
            stage=self.stage,
            epoch=epoch,
            batch=batch,
            step=trainer.global_step,
            done=done,
            model=task.model.state_dict(),
            terms=task.terms.state_dict(),
            optimizer=trainer.optimizers[0].state_dict(),
            scheduler=trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            scaler=trainer.precision_plugin.state_dict(),
            selection=self.selection.state_dict(),
            events={s.label: s.event.state_dict() for s in self.events},
            progress={"batches": task.batches, "counted": task.counted, "sums": dict(task.sums)},
            seconds=self.seconds,
            images=self.images,
        ).save(self.path)
        self._saved = time.monotonic()
