"""The model card that lies beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vitrarium.configs.compose import backbone_title
from vitrarium.data.source import DataSource
from vitrarium.eval.records import Record
from vitrarium.models.classifier import TransparentClassifier, count_parameters
from vitrarium.models.folder import weights_of

# What the table of numbers shows, in its order, in words.
SHOWN = {
    "accuracy": "class accuracy",
    "balanced_accuracy": "mean accuracy of the classes",
    "ece": "calibration error",
    "aurc": "mean error over all coverages, least sure answers withheld first",
    "coverage_at_threshold": "share that is answered, with the threshold of this model",
    "risk_at_threshold": "error among these",
    "concept_accuracy": "concept accuracy, mean over groups",
    "all_concepts_right": "images with every concept right",
    "intervention_area": "class accuracy while more and more concepts are corrected",
    "accuracy_fully_corrected": "class accuracy with every concept corrected",
    "explanation_size": "units that make up 90 % of an explanation",
}
HERE = 'vt.load("path/to/this/folder")'
# Packages whose versions may change what a model answers or how it was trained.
VERSIONS = ("vitrarium", "torch", "torchvision", "timm", "pytorch-lightning", "albumentations")


def write_card(
    config: Mapping[str, Any],
    source: DataSource,
    model: TransparentClassifier,
    seconds: float,
    packages: Mapping[str, str],
    reports: Mapping[str, Mapping[str, Any]],
    records: Sequence[Record] = (),
    loads: str = HERE,
) -> str:
    """The card in Markdown: what it is, data, recipe, numbers with intervals, limits.

    Args:
        config: the composed configuration.
        source: the data set it was trained on.
        model: the trained model.
        seconds: of training.
        packages: versions it was trained with, by name.
        reports: what became of weights it started from.
        records: what was measured on the test split.
        loads: the line of Python that loads it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitrarium", "."),
        # Markdown, not HTML: nothing is to be escaped.
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rows = numbers_of(records, model)
    content = {
        "front": _front_matter(config, source, rows),
        "title": _title(config),
        "family": config["model"]["family"],
        "source": source,
        "model": model,
        "loads": loads,
        "reports": [report["said"] for report in reports.values()],
        "minutes": f"{seconds / 60:.1f}",
        "versions": ", ".join(f"{name} {packages[name]}" for name in VERSIONS if name in packages) or "not recorded",
        "version": packages.get("vitrarium", ""),
        "numbers": [_row(record) for record in rows],
        "abstention": _abstention(model, records),
        **_anatomy(config, model),
        **_examples(source, model),
        **_data(config, source),
        **_recipe(config),
    }
    return environment.get_template("card.md.jinja").render(content)


def numbers_of(records: Sequence[Record], model: TransparentClassifier) -> list[Record]:
    """The records that a card shows, in its order; of several thresholds only those at the model's own."""
    threshold = None if model.abstention is None else model.abstention.threshold
    rows = [
        r
        for r in records
        if r.scope == "all"
        and r.metric in SHOWN
        and (not r.metric.endswith("_at_threshold") or r.choices.get("threshold") == threshold)
    ]
    return sorted(rows, key=lambda r: list(SHOWN).index(r.metric))


def number_facts(rows: Sequence[Record]) -> dict[str, Any]:
    """The same numbers as plain containers by metric (and policy), for ``config.json``."""
    return {
        _name(r): {"value": _plain(r.value), "low": _plain(r.low), "high": _plain(r.high), "split": r.split}
        for r in rows
    }


def _plain(value: float) -> float | None:
    return None if value != value else float(value)


def _name(record: Record) -> str:
    policy = record.choices.get("policy")
    return f"{record.metric} ({policy})" if policy else record.metric


def _title(config: Mapping[str, Any]) -> str:
    return str(config["model"]["title"] or config["model"]["preset"])


def _row(r: Record) -> dict[str, str]:
    """A number as the table shows it."""
    policy, choices = r.choices.get("policy"), [f"{k} {r.choices[k]}" for k in ("bins", "share") if k in r.choices]
    return {
        "words": SHOWN[r.metric] + (f", {policy} order" if policy else ""),
        "shown": "–" if r.value != r.value else f"{r.value:.4f}",
        "interval": "" if r.low != r.low else f"{r.low:.4f} to {r.high:.4f}",
        "metric": ", ".join([f"`{r.metric}`", *choices]),
    }


