"""What an answer costs in time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from vitrarium.configs.errors import UserError
from vitrarium.eval.metrics.base import METRICS, Measure
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating


def latencies(
    model: TransparentClassifier, shape: tuple[int, int, int], batch: int, repeats: int, warmup: int
) -> list[float]:
    """Milliseconds of single calls of the model on random pixels.

    Args:
        model: on the device to be timed.
        shape: (channels, height, width) of an image.
        batch: images per call.
        repeats: calls that are timed.
        warmup: calls before that.
    """
    device = model.evidence.alive.device
    pixels = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    taken: list[float] = []
    with evaluating(model):
        for call in range(warmup + repeats):
            _wait(device)
            start = time.perf_counter()
            model(pixels)
            _wait(device)
            if call >= warmup:
                taken.append((time.perf_counter() - start) * 1000)
    return taken


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@METRICS.register("latency_ms")
class Latency(Measure):
    """Median milliseconds from pixels to logits, for a whole batch.

    Args:
        batch: images per call.
        repeats: calls that are timed.
        warmup: calls before that.
    """

    fields = ("model",)
    category = "cost"
    higher_is_better = False

    def __init__(self, batch: int = 1, repeats: int = 30, warmup: int = 5) -> None:
        if batch < 1 or repeats < 1 or warmup < 0:
            raise UserError(
                f"latency_ms with batch={batch}, repeats={repeats}, warmup={warmup}",
                "give batch and repeats of at least 1 and warmup of at least 0",
            )
        self.batch, self.repeats, self.warmup = batch, repeats, warmup

    @property
    def choices(self) -> dict[str, Any]:
        """What was timed and with how many threads."""
        return {
            "batch": self.batch,
            "repeats": self.repeats,
            "warmup": self.warmup,
            "statistic": "median",
            "threads": torch.get_num_threads(),
        }

    def of(self, model: TransparentClassifier, shape: tuple[int, int, int]) -> float:
        """The median for a model on images of ``shape`` (channels, height, width)."""
        return statistics.median(latencies(model, shape, self.batch, self.repeats, self.warmup))
