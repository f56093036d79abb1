"""One pass over a data set: the backbone runs once, everything later works on what it gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating
from vitrarium.models.types import Evidence, Output


@dataclass
class Collected:
    """What a model says of N images, on the CPU.

    Attributes:
        evidence: of all images, without maps.
        logits: (N, C).
        labels: (N,) int64.
        concepts: (N, K) truth in [0, 1], NaN where nobody knows; None if the data has no concepts.
        index: (N,) int64, position of each image in its split.
        image_shape: (channels, height, width) of the images.
    """

    evidence: Evidence
    logits: Tensor
    labels: Tensor
    concepts: Tensor | None
    index: Tensor
    image_shape: tuple[int, int, int] = (3, 0, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Collected:
        """Some of the images (a slice, an index tensor or a (N,) bool mask)."""
        return replace(
            self,
            evidence=self.evidence[rows],
            logits=self.logits[rows],
            labels=self.labels[rows],
            concepts=None if self.concepts is None else self.concepts[rows],
            index=self.index[rows],
        )

    def output(self) -> Output:
        """What the model answered, as one :class:`Output`."""
        return Output(self.logits, self.evidence)


def collect(
    model: TransparentClassifier,
    loader: Iterable[Batch],
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[Output, Batch], None] | None = None,
) -> Collected:
    """Run the model once over a loader and keep everything but maps and features.

    Args:
        model: any classifier of the zoo; it stays on its device and gets its modes back.
        loader: batches of one split, in any order.
        device: where to run; default: where the model is. Given, the model is moved there and stays.
        progress: called after each batch with the number of images seen so far.
        watch: called with each answer, its maps and features still there, and its batch, which lies where the model
            does and has positions.

    Raises:
        UserError: no image at all, or a model that answers NaN or infinity.
    """
    if device is not None:
        model.to(device)
    at = model.evidence.alive.device
    parts: list[Collected] = []
    seen = 0
    with evaluating(model):
        for batch in loader:
            if batch.index is None:
                batch = replace(batch, index=torch.arange(seen, seen + len(batch)))
            batch = batch.to(at, non_blocking=True)
            output = model.on(batch)
            parts.append(_keep(output, batch))
            if watch is not None:
                watch(output, batch)
            seen += len(batch)
            if progress is not None:
                progress(seen)
        if not parts:
            raise UserError("the loader gave no image", "check the split, and drop_last with a batch larger than it")
        return _refuse_nan(_join(parts))


def respond(model: TransparentClassifier, evidence: Evidence, do: Intervention | None = None) -> Output:
    """The model's answer to cached evidence under an intervention, back on the CPU; call it :func:`evaluating`."""
    at = model.evidence.alive.device
    if at.type == "cpu":
        return model.answer(evidence, do)
    output = model.answer(moved(evidence, at), None if do is None else do.to(at))
    return Output(output.logits.cpu(), moved(output.evidence, "cpu"))


def intervene(model: TransparentClassifier, evidence: Evidence, do: Intervention) -> Evidence:
    """Cached evidence under an intervention, back on the CPU; call it :func:`evaluating`."""
    at = model.evidence.alive.device
    if at.type == "cpu":
        return model.evidence.intervene(evidence, do)
    return moved(model.evidence.intervene(moved(evidence, at), do.to(at)), "cpu")


def moved(evidence: Evidence, device: torch.device | str) -> Evidence:
    """The evidence on another device."""
    return evidence.map_tensors(lambda tensor, dim: tensor.to(device))


def answer(
    model: TransparentClassifier, evidence: Evidence, do: Intervention | None = None, chunk: int = 4096
) -> Tensor:
    """Logits (N, C) for cached evidence under an intervention, in chunks of rows; the backbone does not run.

    Args:
        model: the classifier the evidence comes from.
        evidence: of N images.
        do: what is set on which image, or None.
        chunk: most rows at a time.
    """
    with evaluating(model):
        logits = []
        for rows in chunks(len(evidence), chunk):
            logits.append(respond(model, evidence[rows], None if do is None else do[rows]).logits)
        return torch.cat(logits)


def chunks(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` rows that cover ``count`` rows."""
    if size < 1:
        raise UserError(f"chunk={size}", "give a number of rows of at least 1")
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _keep(output: Output, batch: Batch) -> Collected:
    """The part of one batch that is kept, on the CPU."""
    assert batch.index is not None
    return Collected(
        evidence=output.evidence.without_maps().map_tensors(lambda tensor, dim: tensor.detach().cpu()),
        logits=output.logits.detach().float().cpu(),
        labels=batch.label.cpu(),
        concepts=None if batch.concepts is None else batch.concepts.cpu(),
        index=batch.index.cpu(),
        image_shape=tuple(batch.image.shape[1:]),  # type: ignore[arg-type]
    )


def _join(parts: list[Collected]) -> Collected:
    first = parts[0]
    return Collected(
        evidence=Evidence.cat([p.evidence for p in parts]),
        logits=torch.cat([p.logits for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        concepts=None if first.concepts is None else torch.cat([p.concepts for p in parts]),  # type: ignore[misc]
        index=torch.cat([p.index for p in parts]),
        image_shape=first.image_shape,
    )


def _refuse_nan(collected: Collected) -> Collected:
    for what, values in (("logits", collected.logits), ("probabilities", collected.evidence.probabilities)):
        bad = None if values is None else (~torch.isfinite(values)).any(1).nonzero()
        if bad is not None and len(bad):
            raise UserError(
                f"the model's {what} are not finite for {len(bad)} of {len(collected)} images "
                f"(the first is number {int(collected.index[bad[0, 0]])} of the split)",
                "its weights diverged: train again with a smaller learning rate",
            )
    return collected
