"""A trained model as one file: where it goes, and how fast it answers there."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.export import ENDINGS, RUNNERS, Exported, export_model, image_shape
from vitrarium.runs import Run, is_run
from vitrarium.using import load

if TYPE_CHECKING:
    from collections.abc import Callable

# Rounds of the measurement, and seconds after which no further one begins.
ROUNDS, WARMUP, SECONDS = 50, 3, 5.0


def export(
    model: TransparentClassifier | str | Path,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    fold: bool = True,
    force: bool = False,
) -> Path:
    """Write a model as one file that runs without this package, checked against the model.

    Args:
        model: a model, or a run or model folder.
        format: "onnx" (for onnxruntime; read by :class:`OnnxModel`) or "torch" (``torch.export``).
        out: a file ending in ``.onnx`` or ``.pt2``, or a folder; default ``<run>/export``, and ``export`` where you are
            for what is no run.
        fold: whether norms and standardisation are folded into convolutions.
        force: whether to replace what is there.

    Returns:
        The file; a description in JSON with the same name lies beside it.

    Raises:
        UserError: an unknown format, missing packages, an unfinished run, a model that cannot be exported, a file that
            is there already.
    """
    return export_file(model, format, out, fold, force)[1].path


def export_file(
    model: TransparentClassifier | str | Path, format: str, out: str | Path | None, fold: bool, force: bool
) -> tuple[TransparentClassifier, Exported]:
    """As :func:`export`; returns the model and what is known about its file."""
    path = _target(model, format, out)
    if isinstance(model, str | Path):
        if is_run(model):
            Run(model).require_finished()
        model = load(model)
    return model, export_model(model, path, format, fold, force)


def latencies(model: TransparentClassifier, exported: Exported) -> tuple[float, float]:
    """Median milliseconds for one image, of the model as it is and of its file, asked in turn."""
    format = next(name for name, ending in ENDINGS.items() if ending == exported.path.suffix)
    run, units = RUNNERS[format](exported.path), torch.zeros(1, len(model.evidence.units))
    image = torch.rand(1, *image_shape(model))
    asked: tuple[Callable[[], Any], ...] = (lambda: model(image), lambda: run(image, units.bool(), units))
    taken: list[list[float]] = [[], []]
    began = time.perf_counter()
    with torch.no_grad():
        for turn in range(-WARMUP, ROUNDS):
            for ask, times in zip(asked, taken, strict=True):
                start = time.perf_counter()
                ask()
                if turn >= 0:
                    times.append((time.perf_counter() - start) * 1000)
            if turn >= 0 and time.perf_counter() - began > SECONDS:
                break
    first, second = (statistics.median(times) for times in taken)
    return first, second


def _target(model: TransparentClassifier | str | Path, format: str, out: str | Path | None) -> Path:
    """The file to write."""
    if format not in ENDINGS:
        raise UserError(f"there is no format '{format}'", closest(format, ENDINGS))
    if out is None:
        out = Path(model) / "export" if isinstance(model, str | Path) and is_run(model) else Path("export")
    out = Path(out)
    return out if out.suffix in ENDINGS.values() else out / f"model{ENDINGS[format]}"