def _front_matter(config: Mapping[str, Any], source: DataSource, rows: Sequence[Record]) -> str:
    """What the Hugging Face Hub reads: YAML between two lines of dashes."""
    family = config["model"]["family"].replace(" ", "-")
    front: dict[str, Any] = {
        "library_name": "vitrarium",
        "pipeline_tag": "image-classification",
        "tags": ["vitrarium", "interpretability", family, config["model"]["preset"], source.name],
    }
    if source.generated:
        front["license"] = "mit"
    measured = [
        {"type": r.metric, "name": SHOWN[r.metric], "value": round(r.value, 4)}
        for r in rows
        if r.metric in ("accuracy", "concept_accuracy") and r.value == r.value
    ]
    if measured:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": source.name, "type": source.name, "split": "test"},
            "metrics": measured,
        }
        front["model-index"] = [{"name": f"{_title(config)} on {source.name}", "results": [result]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _anatomy(config: Mapping[str, Any], model: TransparentClassifier) -> dict[str, Any]:
    """The parts, their size, and what they know by name."""
    concepts = model.concepts if model.evidence.units.truth == "concept" else None
    groups = () if concepts is None else concepts.groups
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights_of(model).values())
    words = [g.name if len(g.members) == 1 else f"{g.name} ({', '.join(g.values)})" for g in groups]
    return {
        "backbone": backbone_title(config["backbone"]),
        "evidence": config["model"]["evidence"]["name"],
        "readout": config["model"]["readout"]["name"],
        "units": model.evidence.units,
        "parameters": f"{count_parameters(model):,}",
        "megabytes": f"{size / 1e6:.1f}",
        "concepts": concepts,
        "concept_words": ", ".join(words),
        "prices": _prices(model),
    }


def _examples(source: DataSource, model: TransparentClassifier) -> dict[str, Any]:
    """Arguments for the lines of Python that show how it is used."""
    groups = () if model.evidence.units.truth != "concept" or model.concepts is None else model.concepts.groups
    correction = {groups[0].name: "yes" if len(groups[0].members) == 1 else groups[0].values[-1]} if groups else None
    return {
        "image": f'vt.example("{source.name}", 0)' if source.generated else '"image.jpg"',
        "correction": json.dumps(correction, ensure_ascii=False) if correction else "",
    }


def _data(config: Mapping[str, Any], source: DataSource) -> dict[str, Any]:
    """Sizes and options; places of files on this machine are left out."""
    told = {k: v for k, v in config["data"].items() if k != "name" and not (isinstance(v, str) and _is_place(v))}
    return {
        "sizes": ", ".join(f"{len(split):,} {name}" for name, split in source.splits.items()),
        "options": ", ".join(f"{key}={value}" for key, value in told.items()),
        "given": ", ".join(["label", *(name.replace("_", " ") for name in sorted(source.gives))]),
    }


def _is_place(value: str) -> bool:
    return "/" in value or "\\" in value


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Stages and how they were run, in words."""
    train, augment = config["train"], config["augment"]
    names = [*augment["geometry"], *augment["appearance"]]
    balance = f", classes balanced by {train['balance']:g}" if train["balance"] else ""
    return {
        "preset": config["model"]["preset"],
        "seed": config["seed"],
        "stages": [_stage(name, stage, config["loss"]) for name, stage in config["recipe"].items()],
        "optimiser": (
            f"{train['optimiser']}, rate {train['lr']:g}, {train['schedule']}, warm-up {train['warmup']:.0%}, "
            f"weight decay {train['weight_decay']:g}, batches of {train['batch_size']}{balance}, {train['precision']}"
        ),
        "augmentation": ", ".join(step["name"] for step in names) or "none",
    }


def _stage(name: str, stage: Mapping[str, Any], loss: Mapping[str, float]) -> str:
    """One stage in one line: epochs, loss, what it learns, what else happens."""
    said = [f"{stage['epochs']} epoch{'s' * (stage['epochs'] != 1)}"]
    if stage["terms"]:
        said.append("loss " + " + ".join(f"{loss[term]:g} {term}" for term in stage["terms"]))
    learnt = [part if factor == 1 else f"{part} (rate x {factor:g})" for part, factor in stage["learn"].items()]
    said.append(f"learns {', '.join(learnt) or 'all parts'}")
    do = stage["do"]
    if do["kind"] != "none":
        share = f" with probability {do['probability']:g} per {do['per']}" if do["kind"] == "random" else ""
        said.append(f"concepts set to their truth{share}")
    said += [f"event {event}" for event in stage["events"]]
    if stage["select"]:
        said.append(f"best epoch by {' and '.join(stage['select'])} on val")
    return f"stage `{name}`: {'; '.join(said)}"


def _prices(model: TransparentClassifier) -> list[str]:
    """What asking about each concept costs, where that is not the same for all."""
    groups = () if model.concepts is None else model.concepts.groups
    if len({group.cost for group in groups}) < 2:
        return []
    dearest = sorted(groups, key=lambda group: -group.cost)
    return [f"- price of asking: {', '.join(f'{group.name} {group.cost:g}' for group in dearest)}"]


def _abstention(model: TransparentClassifier, records: Sequence[Record]) -> list[str]:
    """The threshold, and what it does on the test split where that was measured at this very threshold."""
    chosen = model.abstention
    if chosen is None:
        return ["It always answers: no threshold was saved with it."]
    lines = [f"- It {chosen.words()}."]
    at = {r.metric: r.value for r in numbers_of(records, model) if r.metric.endswith("_at_threshold")}
    if len(at) == 2:
        answered, risk = at["coverage_at_threshold"], at["risk_at_threshold"]
        errors = f"with {risk:.2%} errors" if risk == risk else "and so makes no errors"
        lines.append(f"- Test split: it answers {answered:.1%} of the images, {errors}.")
    return [*lines, "- Images of another kind than these can be wrong and sure: the threshold promises nothing there."]
