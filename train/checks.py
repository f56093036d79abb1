"""A recipe that asks for more than there is, refused before hours are spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.eval.metrics import validation_metrics
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.train.events.base import Schedule
from vitrarium.train.interventions import TrainingDo
from vitrarium.train.task import learnt_parts

# What a step can give to every term, whatever the data and the model.
FROM_THE_STEP = frozenset({"input_gradient", "pixels"})


def check_recipe(
    model: TransparentClassifier,
    source: DataSource,
    stages: Mapping[str, Mapping[str, Any]],
    terms: nn.ModuleDict,
    events: Mapping[str, Sequence[Schedule]],
    features: bool = False,
) -> None:
    """Refuse unknown terms and parts, terms without what they need, and interventions without truth.

    Args:
        model: the classifier.
        source: the data.
        stages: of the recipe, by name.
        terms: by label.
        events: by stage.
        features: whether the features of a frozen backbone stand in for the images.

    Raises:
        UserError: naming the stage, what it asks for, and what there is.
    """
    if not stages:
        raise UserError("the recipe has no stages", "choose a preset: vitrarium list presets")
    calibrated = False
    for name, stage in stages.items():
        if features:
            _check_features(name, stage, model)
        if stage["epochs"] < 0:
            raise UserError(f"stage '{name}' has {stage['epochs']} epochs", "give 0 (events only) or more")
        learnt_parts(model, stage["learn"])
        if stage["epochs"] > 0 and not stage["terms"]:
            raise UserError(f"stage '{name}' has epochs but no loss terms", f"recipe.{name}.terms=[cross_entropy]")
        for label in stage["terms"]:
            if label not in terms:
                raise UserError(
                    f"stage '{name}' names the term '{label}', which has no weight",
                    closest(label, terms.keys()),
                )
            _check_needs(name, label, terms[label].needs, model, source, stage, features)  # type: ignore[arg-type]
            terms[label].check(model)  # type: ignore[operator]
        measured = validation_metrics(model)
        for metric in stage["select"]:
            if metric not in measured:
                raise UserError(f"stage '{name}' cannot select by '{metric}'", closest(metric, measured))
        for schedule in events[name]:
            schedule.event.check(model)
        _check_do(name, TrainingDo.of(stage["do"]), model, source, calibrated)
        calibrated |= any(schedule.event.calibrates for schedule in events[name])


def _check_do(stage: str, do: TrainingDo, model: TransparentClassifier, source: DataSource, calibrated: bool) -> None:
    """Interventions need units with a concept as truth, data that has it, and values that stand for it."""
    if do.kind == "none":
        return
    model.evidence.units.require(truth="concept")
    if "concepts" not in source.gives:
        raise UserError(f"stage '{stage}' corrects concepts, and '{source.name}' has none", "set do.kind=none")
    if not calibrated:
        model.evidence.units.require_values()


def _check_features(name: str, stage: Mapping[str, Any], model: TransparentClassifier) -> None:
    """Features stand in for images only where the backbone is frozen and one appearance at a time is asked for."""
    if stage["epochs"] > 0 and "backbone" in learnt_parts(model, stage["learn"]):
        raise UserError(
            f"train.features keeps the features of a frozen backbone, and stage '{name}' learns it",
            "set train.freeze=[backbone], or train.features=0",
        )
    if stage["views"] > 1:
        raise UserError(
            f"stage '{name}' asks for {stage['views']} views of each image, and only features are kept",
            "set train.features=0",
        )


def _check_needs(
    stage: str,
    label: str,
    needs: frozenset[str],
    model: TransparentClassifier,
    source: DataSource,
    settings: Mapping[str, Any],
    features: bool,
) -> None:
    of_data, of_step = (source.gives & {"concepts"}, frozenset[str]()) if features else (source.gives, FROM_THE_STEP)
    given = of_data | model.evidence.gives | model.backbone.gives | of_step
    if settings["views"] > 1:
        given |= {"views"}
    missing = sorted(needs - given)
    if missing:
        raise UserError(
            f"the term '{label}' of stage '{stage}' needs {', '.join(missing)}; "
            f"data set '{source.name}' gives {', '.join(sorted(source.gives)) or 'images and labels only'}, "
            f"the model gives {', '.join(sorted(model.evidence.gives))}",
            "set train.features=0: kept features come without images, maps and keypoints"
            if features and set(missing) <= source.gives | FROM_THE_STEP
            else "choose a data set or a model that gives it, or leave the term out",
        )
