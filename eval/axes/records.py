"""AUC of units as metrics, and their records in the results of an evaluation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vitrarium.eval.axes.measures import LEAST, Rating, enough, masked_scores, mean_auc, rate, subspaces_of
from vitrarium.eval.collect import Collected
from vitrarium.eval.metrics.base import METRICS, Measure
from vitrarium.eval.metrics.layout import TRUTH_RULE
from vitrarium.eval.metrics.resampling import EACH_LABEL, Bootstrap, Interval, described
from vitrarium.eval.scorecard import Scorecard
from vitrarium.models.classifier import TransparentClassifier


class UnitAUC(Measure):
    """How well what a unit says of an image ranks the images that have its concept above those that have not."""

    fields: ClassVar[tuple[str, ...]] = ("evidence",)
    category = "concept"
    higher_is_better = True
    scores: ClassVar[str]

    @property
    def choices(self) -> dict[str, Any]:
        """What is averaged, and what the scores are."""
        return {
            "average": f"concepts with at least {LEAST} images that have it and {LEAST} that have not",
            "scores": self.scores,
            "truth": TRUTH_RULE,
        }


@METRICS.register("axis_auc")
class AxisAUC(UnitAUC):
    """ROC-AUC of a unit's activation for its concept, over all images whose truth is known.

    The axis purity of Chen, Bei & Rudin (Nature Machine Intelligence 2020), who average it over random fifths.
    """

    scores = "activation of the concept's unit"


@METRICS.register("masked_axis_auc")
class MaskedAxisAUC(UnitAUC):
    """The same within the subspace of the concept's group.

    See :func:`~vitrarium.eval.axes.measures.masked_scores`.
    """

    scores = "activation of the concept's unit / length of its subspace's activations"


def unit_scores(model: TransparentClassifier, said: Tensor) -> dict[str, Tensor]:
    """What units say of their concepts, by metric, (N, K) each, from the activations (N, M) of all units."""
    units = model.evidence.units.judged
    subspaces = subspaces_of(model.evidence, [group.members for group in units.groups])
    return {"axis_auc": said[:, : len(units)], "masked_axis_auc": masked_scores(said, subspaces, len(units))}


def axis_records(card: Scorecard, collected: Collected, boot: Bootstrap) -> None:
    """File the AUC of units that are annotated concepts and have no probability; others are left to the other metrics.

    Each concept has an interval with positives and negatives resampled apart, the mean one over images.
    """
    truth, evidence = collected.concepts, collected.evidence
    if card.concepts is None or truth is None or evidence.probabilities is not None:
        return
    chosen = enough(truth)
    for metric, rating in rate(unit_scores(card.model, evidence.activations.float()), truth, boot).items():
        choices = METRICS.build(metric).choices
        mean = mean_auc(rating, chosen, boot)
        if mean.concepts:
            told = {**choices, "concepts": mean.concepts, **boot.choices}
            card.add(metric, "all", mean.value, mean.interval, told)
        else:
            card.notes.append(f"no mean {metric}: no concept has {LEAST} images of both labels and a score")
        _each(card, metric, rating, {**choices, **described(EACH_LABEL, boot.samples, boot.level)})


def _each(card: Scorecard, metric: str, rating: Rating, choices: dict[str, Any]) -> None:
    assert card.concepts is not None
    for k, name in enumerate(card.concepts.names):
        if rating.auc[k] == rating.auc[k]:
            interval = Interval(float(rating.low[k]), float(rating.high[k]))
            card.add(metric, f"concept:{name}", rating.auc[k], interval, choices)
