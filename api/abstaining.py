"""When a trained model does not answer: the threshold, from the validation split, at the end of training or later."""

from __future__ import annotations

from vitrarium.data.module import DataModule
from vitrarium.eval.collect import collect
from vitrarium.eval.records import read_records
from vitrarium.measuring import refuse_other_data, rewrite_card
from vitrarium.models.abstention import Abstention, AbstentionRule
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.folder import save_abstention
from vitrarium.runs import Run

SPLIT = "val"


def choose_threshold(
    model: TransparentClassifier, data: DataModule, rule: AbstentionRule, batch_size: int
) -> Abstention:
    """The threshold that a rule chooses on the validation split; this process sees all of it, whoever else trained."""
    collected = collect(model, data.loader(SPLIT, batch_size=batch_size))
    return rule.choose(collected.logits, collected.labels, SPLIT)


def set_threshold_of(run: Run, rule: AbstentionRule) -> Abstention:
    """Choose the threshold of a finished run anew and save it with the model; the card says so too."""
    model = run.model
    refuse_other_data(model, run.source)
    batch_size = run.config["evaluation"]["batch_size"]
    model.abstention = choose_threshold(model, run.data(batch_size), rule, batch_size)
    save_abstention(run.folder, model.abstention)
    results = run.folder / "evaluation" / "results.csv"
    rewrite_card(run, model, read_records(results) if results.is_file() else [])
    return model.abstention
