"""Comparison of runs: one table, Pareto plots, intervention curves, one page that a newcomer understands."""

from vitrarium.eval.report.comparison import Comparison, compare
from vitrarium.eval.report.pareto import pareto_front
from vitrarium.eval.report.runs import RunResults, read_run

__all__ = ["Comparison", "RunResults", "compare", "pareto_front", "read_run"]
