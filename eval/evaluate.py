"""Everything there is to measure of one model on one split, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.axes.records import axis_records
from vitrarium.eval.collect import Collected, collect
from vitrarium.eval.interventions import POLICIES, Curve, Policy, annotator, plot_curves
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.human import human_agreement
from vitrarium.eval.metrics.resampling import Bootstrap, Interval
from vitrarium.eval.parts import PartsWatch
from vitrarium.eval.records import Record, write_records, write_table
from vitrarium.eval.risk_coverage import COLUMNS as RISK_COLUMNS
from vitrarium.eval.risk_coverage import RiskCurve, curve_rows, plot_risk_coverage, selective_records
from vitrarium.eval.scorecard import (
    Scorecard,
    class_rows,
    concept_records,
    concept_rows,
    intervention_records,
    task_records,
)
from vitrarium.eval.self_explaining import self_explaining_records
from vitrarium.eval.sizes import size_records
from vitrarium.models.classifier import TransparentClassifier

CURVE_COLUMNS = (
    "run", "preset", "family", "data", "split", "scope", "seed",
    "policy", "budget", "cost", "accuracy", "low", "high", "sd", "trials",
)  # fmt: skip
LATENCY_BATCHES = {1: 30, 64: 8}


class LoaderFor(Protocol):
    """Gives the batches of a split, unchanged or as a named degradation shows them."""

    def __call__(self, split: str, degradation: str | None, /) -> Iterable[Batch]:
        """Batches of ``split``, in any order; ``index`` says which image each row is."""


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        records: one number each.
        curve_rows: rows of ``curves.csv``.
        class_rows: rows of ``per_class.csv``.
        concept_rows: rows of ``per_concept.csv``.
        curves: curves by scope, for pictures.
        risk_rows: rows of ``risk_coverage.csv``.
        risks: risk-coverage curves, one per scope.
        notes: what could not be measured, and why.
        collected: the undegraded answers, for whoever wants to look further.
    """

    records: list[Record]
    curve_rows: list[dict[str, Any]] = field(default_factory=list)
    class_rows: list[dict[str, Any]] = field(default_factory=list)
    concept_rows: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    risk_rows: list[dict[str, Any]] = field(default_factory=list)
    risks: list[RiskCurve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    collected: Collected | None = None

    def value(self, metric: str, scope: str = "all", **choices: Any) -> float:
        """The number of a metric in a scope, picked by its choices where there are several.

        Raises:
            UserError: none or several fit.
        """
        fit = [
            r
            for r in self.records
            if r.metric == metric and r.scope == scope and all(r.choices.get(k) == v for k, v in choices.items())
        ]
        if len(fit) != 1:
            raise UserError(
                f"{len(fit)} records of '{metric}' in scope '{scope}' with {choices}", "name metric, scope and choices"
            )
        return fit[0].value

    def write(self, folder: str | Path) -> Path:
        """Write tables and picture into ``folder``; each file appears whole, ``results.csv`` last.

        ``results.csv``, ``curves.csv``, ``curves.png``, ``risk_coverage.csv``, ``risk_coverage.png``,
        ``per_class.csv``, ``per_concept.csv``; those of an earlier evaluation that no longer apply are removed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {
            "curves.csv": (self.curve_rows, CURVE_COLUMNS),
            "risk_coverage.csv": (self.risk_rows, RISK_COLUMNS),
            "per_class.csv": (self.class_rows, None),
            "per_concept.csv": (self.concept_rows, list(dict.fromkeys(k for row in self.concept_rows for k in row))),
        }
        for name, (rows, columns) in tables.items():
            if rows:
                write_table(folder / name, rows, columns)
            else:
                (folder / name).unlink(missing_ok=True)
        title = "{0.preset} on {0.data}, {0.split} split".format(self.records[0])
        pictures: dict[str, tuple[Callable[..., Path], Any]] = {
            "curves.png": (plot_curves, self.curves),
            "risk_coverage.png": (plot_risk_coverage, self.risks),
        }
        for name, (draw, curves) in pictures.items():
            if curves:
                draw(curves, folder / name, title)
            else:
                (folder / name).unlink(missing_ok=True)
        write_records(folder / "results.csv", self.records)
        return folder


def evaluate(
    model: TransparentClassifier,
    loader_for: LoaderFor,
    *,
    identity: Mapping[str, Any],
    split: str = "test",
    degradations: Sequence[str] = (),
    policies: Sequence[str | Mapping[str, Any]] = ("random", "uncertainty"),
    trials: int = 10,
    leaked: np.ndarray | Tensor | None = None,
    second: np.ndarray | Tensor | None = None,
    parts: Sequence[str] = (),
    bootstrap: int = 1000,
    device: torch.device | str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Evaluation:
    """Measure a model on a split: task, calibration, concepts, interventions, parts, compactness, cost.

    Scopes: "all"; "without duplicates"; one per degradation; "second annotator" (the images that one saw, corrected by
    his or her answers); "class:NAME"; "concept:NAME" (a group or a single concept); "floor: ..." (what prototypes are
    held against, see :mod:`vitrarium.eval.floors`). What a model has not, is not measured: a black box has no concept
    and no intervention records.

    Args:
        model: any classifier of the zoo.
        loader_for: ``loader_for(split, degradation or None)`` gives batches.
        identity: run, preset, family, data, seed; the seed also seeds the random orders.
        split: which split; what is chosen must have been chosen before "test" is opened.
        degradations: names of test-time degradations ("grey", "pixels16").
        policies: names, or ``{name, **options}``.
        trials: random orders per policy with chance.
        leaked: (split size,) bool by position in the split: exact duplicates of images in other splits.
        second: (split size, K) answers of a second annotator by position in the split, NaN where there is none.
        parts: names of the annotated parts.
        bootstrap: resamples of the intervals; 0 = none.
        device: where to run; default: where the model is.
        progress: called with the scope and the number of images seen.

    Raises:
        UserError: an unknown policy, an identity with gaps, tables that do not fit the split, answers that are NaN.
    """
    card = Scorecard(model, identity, split)
    chosen = _policies(policies)
    watch = PartsWatch(card, lambda name: loader_for(name, None), parts)
    collected = _collect(card, loader_for, None, device, progress, watch)
    fitting = _fitting(card, chosen, collected)
    boot = Bootstrap(len(collected), bootstrap)
    _measure(card, "all", collected, fitting, boot, trials)
    classes, concepts = class_rows(card, collected, boot), concept_rows(card, collected, boot)
    axis_records(card, collected, boot)
    self_explaining_records(card, collected, lambda name: loader_for(name, None), boot)
    watch.file(bootstrap)
    size_records(card, collected, boot)
    _cost(card, collected)
    if leaked is not None:
        kept = ~torch.as_tensor(_by_position(leaked, collected, "leaked")).bool()
        if not bool(kept.all()):
            clean = collected[kept]
            _measure(card, "without duplicates", clean, fitting, Bootstrap(len(clean), bootstrap), trials)
    if second is not None and card.concepts is not None:
        answers = torch.as_tensor(_by_position(second, collected, "second")).float()
        _second_annotator(card, collected, answers, fitting, bootstrap, trials, concepts)
    for name in degradations:
        degraded = _collect(card, loader_for, name, device, progress)
        _measure(card, name, degraded, fitting, Bootstrap(len(degraded), bootstrap), trials)
    risk_rows = curve_rows(card, card.risks)
    return Evaluation(
        card.records, card.curve_rows, classes, concepts, card.curves, risk_rows, card.risks, card.notes, collected
    )


def _policies(policies: Sequence[str | Mapping[str, Any]]) -> dict[str, Policy]:
    """Policies by a name of their own: before anything runs, so a misspelt one costs nothing."""
    built: dict[str, Policy] = {}
    for spec in policies:
        name, options = POLICIES.check(spec)
        label = name
        if name in built and options:
            label = f"{name} ({', '.join(f'{k}={v}' for k, v in options.items())})"
        if label in built:
            raise UserError(f"policy '{label}' is given twice", "name each once, or with different options")
        built[label] = POLICIES.build(spec)
    return built


def _collect(
    card: Scorecard,
    loader_for: LoaderFor,
    degradation: str | None,
    device: torch.device | str | None,
    progress: Callable[[str, int], None] | None,
    watch: PartsWatch | None = None,
) -> Collected:
    scope = degradation or "all"
    tell = None if progress is None else lambda seen: progress(scope, seen)
    return collect(card.model, loader_for(card.split, degradation), device, tell, watch)


def _fitting(card: Scorecard, policies: Mapping[str, Policy], collected: Collected) -> dict[str, Policy]:
    """The policies that these units and this data allow; the others leave a note."""
    if card.concepts is None:
        return {}
    if collected.concepts is None:
        card.notes.append("no concept or intervention metrics: this data set has no concept annotation")
        return {}
    if collected.concepts.shape[1] != len(card.concepts):
        raise UserError(
            f"the data has {collected.concepts.shape[1]} concepts, the model was trained on {len(card.concepts)}",
            "evaluate it on the data set it was trained on",
        )
    fitting = {}
    for name, policy in policies.items():
        try:
            policy.require(card.model.evidence.units)
        except UserError as error:
            card.notes.append(f"no curve for policy '{name}': {error}")
        else:
            fitting[name] = policy
    return fitting


def _measure(
    card: Scorecard, scope: str, collected: Collected, policies: Mapping[str, Policy], boot: Bootstrap, trials: int
) -> None:
    """What is measured in every scope that is a set of images."""
    task_records(card, scope, collected, boot)
    card.risks.append(selective_records(card, scope, collected, boot))
    concept_records(card, scope, collected, boot)
    intervention_records(card, scope, collected, policies, None, boot, trials)


def _cost(card: Scorecard, collected: Collected) -> None:
    card.add("parameters", "all", METRICS.build("parameters").of(card.model))
    for batch, repeats in LATENCY_BATCHES.items():
        latency = METRICS.build({"name": "latency_ms", "batch": batch, "repeats": repeats})
        choices = {
            **latency.choices,
            "size": collected.image_shape[-1],
            "device": str(card.model.evidence.alive.device),
        }
        taken = latency.of(card.model, collected.image_shape)
        card.add("latency_ms", "all", taken, choices=choices, variant="" if batch == 1 else f"@{batch}")


def _by_position(table: np.ndarray | Tensor, collected: Collected, what: str) -> np.ndarray:
    """Rows of a table that is ordered as the split, in the order of the collected images."""
    rows = np.asarray(table)
    if len(rows) <= int(collected.index.max()):
        raise UserError(
            f"'{what}' has {len(rows)} rows, but the split has an image number {int(collected.index.max())}",
            "give one row per image of the split",
        )
    return rows[collected.index.numpy()]


def _second_annotator(
    card: Scorecard,
    collected: Collected,
    second: Tensor,
    policies: Mapping[str, Policy],
    bootstrap: int,
    trials: int,
    rows: list[dict[str, Any]],
) -> None:
    """Judge the model and the second annotator on the very same images; then that annotator corrects the model."""
    scope = "second annotator"
    seen = (~torch.isnan(second)).any(1)
    if collected.concepts is None or card.concepts is None or not bool(seen.any()):
        card.notes.append("no second annotator: nobody answered twice about an image of this split")
        return
    part, answers = collected[seen], second[seen]
    boot = Bootstrap(len(part), bootstrap)
    task_records(card, scope, part, boot)
    concept_records(card, scope, part, boot)
    agreement = human_agreement(answers, part.concepts, card.concepts)  # type: ignore[arg-type]
    metric, every = card.metric("concept_accuracy"), card.metric("all_concepts_right")
    choices = {**METRICS.build("human_agreement").choices, "images": agreement.images, **boot.choices}
    card.add("human_agreement", scope, agreement.overall, boot.of_metric(metric, agreement.parts), choices)
    card.add("human_all_agree", scope, agreement.all_right, boot.of_metric(every, agreement.all_parts), choices)
    low, high = boot.intervals(metric.each(boot.sums(agreement.parts)))
    human = {}
    for g, group in enumerate(card.concepts.groups):
        human[group.name] = float(agreement.groups[g])
        interval = Interval(float(low[g]), float(high[g]))
        card.add("human_agreement", f"concept:{group.name}", human[group.name], interval, choices)
    for row in rows:
        if row["level"] == "group":
            row["second_annotator"] = human[row["group"]]
    intervention_records(card, scope, part, policies, annotator(answers, part), boot, trials)
