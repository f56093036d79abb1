"""The metrics that training watches: cheap, of fixed size, the same for every family."""

from __future__ import annotations

from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics.base import METRICS, Metric
from vitrarium.models.classifier import TransparentClassifier

TASK = ("accuracy", "balanced_accuracy", "nll", "ece")
# concept_auc is left out: it is exact only with all scores in memory. Ask for it in an evaluation.
CONCEPT = ("concept_accuracy", "concept_value_accuracy", "concept_f1", "all_concepts_right")


def validation_metrics(model: TransparentClassifier | int, concepts: ConceptSet | None = None) -> dict[str, Metric]:
    """Metrics by name, each updated by ``metric.update_output(output, batch)`` and read by ``metric.compute()``.

    Args:
        model: the classifier to be watched: its classes and concepts are taken, and concept metrics are there only if
            its units are annotated concepts with probabilities. Or the number of classes C, for anything else.
        concepts: with a number of classes, the concept set to judge (None = no concept metrics); a batch without
            probabilities or truth is then not counted.
    """
    if isinstance(model, TransparentClassifier):
        units = model.evidence.units
        judged = units.truth == "concept" and units.probability != "none"
        classes, concepts = len(model.class_names), units.judged.concepts if judged else None
    else:
        classes = model
    names = [*TASK, *(CONCEPT if concepts is not None and len(concepts) else ())]
    return {name: METRICS.build(name, classes=classes, concepts=concepts) for name in names}
