"""Metrics of collected answers as records, scope by scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.collect import Collected
from vitrarium.eval.interventions import Corrector, Curve, Policy, intervention_curve
from vitrarium.eval.metrics.base import METRICS, SumMetric
from vitrarium.eval.metrics.classification import per_class
from vitrarium.eval.metrics.layout import known_values
from vitrarium.eval.metrics.ranking import concept_auc_draws, concept_aucs
from vitrarium.eval.metrics.resampling import NO_INTERVAL, Bootstrap, Interval
from vitrarium.eval.records import Record
from vitrarium.models.classifier import TransparentClassifier

if TYPE_CHECKING:
    from vitrarium.eval.risk_coverage import RiskCurve

IDENTITY = ("run", "preset", "family", "data", "seed")
TASK = ("accuracy", "balanced_accuracy", "ece", "nll", "brier")
CONCEPT = ("concept_accuracy", "all_concepts_right", "concept_value_accuracy", "concept_f1", "concept_ece")


class Scorecard:
    """Gathers the records of one model on one split.

    Args:
        model: the classifier.
        identity: run, preset, family, data and seed.
        split: "train", "val" or "test".

    Attributes:
        records: what was measured so far.
        curve_rows: rows of ``curves.csv``.
        curves: curves by scope.
        risks: risk-coverage curves, one per scope.
        notes: what could not be measured, and why.
    """

    def __init__(self, model: TransparentClassifier, identity: Mapping[str, Any], split: str) -> None:
        missing = [name for name in IDENTITY if name not in identity]
        if missing:
            raise UserError(
                f"the identity of a run lacks {', '.join(missing)}", f"give {', '.join(IDENTITY)} (seed is a number)"
            )
        self.model, self.split = model, split
        self.identity = {name: identity[name] for name in IDENTITY}
        self.records: list[Record] = []
        self.curve_rows: list[dict[str, Any]] = []
        self.curves: dict[str, list[Curve]] = {}
        self.risks: list[RiskCurve] = []
        self.notes: list[str] = []

    @cached_property
    def concepts(self) -> ConceptSet | None:
        """The concepts that can be judged: those of the units, if the units are annotated concepts."""
        units = self.model.evidence.units
        return units.judged.concepts if units.truth == "concept" else None

    def metric(self, name: str, **options: Any) -> Any:
        """A streaming metric for this model."""
        return METRICS.build({"name": name, **options}, classes=len(self.model.class_names), concepts=self.concepts)

    def row(self, scope: str) -> dict[str, Any]:
        """The identity of a number, for tables."""
        known = {**self.identity, "split": self.split, "scope": scope}
        return {name: known[name] for name in ("run", "preset", "family", "data", "split", "scope", "seed")}

    def add(
        self,
        metric: str,
        scope: str,
        value: float | Tensor,
        interval: Interval = NO_INTERVAL,
        choices: Mapping[str, Any] | None = None,
        variant: str = "",
    ) -> None:
        """File one number under a registered metric; ``variant`` joins its name ("latency_ms@64")."""
        entry = METRICS.get(metric)
        self.records.append(
            Record(
                **self.row(scope),
                category=entry.category,  # type: ignore[attr-defined]
                metric=metric + variant,
                value=float(value),
                low=interval.low,
                high=interval.high,
                higher_is_better=entry.higher_is_better,  # type: ignore[attr-defined]
                choices=dict(choices or {}),
            )
        )

    def add_sums(
        self, names: Sequence[str], scope: str, answers: Tensor, truth: Tensor, boot: Bootstrap, **options: Any
    ) -> None:
        """File metrics that are functions of sums over images, with their intervals."""
        for name in names:
            metric: SumMetric = self.metric(name, **options)
            parts = metric.parts(answers, truth)
            value = metric.finish(parts.double().sum(0))
            self.add(name, scope, value, boot.of_metric(metric, parts), {**metric.choices, **boot.choices})


def task_records(card: Scorecard, scope: str, collected: Collected, boot: Bootstrap) -> None:
    """Accuracy, balanced accuracy, calibration error, log loss and Brier score."""
    card.add_sums(TASK, scope, collected.logits, collected.labels, boot)


def class_rows(card: Scorecard, collected: Collected, boot: Bootstrap) -> list[dict[str, Any]]:
    """File accuracy (= recall), precision and support of each class, and give them as a table too."""
    found: dict[str, tuple[Tensor, tuple[Tensor, Tensor]]] = {}
    for name in ("recall", "precision"):
        metric = card.metric(name)
        parts = metric.parts(collected.logits, collected.labels)
        found[name] = metric.each(parts.double().sum(0)), boot.intervals(metric.each(boot.sums(parts)))
    support = per_class(collected.logits, collected.labels, "label")[1].sum(0)
    rows = []
    for c, class_name in enumerate(card.model.class_names):
        scope = f"class:{class_name}"
        row = {**card.row(scope), "class": class_name, "support": int(support[c])}
        card.add("support", scope, support[c])
        for name, (values, (low, high)) in (("accuracy", found["recall"]), *found.items()):
            interval = Interval(float(low[c]), float(high[c]))
            # Over the images of one class the accuracy is its recall.
            choices = {"of": "the images given to the class" if name == "precision" else "the images of the class"}
            card.add(name, scope, values[c], interval, {**choices, **boot.choices})
            row |= {name: float(values[c]), f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    return rows


def concept_records(card: Scorecard, scope: str, collected: Collected, boot: Bootstrap) -> None:
    """Concept metrics over all concepts; AUC is filed by :func:`concept_rows`."""
    probabilities = collected.evidence.probabilities
    if card.concepts is not None and probabilities is not None and collected.concepts is not None:
        card.add_sums(CONCEPT, scope, probabilities, collected.concepts, boot)


def concept_rows(card: Scorecard, collected: Collected, boot: Bootstrap) -> list[dict[str, Any]]:
    """File the accuracy of each group and the AUC, F1 and calibration of each concept; give them as a table too."""
    probabilities, truth = collected.evidence.probabilities, collected.concepts
    if card.concepts is None or probabilities is None or truth is None:
        return []
    return _group_rows(card, probabilities, truth, boot) + _value_rows(card, probabilities, truth, boot)


def _group_rows(card: Scorecard, probabilities: Tensor, truth: Tensor, boot: Bootstrap) -> list[dict[str, Any]]:
    """One row per group: accuracy, and what always giving the most frequent answer would score."""
    assert card.concepts is not None
    metric = card.metric("concept_accuracy")
    parts = metric.parts(probabilities, truth)
    values, (low, high) = metric.each(parts.double().sum(0)), boot.intervals(metric.each(boot.sums(parts)))
    constant = metric.each(metric.parts(_most_frequent(truth, card.concepts), truth).double().sum(0))
    judged = parts.sum(0).chunk(2)[1]
    rows = []
    for g, group in enumerate(card.concepts.groups):
        scope = f"concept:{group.name}"
        interval = Interval(float(low[g]), float(high[g]))
        card.add("concept_accuracy", scope, values[g], interval, {**metric.choices, **boot.choices})
        rows.append(
            {
                **card.row(scope), "level": "group", "group": group.name, "concept": "", "answers": int(judged[g]),
                "majority": float(constant[g]), "accuracy": float(values[g]), "low": interval.low,
                "high": interval.high,
            }
        )  # fmt: skip
    return rows


def _most_frequent(truth: Tensor, concepts: ConceptSet) -> Tensor:
    """(N, K) the same answer for every image: the most frequent member of a categorical group, yes or no elsewhere."""
    present, known = known_values(truth)
    share = (present & known).sum(0) / known.sum(0).clamp_min(1)
    return share.expand(len(truth), -1)


def _value_rows(card: Scorecard, probabilities: Tensor, truth: Tensor, boot: Bootstrap) -> list[dict[str, Any]]:
    """One row per concept: share of positives, accuracy, AUC, F1 and calibration error of the yes/no value."""
    assert card.concepts is not None
    auc, draws = concept_aucs(probabilities, truth), concept_auc_draws(probabilities, truth, boot)
    low, high = boot.intervals(draws)
    choices = {**METRICS.build("concept_auc", classes=1, concepts=card.concepts).choices, **boot.choices}
    card.add("concept_auc", "all", auc.nanmean(), boot.interval(draws.nanmean(1)), choices)
    table: dict[str, Tensor] = {}
    for name in ("concept_value_accuracy", "concept_f1", "concept_ece"):
        metric = card.metric(name)
        table[name] = metric.each(metric.parts(probabilities, truth).double().sum(0))
    present, known = known_values(truth)
    rows = []
    for k, name in enumerate(card.concepts.names):
        scope, group = f"concept:{name}", card.concepts.groups[int(card.concepts.group_of[k])]
        card.add("concept_auc", scope, auc[k], Interval(float(low[k]), float(high[k])), choices)
        card.add("concept_f1", scope, table["concept_f1"][k], choices=card.metric("concept_f1").choices)
        positive = float((present & known)[:, k].sum() / known[:, k].sum().clamp_min(1))
        rows.append(
            {
                **card.row(scope), "level": "value", "group": group.name, "concept": name,
                "answers": int(known[:, k].sum()), "positive": positive, "majority": max(positive, 1 - positive),
                "accuracy": float(table["concept_value_accuracy"][k]), "auc": float(auc[k]), "auc_low": float(low[k]),
                "auc_high": float(high[k]), "f1": float(table["concept_f1"][k]), "ece": float(table["concept_ece"][k]),
            }
        )  # fmt: skip
    return rows


def intervention_records(
    card: Scorecard,
    scope: str,
    collected: Collected,
    policies: Mapping[str, Policy],
    corrector: Corrector | None,
    boot: Bootstrap,
    trials: int,
) -> None:
    """A curve and its area per policy; accuracy fully corrected and the gain, which no policy changes, once."""
    for name, policy in policies.items():
        curve = intervention_curve(
            card.model,
            collected,
            policy,
            trials=trials,
            corrector=corrector,
            bootstrap=boot,
            seed=card.identity["seed"],
        )
        curve.policy = curve.choices["policy"] = name
        rule = METRICS.build("intervention_area").choices
        card.add("intervention_area", scope, curve.area, curve.area_interval, {**curve.choices, **rule})
        card.curves.setdefault(scope, []).append(curve)
        card.curve_rows += [{**card.row(scope), **row} for row in curve.table()]
    if scope in card.curves:
        curve = card.curves[scope][0]
        kept = ("truth", "level", "values", "groups", "unanswered", "interval")
        choices = {name: curve.choices[name] for name in kept}
        low, high = float(curve.low[-1]), float(curve.high[-1])
        card.add("accuracy_fully_corrected", scope, curve.fully_corrected, Interval(low, high), choices)
        card.add("intervention_gain", scope, curve.gain, curve.gain_interval, choices)
