"""What is read off a curve."""

from __future__ import annotations

from typing import Any

from vitrarium.eval.metrics.base import METRICS, Measure


class CurveMeasure(Measure):
    """What the numbers of a curve share; the curve's own choices go into the record beside theirs."""

    fields = ("curve",)
    category = "intervention"
    higher_is_better = True


@METRICS.register("intervention_area")
class InterventionArea(CurveMeasure):
    """Area under the curve of accuracy against corrected groups, both axes in [0, 1] (:attr:`Curve.area`)."""

    @property
    def choices(self) -> dict[str, Any]:
        """The rule of integration."""
        return {"rule": "trapezoid", "axis": "groups asked / groups"}


@METRICS.register("accuracy_fully_corrected")
class AccuracyFullyCorrected(CurveMeasure):
    """Class accuracy when every group is corrected (:attr:`Curve.fully_corrected`)."""


@METRICS.register("intervention_gain")
class InterventionGain(CurveMeasure):
    """Accuracy with all groups corrected minus accuracy with none (:attr:`Curve.gain`); below 0 the curve falls."""
