"""Correcting units at inference: which to ask about, who answers, and what it does to the class."""

from vitrarium.eval.interventions.base import POLICIES, Context, Policy
from vitrarium.eval.interventions.corrector import Corrector, annotation, annotator
from vitrarium.eval.interventions.curve import Curve, accuracy_fully_corrected, intervention_curve
from vitrarium.eval.interventions.plot import plot_curves

__all__ = [
    "POLICIES",
    "Context",
    "Corrector",
    "Curve",
    "Policy",
    "accuracy_fully_corrected",
    "annotation",
    "annotator",
    "intervention_curve",
    "plot_curves",
]
