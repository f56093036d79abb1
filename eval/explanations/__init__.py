"""Explanations of single decisions: why this class and not that one, as numbers, picture, page and sentence."""

from vitrarium.eval.explanations.base import EXPLAINERS
from vitrarium.eval.explanations.contributions import explain
from vitrarium.eval.explanations.reasons import Explanation, Reason, Share, Unit

__all__ = ["EXPLAINERS", "Explanation", "Reason", "Share", "Unit", "explain"]
