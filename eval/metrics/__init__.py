"""Metrics: what is measured, how, and how sure the number is."""

from vitrarium.eval.metrics.base import METRICS, Measure, Metric, RatioMetric, SumMetric
from vitrarium.eval.metrics.human import Agreement, human_agreement
from vitrarium.eval.metrics.resampling import Bootstrap, Interval, bootstrap
from vitrarium.eval.metrics.validation import validation_metrics

__all__ = [
    "METRICS",
    "Agreement",
    "Bootstrap",
    "Interval",
    "Measure",
    "Metric",
    "RatioMetric",
    "SumMetric",
    "bootstrap",
    "human_agreement",
    "validation_metrics",
]
