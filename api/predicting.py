"""Classify any number of images in batches, by several threads, with a few batches in memory."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prediction import Prediction, Predictions, predict_batch, preprocessing_of, stack_pixels
from vitrarium.using import load

Decoded = np.ndarray | UserError


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


Finished = tuple[Answered | None, UserError | None]
"""The answers to a group, if there are any, and the image that ends everything, if there is one."""


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
        images: paths, PIL images or arrays; taken as they are needed, at most a batch ahead for each worker.
        do: corrections by name, for all images.
        batch_size: images that go through the model together.
        workers: threads that decode and, where the model runs on the processor, answer; None = one for each core.
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
        model.evidence.read_corrections(do)
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
    def answer(group: list[Any], decoded: list[Decoded]) -> Finished:
        return _answer(model, group, decoded, do, strict, contributions)

    preprocessing = preprocessing_of(model)
    on_cores = model.evidence.alive.device.type == "cpu"
    if eager:
        finished = _decoded_first(_arriving(images, batch_size), preprocessing, answer, workers, ahead=0)
    elif on_cores and not any(module.training for module in model.modules()):
        finished = _side_by_side(_in_batches(images, batch_size), preprocessing, answer, workers)
    else:
        # Beside an accelerator the cores decode the next batch meanwhile.
        finished = _decoded_first(_in_batches(images, batch_size), preprocessing, answer, workers, int(not on_cores))
    with contextlib.closing(finished):
        for answered, broken in finished:
            if answered is not None:
                yield answered
            if broken is not None:
                raise broken


def _answer(
    model: TransparentClassifier,
    group: list[Any],
    decoded: list[Decoded],
    do: Mapping[str, Any] | None,
    strict: bool,
    contributions: bool,
) -> Finished:
    """The answers to a group; if ``strict``, to what comes before the first image that cannot be read, and that one."""
    broken: UserError | None = None
    for place, found in enumerate(decoded if strict else ()):
        if isinstance(found, UserError):
            broken, group, decoded = found, group[:place], decoded[:place]
            break
    if not group:
        return None, broken
    arrays = [d for d in decoded if isinstance(d, np.ndarray)]
    said = predict_batch(model, stack_pixels(model, arrays), do, contributions) if arrays else None
    return Answered(group, [str(d) if isinstance(d, UserError) else None for d in decoded], said), broken


def _side_by_side(
    groups: Iterator[list[Any]],
    preprocessing: Preprocessing,
    answer: Callable[[list[Any], list[Decoded]], Finished],
    workers: int,
) -> Generator[Finished]:
    """Each worker decodes a group and answers it, with its share of torch's threads.

    Several workers with one thread each do more than one team of threads: nobody waits for the others at the end of
    every layer, and one decodes while another answers.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, "predict", initializer=torch.set_num_threads, initargs=(share,))
    waiting: deque[Future[Finished]] = deque()

    def work(group: list[Any]) -> Finished:
        return answer(group, _decode(preprocessing, group))

    try:
        for group in groups:
            waiting.append(pool.submit(work, group))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # The number belongs to a thread with OpenMP, to the whole process elsewhere.
        torch.set_num_threads(threads)


def _decoded_first(
    groups: Iterator[list[Any]],
    preprocessing: Preprocessing,
    answer: Callable[[list[Any], list[Decoded]], Finished],
    workers: int,
    ahead: int,
) -> Generator[Finished]:
    """All workers decode a group, then this thread answers it; ``ahead`` groups are decoded in advance."""
    pool = ThreadPoolExecutor(workers, "decode")
    waiting: deque[tuple[list[Any], list[Future[list[Decoded]]]]] = deque()
    try:
        for group in groups:
            # A few images a task: to hand over each alone costs as much as to open a small file.
            size = min(8, -(-len(group) // workers))
            parts = [group[i : i + size] for i in range(0, len(group), size)]
            waiting.append((group, [pool.submit(_decode, preprocessing, part) for part in parts]))
            if len(waiting) > ahead:
                yield _ready(answer, *waiting.popleft())
        while waiting:
            yield _ready(answer, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(
    answer: Callable[[list[Any], list[Decoded]], Finished], group: list[Any], tasks: list[Future[list[Decoded]]]
) -> Finished:
    return answer(group, [pixels for task in tasks for pixels in task.result()])


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
