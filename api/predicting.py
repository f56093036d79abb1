"""Classify any number of images: decoded by several threads, answered in batches, a few of which are in memory."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prediction import Prediction, Predictions, predict_batch, preprocessing_of, stack_pixels
from vitrarium.using import load

Decoded = np.ndarray | UserError
# Batches that are decoded at a time where the model runs on the same cores.
TOGETHER = 4


@dataclass
class Answer:
    """What a model says of one of many images.

    Attributes:
        image: as it was given.
        prediction: None where the image could not be read.
        error: why not, or None.
    """

    image: Any
    prediction: Prediction | None
    error: str | None = None


@dataclass
class Answered:
    """What a model says of some consecutive images; iterating gives one :class:`Answer` each.

    Attributes:
        images: as they were given, at least one.
        errors: for each image, why it could not be read, or None.
        predictions: of those that could be read, in order; None where there are none.
    """

    images: list[Any]
    errors: list[str | None]
    predictions: Predictions | None

    def __iter__(self) -> Iterator[Answer]:
        row = 0
        for image, error in zip(self.images, self.errors, strict=True):
            if error is None and self.predictions is not None:
                yield Answer(image, self.predictions[row])
                row += 1
            else:
                yield Answer(image, None, error)


def predict_many(
    model: TransparentClassifier | str | Path,
    images: Iterable[Any],
    do: Mapping[str, Any] | None = None,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    eager: bool = False,
    strict: bool = False,
    fold: bool = True,
) -> Iterator[Answer]:
    """Classify images one after the other, in order, with memory for a few batches; :func:`predict_batches` by image.

    Args:
        model: a model, or the folder of one.
        images: paths, PIL images or arrays; taken as they are needed, at most four batches ahead.
        do: corrections by name, for all images.
        batch_size: images that go through the model together.
        workers: threads that decode; None = one for each core.
        eager: answer at once what has arrived, rather than wait for a whole batch: for images that come slowly.
        strict: raise the first image that cannot be read, rather than give an answer with an ``error``.
        fold: answer with a copy of the model in which everything is folded that can be
            (:meth:`TransparentClassifier.deploy`): faster, with the same answers up to rounding.

    Example:
        >>> for answer in predict_many("runs/cbm", Path("photos").glob("*.jpg")):  # doctest: +SKIP
        ...     print(answer.image, answer.prediction.label)
    """
    batches = predict_batches(
        model, images, do, batch_size=batch_size, workers=workers, eager=eager, strict=strict, fold=fold
    )  # fmt: skip
    return (answer for batch in batches for answer in batch)


def predict_batches(
    model: TransparentClassifier | str | Path,
    images: Iterable[Any],
    do: Mapping[str, Any] | None = None,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    eager: bool = False,
    strict: bool = False,
    fold: bool = True,
    contributions: bool = True,
) -> Iterator[Answered]:
    """The batches behind :func:`predict_many`, as arrays.

    Args:
        model: see :func:`predict_many`; so are all others but the last.
        images: see there.
        do: see there.
        batch_size: see there.
        workers: see there.
        eager: see there.
        strict: see there.
        fold: see there.
        contributions: whether to ask the readout for them.

    Raises:
        UserError: at once for a correction that cannot be made or options below 1; later for images, if ``strict``.
    """
    model = load(model) if isinstance(model, str | Path) else model
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", "give a whole number of at least 1")
    if do:
        model.intervention(do)
    if fold and model.deploy_report is None:
        model = model.deploy()
    return _batches(model, images, do, batch_size, workers or cores(), eager, strict, contributions)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(
    model: TransparentClassifier,
    images: Iterable[Any],
    do: Mapping[str, Any] | None,
    batch_size: int,
    workers: int,
    eager: bool,
    strict: bool,
    contributions: bool,
) -> Iterator[Answered]:
    preprocessing = preprocessing_of(model)
    groups = _arriving(images, batch_size) if eager else _in_batches(images, batch_size)
    on_cores = model.evidence.alive.device.type == "cpu"
    # Beside an accelerator the cores are free to decode the next batch. Where the model runs on the cores itself, two
    # teams of threads would only fight over them: there decoding and answering take turns, some batches at a time.
    together, ahead = (TOGETHER if on_cores and not eager else 1), (0 if on_cores or eager else 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for group, decoded in _decoded(groups, preprocessing, pool, workers, together, ahead):
            broken = next((i for i, d in enumerate(decoded) if isinstance(d, UserError)), None) if strict else None
            if broken != 0:
                group, kept = group[:broken], decoded[:broken]
                arrays = [d for d in kept if isinstance(d, np.ndarray)]
                said = predict_batch(model, stack_pixels(model, arrays), do, contributions) if arrays else None
                yield Answered(group, [str(d) if isinstance(d, UserError) else None for d in kept], said)
            if broken is not None:
                raise decoded[broken]  # type: ignore[misc]


def _decoded(
    groups: Iterator[list[Any]],
    preprocessing: Preprocessing,
    pool: ThreadPoolExecutor,
    workers: int,
    together: int,
    ahead: int,
) -> Iterator[tuple[list[Any], list[Decoded]]]:
    """Groups of images with their pixels; ``together`` of them are decoded at a time, ``ahead`` times in advance."""
    waiting: deque[tuple[list[list[Any]], list[Future[list[Decoded]]]]] = deque()
    for several in _in_batches(groups, together):
        images = [image for group in several for image in group]
        # A few images a task: to hand over each alone costs as much as to open a small file.
        size = min(8, -(-len(images) // workers))
        tasks = [pool.submit(_decode, preprocessing, images[i : i + size]) for i in range(0, len(images), size)]
        waiting.append((several, tasks))
        if len(waiting) > ahead:
            yield from _ready(*waiting.popleft())
    while waiting:
        yield from _ready(*waiting.popleft())


def _ready(groups: list[list[Any]], tasks: list[Future[list[Decoded]]]) -> Iterator[tuple[list[Any], list[Decoded]]]:
    decoded = [pixels for task in tasks for pixels in task.result()]
    for group in groups:
        yield group, decoded[: len(group)]
        decoded = decoded[len(group) :]


def _decode(preprocessing: Preprocessing, images: list[Any]) -> list[Decoded]:
    found: list[Decoded] = []
    for image in images:
        try:
            found.append(preprocessing.pixels(image))
        except UserError as error:
            found.append(error)
    return found


def _in_batches(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for image in images:
        group.append(image)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _arriving(images: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """What has arrived since the last group, at least one image: a thread waits for further ones meanwhile."""
    arrived: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=most)
    left = threading.Event()

    def feed() -> None:
        try:
            for image in images:
                arrived.put(("image", image))
                if left.is_set():
                    return
            arrived.put(("end", None))
        except Exception as error:  # to be raised where the images are used
            arrived.put(("error", error))

    threading.Thread(target=feed, daemon=True).start()
    try:
        while True:
            kinds = [arrived.get()]
            while len(kinds) < most and not arrived.empty():
                kinds.append(arrived.get())
            group = [image for kind, image in kinds if kind == "image"]
            if group:
                yield group
            if kinds[-1][0] == "error":
                raise kinds[-1][1]
            if kinds[-1][0] == "end":
                return
    finally:
        left.set()
        # Room for the thread to put down what it holds, and see that it may go.
        while not arrived.empty():
            arrived.get()
