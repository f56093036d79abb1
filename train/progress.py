"""What is seen while training runs."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class Bar(TQDMProgressBar):
    """A bar with the loss terms; one per epoch, named after the stage."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=5)
        self.stage = stage

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Reset the bar and name the stage."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(
            f"{self.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False
        )

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Without the version number that Lightning adds."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items


class Lines(pl.Callback):
    """One line per epoch, where there is no terminal to draw a bar on."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Write the line."""
        values = {**trainer.callback_metrics}
        said = "  ".join(f"{k.removeprefix('val/')} {float(v):.4f}" for k, v in values.items() if k.startswith("val/"))
        loss = float(values["loss"]) if "loss" in values else float("nan")
        sys.stderr.write(f"{self.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.4f}  {said}\n")
        sys.stderr.flush()


def build_progress(wanted: bool, stage: str) -> list[pl.Callback]:
    """A bar on a terminal, lines elsewhere, nothing if not wanted."""
    if not wanted:
        return []
    return [Bar(stage)] if sys.stderr.isatty() else [Lines(stage)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Lightning says about choices that are made on purpose here."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for about in (
                ".*LeafSpec.*",
                ".*number of training batches.*smaller than the logging interval.*",
                ".*does not have many workers.*",
                ".*module.s. in eval mode at the start of training.*",
                ".*GPU available but not used.*",
            ):
                warnings.filterwarnings("ignore", about)
            yield
    finally:
        logger.setLevel(level)
