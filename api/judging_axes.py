"""Units held against annotated concepts: of one run, and along the layers of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.module import DataModule
from vitrarium.eval.axes.judging import judge
from vitrarium.eval.axes.looking import AXES, Layer, layer_of, look_at_units
from vitrarium.eval.axes.report import AxesReport
from vitrarium.eval.axes.trajectories import (
    Trajectories,
    axis_numbers,
    choose_images,
    depth_of,
    percentiles,
)
from vitrarium.measuring import refuse_other_data
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.runs import Run


def axes(
    run: Run | str | Path,
    against: Run | str | Path | None = None,
    *,
    cut: str | None = None,
    reduction: str | None = None,
    split: str = "test",
    resamples: int = 1000,
    images: int = 8,
    importance: bool = True,
    root: str | Path | None = None,
) -> AxesReport:
    """How well the units of a run stand for annotated concepts; ``.write(FOLDER)`` makes tables, pictures, a page.

    Each unit's AUC for its concept stands beside the best single channel and a linear probe of a layer: both are
    chosen on training and validation images. A run whose units are no annotated concepts is judged by these alone.

    Args:
        run: a finished run on data with concepts.
        against: the run whose layer gives best filter and probe, a black box say; None = ``run`` itself.
        cut: the layer: a named cut or module path of that run's backbone. None = where the axes of ``run`` are, or the
            end of the backbone where it has none.
        reduction: of that layer's maps ("mean", "max", "positive_mean", "pool_max"); None = that of the axes. The one
            that does best on validation images is reported too.
        split: "test" or "val".
        resamples: of the intervals; 0 = none.
        images: top images shown of each axis; 0 = none.
        importance: also measure what the decision loses when an axis is shuffled.
        root: where the data lie now, if not where they were when it was trained.

    Raises:
        UserError: data without concepts, runs on different data, an unknown cut or reduction, numbers below 0.
    """
    for name, value in (("resamples", resamples), ("images", images)):
        if value < 0:
            raise UserError(f"{name}={value}", "give 0 or more")
    run = _finished(run, root)
    model, data, concepts = run.model, _data(run), run.source.concepts
    if concepts is None or not len(concepts):
        raise UserError(f"'{run.source.name}' has no concepts to hold units against", "choose a data set with concepts")
    refuse_other_data(model, run.source)
    rival = _rival(run, model, against, cut, root)
    judged = judge(
        model, data.loader, concepts, rival, split=split, reduction=reduction, resamples=resamples,
        importance=importance, seed=run.config["seed"],
    )  # fmt: skip
    changed = run.other_data()
    return AxesReport(
        judged, _title(run), rival.name, _image_of(data, split), images, run.source.pictures,
        [changed] if changed else [],
    )  # fmt: skip


def trajectories(
    runs: Sequence[Run | str | Path],
    images: Sequence[int] | None = None,
    *,
    concepts: tuple[str, str],
    split: str = "test",
    count: int = 6,
    root: str | Path | None = None,
) -> Trajectories:
    """How images move between two concepts along the layers at which runs are whitened.

    Args:
        runs: two or more runs with axes for both concepts, of one backbone and data set, cut at different places.
        images: positions in the split; None = a few by chance, of those that have the first concept, the second, both.
        concepts: their names.
        split: "test" or "val".
        count: how many images are chosen.
        root: where the data lie now.

    Raises:
        UserError: fewer than two runs, runs that do not fit together, a run without these axes, images out of range.
    """
    found = [_finished(run, root) for run in runs]
    models = _along(found)
    numbers = [axis_numbers(m, concepts, r.name) for r, m in models]
    first = models[0][0]
    data = _data(first)
    size = len(first.source.splits[split])
    wrong = [i for i in images or () if not 0 <= i < size]
    if wrong or count < 1 or (images is not None and not len(images)):
        raise UserError(
            f"images {wrong or list(images or ())} (count {count}) of a split of {size}",
            f"give positions from 0 to {size - 1}, or a count of 1 or more",
        )
    seen = [look_at_units(model, data.loader(split)) for _, model in models]
    chosen = list(images) if images is not None else _chosen(first, seen[0].truth, concepts, count)
    paths = torch.stack(
        [percentiles(s.said[:, units])[chosen] for s, units in zip(seen, numbers, strict=True)], 1  # type: ignore[index]
    )  # fmt: skip
    labels = [first.source.class_names[int(seen[0].labels[i])] for i in chosen]
    image_of = _image_of(data, split)
    return Trajectories(
        (concepts[0], concepts[1]), tuple(model.backbone.cut for _, model in models), tuple(chosen), tuple(labels),
        paths, [image_of(i) for i in chosen], f"{concepts[0]} and {concepts[1]}".replace("_", " "),
        first.source.pictures,
    )  # fmt: skip


def _chosen(run: Run, truth: Tensor, concepts: Sequence[str], count: int) -> list[int]:
    """Positions of a few images that have the concepts, where the data know them."""
    known = [] if run.source.concepts is None else list(run.source.concepts.names)
    unknown = [c for c in concepts if c not in known]
    if unknown:
        raise UserError(f"the data do not say which images have '{unknown[0]}'", "name the images: images=[0, 7, ...]")
    return choose_images(truth, [known.index(c) for c in concepts], count, run.config["seed"])


def _along(runs: Sequence[Run]) -> list[tuple[Run, TransparentClassifier]]:
    """Runs with their models in order of depth."""
    if len(runs) < 2:
        raise UserError(f"a trajectory goes over layers, and {len(runs)} run is given", "give two runs or more")
    for other in runs[1:]:
        _same_data(runs[0], other)
    models = [(run, run.model) for run in runs]
    kinds = [{k: v for k, v in run.config["backbone"].items() if k not in ("cut", "weights")} for run in runs]
    for run, kind in zip(runs, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(f"'{run.name}' and '{runs[0].name}' have different backbones", "give runs of one backbone")
        refuse_other_data(models[0][1], run.source)
    models.sort(key=lambda item: depth_of(item[1]))
    cuts = [model.backbone.cut for _, model in models]
    if len(set(cuts)) < len(cuts):
        raise UserError(f"two of the runs are cut at the same place: {', '.join(cuts)}", "give one run for each cut")
    return models


def _rival(
    run: Run, model: TransparentClassifier, against: Run | str | Path | None, cut: str | None, root: str | Path | None
) -> Layer:
    """The layer that is held against the units."""
    if against is None:
        # Cutting may shorten somebody's own network, so the layer is looked at in a copy of the model.
        layer, other = (layer_of(model) if cut is None else layer_of(run.model, cut)), run
    else:
        other, there = _finished(against, root), cut
        _same_data(run, other)
        rival = other.model
        refuse_other_data(rival, run.source)
        if there is None and AXES in model.evidence.gives:
            there = model.backbone.cut
        layer = layer_of(rival, there)
    return replace(layer, name=f"{other.name} at {layer.name}")


def _same_data(run: Run, other: Run) -> None:
    ours, theirs = run.source, other.source
    if ours.fingerprint == theirs.fingerprint:
        return
    what = f"'{theirs.name}'" if theirs.name != ours.name else f"'{ours.name}' with other files or options"
    raise UserError(
        f"'{other.name}' was trained on {what}, '{run.name}' on '{ours.name}'",
        "compare runs of the same data set, with the same options (size, fraction, ...)",
    )


def _finished(run: Run | str | Path, root: str | Path | None) -> Run:
    if root is not None:
        run = Run(run.folder, run.backbone, root) if isinstance(run, Run) else Run(run, root=root)
    return (run if isinstance(run, Run) else Run(run)).require_finished()


def _data(run: Run) -> DataModule:
    return run.data(run.config["evaluation"]["batch_size"])


def _title(run: Run) -> str:
    return f"{run.config['model']['title'] or run.name} on {run.source.name}"


def _image_of(data: DataModule, split: str) -> Callable[[int], np.ndarray]:
    return lambda position: np.asarray(data.split(split).sample(position).image)
