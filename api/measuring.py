"""Measure runs: the bridge from a run folder to the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vitrarium.card import HERE, number_facts, numbers_of, write_card
from vitrarium.configs.errors import UserError
from vitrarium.configs.files import write_text
from vitrarium.data.batch import Batch
from vitrarium.data.source import DataSource
from vitrarium.eval.collect import collect
from vitrarium.eval.evaluate import CURVE_COLUMNS, Evaluation, evaluate
from vitrarium.eval.interventions import Curve, intervention_curve, plot_curves
from vitrarium.eval.records import Record, write_table
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.folder import CARD, add_facts
from vitrarium.runs import Run, read_environment, read_progress, read_weight_reports


def evaluate_run(run: Run, split: str = "test") -> Evaluation:
    """Measure a finished run; ``evaluation/`` (or ``evaluation-val/``) and the model card are written."""
    settings = run.config["evaluation"]
    data = run.data(settings["batch_size"])
    model = run.model
    refuse_other_data(model, run.source)
    part = run.source.splits[split]

    def batches(name: str, degradation: str | None) -> Iterable[Batch]:
        return data.loader(name, degrade=degradation or "clean")

    evaluation = evaluate(
        model,
        batches,
        identity=run.identity(),
        split=split,
        degradations=settings["degradations"],
        policies=settings["policies"],
        trials=settings["trials"],
        leaked=part.leaked,
        second=part.second_truth,
        parts=run.source.part_names,
        bootstrap=settings["bootstrap"],
    )
    changed = run.other_data()
    if changed is not None:
        evaluation.notes.insert(0, changed)
    evaluation.write(run.folder / ("evaluation" if split == "test" else f"evaluation-{split}"))
    if split == "test":
        rewrite_card(run, model, evaluation.records)
    return evaluation


def rewrite_card(run: Run, model: TransparentClassifier, records: Sequence[Record] = ()) -> None:
    """The model card of a run with what is known now; the numbers also go to the facts in ``config.json``."""
    write_text(run.folder / "model" / CARD, card_of(run, model, records))
    add_facts(run.folder, {"numbers": number_facts(numbers_of(records, model))})


def card_of(run: Run, model: TransparentClassifier, records: Sequence[Record], loads: str = HERE) -> str:
    """The text of the card of a run; ``loads`` is the line of Python that it loads the model by."""
    seconds = float(read_progress(run.folder).get("seconds", 0.0))
    packages, reports = read_environment(run.folder).get("packages", {}), read_weight_reports(run.folder)
    return write_card(run.config, run.source, model, seconds, packages, reports, records, loads)


def intervene_run(run: Run, policies: Sequence[str] | None, trials: int, split: str, out: Path) -> list[Curve]:
    """Intervention curves of a run; ``curves.csv`` and ``curves.png`` are written to ``out``."""
    model = run.model
    refuse_other_data(model, run.source)
    units = model.evidence.units
    units.require(truth="concept")
    if policies is None:
        policies = ["random"] if units.probability == "none" else ["random", "uncertainty"]
    data = run.data(run.config["evaluation"]["batch_size"])
    collected = collect(model, data.loader(split))
    curves = [intervention_curve(model, collected, policy, trials=trials) for policy in policies]
    identity = {**run.identity(), "split": split, "scope": "all"}
    rows = [{**identity, **row} for curve in curves for row in curve.table()]
    write_table(out / "curves.csv", rows, CURVE_COLUMNS)
    plot_curves(curves, out / "curves.png", f"{run.name}, {split} split")
    return curves


def refuse_other_data(model: TransparentClassifier, source: DataSource) -> None:
    """Refuse to measure a model on a data set with other classes or concepts."""
    if tuple(model.class_names) != tuple(source.class_names):
        raise UserError(
            f"the model knows the classes {', '.join(model.class_names[:4])} ..., "
            f"'{source.name}' has {', '.join(source.class_names[:4])} ...",
            "measure it on the data set it was trained on",
        )
    ours, theirs = model.concepts, source.concepts
    if ours is not None and theirs is not None and replace(ours, per_class=False) != replace(theirs, per_class=False):
        raise UserError(
            f"the concepts of the model are not those of '{source.name}'",
            "measure it on the data set it was trained on",
        )
