"""The state of training on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitrarium.configs.errors import UserError
from vitrarium.configs.files import whole_file


@dataclass
class Snapshot:
    """Everything that resuming needs; tensors and plain containers only.

    Attributes:
        stage: position of the stage in the recipe.
        epoch: epoch to go on with.
        batch: batch of that epoch to go on with (0 = its start).
        step: optimiser steps done in this stage.
        done: the stage's epochs are over (its last events may not have run yet).
        model: state of the classifier, auxiliary modules included.
        terms: state of the terms.
        optimizer: state of the optimiser.
        scheduler: state of the schedule.
        scaler: state of the loss scaler under 16-bit precision.
        selection: state of the choice of the best epoch.
        events: state of the events by label.
        progress: counters of the task (batches, sums of the epoch).
        seconds: training time so far.
        images: images seen so far.
    """

    stage: int
    epoch: int = 0
    batch: int = 0
    step: int = 0
    done: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    events: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0

    def save(self, path: Path) -> None:
        """Write beside and rename; the older snapshot stays until this one is complete."""
        try:
            with whole_file(path) as beside:
                torch.save({f: getattr(self, f) for f in asdict(Snapshot(0))}, beside)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the state of training could not be written to '{path}': {error}",
                "free some space or choose a folder you may write to, then go on with --resume",
            ) from error

    @staticmethod
    def load(path: Path) -> Snapshot:
        """Read a snapshot; anything but tensors and plain containers is refused, never executed."""
        try:
            return Snapshot(**torch.load(path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError, OSError, ValueError) as error:
            first = str(error).split("\n")[0]
            raise UserError(
                f"'{path}' is no checkpoint of Vitrarium or is damaged ({first})",
                "remove it to start from the last finished stage, or choose another run folder",
            ) from error
