"""The columns of the comparison: which record each shows, how, and whether more is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitrarium.eval.records import FLOORS, Record
from vitrarium.eval.report.numbers import Kind
from vitrarium.eval.report.runs import RunResults

# Categories whose metrics say how well a model can be understood: each gets a plot against accuracy.
EXPLAINING = ("concept", "intervention", "compactness", "faithfulness", "alignment", "stability", "robustness")


@dataclass(frozen=True)
class Column:
    """One metric in one scope.

    Attributes:
        key: name in tables ("accuracy").
        title: for people.
        metric: name in the records; "" for the training time, which comes from ``progress.json``.
        kind: how it is written.
        better: "higher", "lower", or "" where neither is.
        explains: whether it says how well a model can be understood (then it is drawn against accuracy).
        main: whether it stands in the main table.
        where: choices that the record must have made, for instance ``{"policy": "random"}``.
        scope: of the records.
    """

    key: str
    title: str
    metric: str
    kind: Kind
    better: str
    explains: bool = False
    main: bool = True
    where: Mapping[str, Any] = field(default_factory=dict)
    scope: str = "all"

    @property
    def bounds(self) -> tuple[float, float]:
        """Where values can lie."""
        if self.key == "intervention_gain":
            return (-1.0, 1.0)
        return (0.0, 1.0) if self.kind == "share" else (-math.inf, math.inf)

    def of(self, run: RunResults) -> Record | None:
        """The record it shows of a run, or None where the run has none."""
        if not self.metric:
            return None
        for record in run.records:
            if record.metric == self.metric and record.scope == self.scope and self._fits(record.choices):
                return record
        return None

    def _fits(self, choices: Mapping[str, Any]) -> bool:
        # A record that does not mention a choice was made without it.
        return all(choices.get(key, value) == value for key, value in self.where.items())


RANDOM = {"policy": "random"}
ACCURACY = Column("accuracy", "Class accuracy", "accuracy", "share", "higher")
COLUMNS: tuple[Column, ...] = (
    ACCURACY,
    Column("concept_accuracy", "Concept accuracy", "concept_accuracy", "share", "higher", explains=True),
    Column("all_concepts_right", "All concepts right", "all_concepts_right", "share", "higher", explains=True),
    Column("ece", "Calibration error", "ece", "share", "lower"),
    Column(
        "intervention_area",
        "Area under the correction curve",
        "intervention_area",
        "share",
        "higher",
        explains=True,
        where=RANDOM,
    ),
    Column(
        "accuracy_fully_corrected",
        "Accuracy with all concepts corrected",
        "accuracy_fully_corrected",
        "share",
        "higher",
        explains=True,
        where=RANDOM,
    ),
    Column("explanation_size", "Explanation size", "explanation_size", "number", "lower", explains=True),
    Column("consistency", "Consistency", "consistency", "share", "higher", explains=True),
    Column("purity", "Purity", "purity", "share", "higher", explains=True),
    Column("stability", "Stability", "stability", "share", "higher", explains=True),
    Column("local_size", "Local size", "local_size", "number", "lower"),
    Column("training_minutes", "Training", "", "minutes", "lower"),
    Column("latency_ms", "Time per image", "latency_ms", "milliseconds", "lower", where={"batch": 1}),
    Column("balanced_accuracy", "Balanced accuracy", "balanced_accuracy", "share", "higher", main=False),
    Column("concept_auc", "Concept AUC", "concept_auc", "share", "higher", main=False),
    Column("concept_ece", "Concept calibration error", "concept_ece", "share", "lower", main=False),
    Column(
        "intervention_area_uncertainty",
        "Area, most uncertain first",
        "intervention_area",
        "share",
        "higher",
        main=False,
        where={"policy": "uncertainty"},
    ),
    Column(
        "intervention_gain", "Gain by all corrections", "intervention_gain", "share", "higher", main=False, where=RANDOM
    ),
    Column("aurc", "Area under the risk-coverage curve", "aurc", "share", "lower", main=False),
    Column("coverage_at_threshold", "Answered", "coverage_at_threshold", "share", "higher", main=False),
    Column("risk_at_threshold", "Errors among the answered", "risk_at_threshold", "share", "lower", main=False),
    Column("parameters", "Parameters", "parameters", "count", "lower", main=False),
    Column("global_size", "Units in use", "global_size", "count", "lower", main=False),
    Column("head_sparsity", "Weights that are 0", "head_sparsity", "share", "higher", main=False),
    Column("path_length", "Questions asked", "path_length", "number", "lower", main=False),
    Column("consistency_top", "Consistency, top images", "consistency@top", "share", "higher", main=False),
    Column("localisation", "Points at the object", "part_localisation@pointing", "share", "higher", main=False),
    Column("localisation_top", "Strongest 5 % on it", "part_localisation@top", "share", "higher", main=False),
    Column("localisation_energy", "Map on the object", "part_localisation@energy", "share", "higher", main=False),
    Column("axis_auc", "Axis AUC", "axis_auc", "share", "higher", main=False),
    Column("location_instability", "Location instability", "location_instability@top", "share", "lower", main=False),
    Column("part_interpretability", "Part interpretability", "part_interpretability", "share", "higher", main=False),
    Column("fidelity", "Fidelity to the head", "fidelity", "share", "higher", main=False),
    Column("completeness", "Completeness", "completeness", "share", "higher", main=False),
)

# What is measured of units on data with annotated parts, also of the floors that prototypes are held against.
LOOKING = ("consistency", "consistency_top", "purity", "stability", "localisation")
SIZES = ("global_size", "local_size", "head_sparsity", "path_length")


def floor_key(key: str, scope: str) -> str:
    """The key of a column in the scope of a floor ("purity_random_patches")."""
    return f"{key}_{FLOORS[scope].replace(' ', '_')}"


COLUMNS += tuple(
    replace(column, key=floor_key(column.key, scope), title=f"{column.title} of {name}", better="", explains=False,
            main=False, scope=scope)
    for scope, name in FLOORS.items()
    for column in COLUMNS
    if column.key in LOOKING
)  # fmt: skip

# Metrics that the columns above stand for, or that need no column of their own.
KNOWN = {c.metric for c in COLUMNS} | {
    "precision",
    "recall",
    "nll",
    "brier",
    "support",
    "human_agreement",
    "concept_value_accuracy",
    "concept_f1",
}


def columns_of(runs: Iterable[RunResults]) -> list[Column]:
    """The columns for which at least one run has a number, with further explainability metrics found in the records."""
    runs = list(runs)
    found = [c for c in COLUMNS if not c.metric or any(c.of(run) for run in runs)]
    return found + _further(runs)


def _further(runs: list[RunResults]) -> list[Column]:
    """Columns for explainability metrics that this module does not know by name."""
    extra: dict[str, Column] = {}
    for record in (r for run in runs for r in run.records if r.scope == "all"):
        new = record.metric not in KNOWN and record.metric not in extra
        if new and record.category in EXPLAINING and record.higher_is_better is not None:
            title = record.metric.replace("_", " ").capitalize()
            better = "higher" if record.higher_is_better else "lower"
            values = [r.value for run in runs for r in run.records if (r.metric, r.scope) == (record.metric, "all")]
            kind: Kind = "share" if all(0 <= v <= 1 for v in values if math.isfinite(v)) else "number"
            extra[record.metric] = Column(record.metric, title, record.metric, kind, better, True, main=False)
    return [extra[name] for name in sorted(extra)]
