"""The contract of events: what happens between optimiser steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry
from vitrarium.data.batch import Batch
from vitrarium.data.source import DataSource, Split
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.types import Output

EVENTS = Registry(
    "event",
    [
        "vitrarium.train.events.calibrate",
        "vitrarium.train.events.fit_readout",
        "vitrarium.train.events.health",
        "vitrarium.train.events.refit_readout",
        "vitrarium.train.events.shrink",
        "vitrarium.train.events.silence_unused",
        "vitrarium.train.events.slots",
        "vitrarium.train.events.project",
        "vitrarium.train.events.prune_prototypes",
        "vitrarium.train.events.drift",
        "vitrarium.train.events.tree",
        "vitrarium.train.events.align",
    ],
)

WHEN = ("start", "end", "epoch", "step")


class Loaders(Protocol):
    """Gives a loader of a split: clean, in order, without augmentation."""

    def __call__(self, split: str, shard: bool = False) -> Iterable[Batch]:
        """Batches of "train" or "val"; with ``shard`` the processes share the split, else each sees all of it."""


@dataclass
class Moment:
    """Where training stands when an event runs.

    Attributes:
        model: the classifier, in whatever mode it is; an event leaves the mode as it found it.
        source: the data.
        loaders: clean loaders by split.
        do: the stage's training intervention for a batch, or None: ``do(model, batch, generator)``.
        seed: for an event's own randomness; differs from moment to moment, the same after resuming.
        batch: the batch of the step that just ended; None at stage and epoch borders.
        log: ``log(name, value)`` to the run's loggers.
        progress: share of the stage's epochs that is done, in [0, 1].
        answers: what the optimiser step that just ended had seen and answered, one pair per accumulated batch, without
            graph and maps: no event needs to run the model on the batch again. Empty at stage and epoch borders.
        epoch: of the stage, from 0.
        runs: how often this event runs in an epoch (less than 1 where epochs are left out).
        examples: gives a split, for events that need single images of it; None = those of ``source``.
        shared: what events at the same border leave for each other; empty at every border, so that resuming does not
            depend on it.
    """

    model: TransparentClassifier
    source: DataSource
    loaders: Loaders
    do: Callable[[TransparentClassifier, Batch, torch.Generator], Any]
    seed: int
    batch: Batch | None = None
    log: Callable[[str, float], None] = lambda name, value: None
    progress: float = 0.0
    answers: Sequence[tuple[Batch, Output]] = ()
    epoch: int = 0
    runs: float = 1.0
    examples: Callable[[str], Split] | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> Split:
        """The images of "train" or "val", one by one and without augmentation."""
        return self.source.splits[name] if self.examples is None else self.examples(name)


class Event(ABC):
    """Something that happens at stage or epoch borders or after every n steps.

    Built as ``EVENTS.build({name, **options})``; ``when`` and ``every`` are read by :class:`Schedule`. State of its own
    goes through :meth:`state_dict`, plain containers and tensors only, and is kept in the checkpoint.

    Attributes:
        default_when: when it runs if the recipe does not say.
        calibrates: whether it settles which activations stand for "absent" and "present".
    """

    default_when: ClassVar[str] = "end"
    calibrates: ClassVar[bool] = False

    def check(self, model: TransparentClassifier) -> None:  # noqa: B027 - most events fit every model
        """Refuse a model that this event cannot work on, before anything is trained."""

    @abstractmethod
    def run(self, moment: Moment) -> None:
        """Do it."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most events keep no state
        """Inverse of :meth:`state_dict`."""


@dataclass
class Schedule:
    """An event and when it runs.

    Attributes:
        label: its key in the recipe.
        event: the event.
        when: "start" or "end" of the stage, "epoch" or "step" borders.
        every: run at every n-th border only.
    """

    label: str
    event: Event
    when: str
    every: int

    def due(self, when: str, count: int = 1) -> bool:
        """Whether it runs at the ``count``-th (from 1) border of kind ``when``."""
        return self.when == when and count % self.every == 0


def build_events(events: Mapping[str, Mapping[str, Any] | None]) -> list[Schedule]:
    """The events of a stage, in the order of the recipe."""
    schedules = []
    for label, given in events.items():
        options = {"name": label, **(given or {})}
        when, every = options.pop("when", None), options.pop("every", 1)
        event = EVENTS.build(options)
        when = when or event.default_when
        if when not in WHEN:
            raise UserError(f"event '{label}' cannot run at '{when}'", closest(when, WHEN))
        if not isinstance(every, int) or every < 1:
            raise UserError(f"event '{label}' cannot run every {every} {when}s", "give a whole number from 1")
        schedules.append(Schedule(label, event, when, every))
    return schedules
