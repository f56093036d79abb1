"""How many units a model has, and how many it takes for a decision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import chunks, moved
from vitrarium.eval.metrics.base import METRICS, Measure
from vitrarium.eval.metrics.parts.sighting import USED, used_units
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.types import Evidence


def _need_threshold(metric: str, threshold: float) -> float:
    if not threshold >= 0:
        raise UserError(f"{metric} with threshold={threshold}", "give a number of at least 0")
    return threshold


@METRICS.register("global_size")
class GlobalSize(Measure):
    """Number of units that a model has in use: alive, and with a weight in the readout where it has weights."""

    fields = ("model",)
    category = "compactness"
    higher_is_better = False

    @property
    def choices(self) -> dict[str, Any]:
        """Which units count."""
        return {"units": f"alive, a weight above {USED:g} where the readout has weights"}

    def of(self, model: TransparentClassifier) -> int:
        """The count for a model."""
        return int(used_units(model).sum())


@METRICS.register("local_size")
class LocalSize(Measure):
    """Mean number of units that say anything for or against the class that an image is given.

    Of one class: a pool of prototypes is not counted whole because some other class uses the rest of it (papers differ
    here).

    Args:
        threshold: a contribution to the score of the predicted class counts above it, by absolute value.
    """

    fields = ("model", "evidence")
    category = "compactness"
    higher_is_better = False

    def __init__(self, threshold: float = 1e-3) -> None:
        self.threshold = _need_threshold("local_size", threshold)

    @property
    def choices(self) -> dict[str, Any]:
        """What counts, and for which class."""
        return {"counted": f"units with |contribution| > {self.threshold:g}", "class": "predicted"}

    def each(self, model: TransparentClassifier, evidence: Evidence, logits: Tensor, chunk: int = 4096) -> Tensor:
        """The number for each of N images (N,) float64 from cached evidence on the CPU."""
        device, sizes = model.evidence.alive.device, []
        with evaluating(model):
            for rows in chunks(len(logits), chunk):
                given = model.contributions(moved(evidence[rows], device), logits[rows].argmax(-1).to(device))
                said = (given.units.abs() > self.threshold) & model.evidence.alive
                sizes.append(said.sum(1).double().cpu())
        return torch.cat(sizes)


@METRICS.register("head_sparsity")
class HeadSparsity(Measure):
    """Share of the weights between units and classes that are as good as 0; entries of dead units are left out.

    Args:
        threshold: a weight counts as 0 up to it, by absolute value.
    """

    fields = ("model",)
    category = "compactness"
    higher_is_better = True

    def __init__(self, threshold: float = 1e-3) -> None:
        self.threshold = _need_threshold("head_sparsity", threshold)

    @property
    def choices(self) -> dict[str, Any]:
        """What counts as 0."""
        return {"zero": f"|weight| <= {self.threshold:g}", "weights": "of entries whose unit is alive"}

    def of(self, model: TransparentClassifier) -> float | None:
        """The share for a model; None where the readout has no such weights. NaN if no unit is alive."""
        weight = model.readout.effective_weight
        if weight is None:
            return None
        unit_of = model.evidence.unit_of
        living = model.evidence.alive[unit_of.clamp_min(0)] & (unit_of >= 0)
        return float((weight.detach()[:, living].abs() <= self.threshold).double().mean())


@METRICS.register("path_length")
class PathLength(Measure):
    """Mean number of questions that are asked on the way to an answer, of readouts that ask one after the other."""

    fields = ("model", "evidence")
    category = "compactness"
    higher_is_better = False

    @property
    def choices(self) -> dict[str, Any]:
        """How answers are found."""
        return {"decisions": "as the readout makes them in evaluation"}

    def each(self, model: TransparentClassifier, evidence: Evidence, chunk: int = 4096) -> Tensor | None:
        """The number for each of N images (N,) float64 from cached evidence on the CPU; None for other readouts."""
        device, lengths = model.evidence.alive.device, []
        with evaluating(model):
            for rows in chunks(len(evidence), chunk):
                found = model.readout.path_length(moved(evidence[rows], device))
                if found is None:
                    return None
                lengths.append(found.double().cpu())
        return torch.cat(lengths)
