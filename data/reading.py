"""All examples of a split in order, by several processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Sample
from vitrarium.data.source import Split

T = TypeVar("T")

Read = Callable[[Split, int], T]
"""What is asked of one example of a split."""

TRIAL = 32
"""Examples that are read in this process to see how long the rest would take."""

WORTH = 4.0
"""Seconds from which on further processes are started."""


def in_order(split: Split) -> Iterator[Sample]:
    """Every sample of a split in order; its ``index`` is its position.

    Raises:
        UserError: an example that cannot be read, whichever process met it.
    """
    return each(split, _sample)


def each(split: Split, read: Read[T]) -> Iterator[T]:
    """``read(split, index)`` for every example of a split, in order.

    Raises:
        UserError: what ``read`` raises, whichever process met it.
    """
    count, began = len(split), time.monotonic()
    first = min(count, TRIAL)
    for index in range(first):
        yield read(split, index)
    remaining = (time.monotonic() - began) / max(first, 1) * (count - first)
    workers = _workers() if remaining > WORTH else 0
    if workers < 2:
        for index in range(first, count):
            yield read(split, index)
    else:
        yield from _by_processes(split, read, range(first, count), workers)


def _sample(split: Split, index: int) -> Sample:
    """One sample; an error that does not name its example is told which one it was."""
    try:
        sample = split.sample(index)
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"while reading example {index}: {split.origin(index)}")
        raise
    sample.index = index
    return sample


def _workers() -> int:
    """How many processes may help: none where they cannot be forked, or in a process that may have no children."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    return min(len(os.sched_getaffinity(0)), 8)


class _Chunks(Dataset[Any]):
    """Reads lists of indices; hands a user's mistake back as a value: an exception would arrive as a traceback."""

    def __init__(self, split: Split, read: Read[Any]) -> None:
        self.split, self.read = split, read

    def __getitems__(self, indices: Sequence[int]) -> list[Any] | UserError:
        try:
            return [self.read(self.split, index) for index in indices]
        except UserError as error:
            return UserError(error.problem, error.cure)


def _by_processes(split: Split, read: Read[T], indices: range, workers: int) -> Iterator[T]:
    import torch

    chunks = [list(indices[start : start + TRIAL]) for start in range(0, len(indices), TRIAL)]
    loader = DataLoader(
        _Chunks(split, read),
        batch_sampler=chunks,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="fork",
        worker_init_fn=single_threaded,
        # A generator of its own: drawing the workers' seeds must not move the global random state.
        generator=torch.Generator(),
    )
    for chunk in loader:
        if isinstance(chunk, UserError):
            raise chunk
        yield from chunk


def _as_it_is(chunk: Any) -> Any:
    return chunk


def single_threaded(worker: int = 0) -> None:
    """Keep the libraries of a worker process from starting threads of their own: the workers are the threads."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
