"""How the numbers came about: what a reader needs to trust them or to make them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitrarium.eval.report.rows import Row
from vitrarium.eval.report.runs import RunResults


def protocol(runs: Sequence[RunResults], rows: Sequence[Row], command: str | None) -> list[tuple[str, str]]:
    """Headings and texts, those that the run folders can answer."""
    facts = [
        ("Data", _listed(run.data for run in runs)),
        ("Split", f"{runs[0].split}: opened after all choices were made on other splits"),
        ("Classes", _classes(runs)),
        ("Truth of the concepts", _truth(runs)),
        ("Backbone", _listed(run.backbone for run in runs)),
        ("Seeds", "; ".join(f"{row.label}: {', '.join(map(str, row.seeds))}" for row in rows)),
        ("Intervals", _intervals(runs)),
        ("Corrections", _corrections(runs)),
        ("Hardware", _listed(map(_hardware, runs))),
        ("Software", _listed(map(_software, runs))),
        ("Command", command or ""),
        ("Differences in settings", "; ".join(differences(rows))),
    ]
    return [(term, text) for term, text in facts if text]


def _listed(items: Any) -> str:
    return "; ".join(dict.fromkeys(str(item) for item in items if item))


def _classes(runs: Sequence[RunResults]) -> str:
    """Names of the classes, by data set where there are several."""
    said: dict[str, list[str]] = {run.data: run.model.get("class_names", []) for run in runs}
    said = {data: names for data, names in said.items() if names}
    texts = {
        data: f"{len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
        for data, names in said.items()
    }
    return _listed(texts.values()) if len(said) < 2 else "; ".join(f"{data}: {text}" for data, text in texts.items())


def _truth(runs: Sequence[RunResults]) -> str:
    """Whether concepts were annotated image by image or class by class: corrections mean different things then."""
    found = {}
    for run in runs:
        concepts = run.model.get("concepts")
        if isinstance(concepts, dict) and "per_class" in concepts:
            found[run.data] = bool(concepts["per_class"])
    per_class, per_image = (
        "per class: every image of a class has the same concepts, so a correction also gives the class away",
        "per image: annotated for every single image",
    )
    if len(set(found.values())) < 2:
        return _listed(per_class if value else per_image for value in found.values())
    return "; ".join(f"{data}: {per_class if value else per_image}" for data, value in found.items())


def _intervals(runs: Sequence[RunResults]) -> str:
    """How test images were resampled."""
    resampling = next((r.choices["interval"] for run in runs for r in run.records if r.choices.get("interval")), "")
    text = "95 %"
    if resampling:
        text += f"; test images: {resampling}"
    if any(len({r.seed for r in runs if r.preset == run.preset}) > 1 for run in runs):
        text += "; several seeds: Student's t over seeds, joined with the former as a root of squares"
    return text


def _corrections(runs: Sequence[RunResults]) -> str:
    """Trials, source of the answers."""
    choices = next(
        (r.choices for run in runs for r in run.records if r.metric == "intervention_area" and r.choices.get("trials")),
        None,
    )
    if choices is None:
        return ""
    text = f"random order: mean of {choices['trials']} orders"
    if choices.get("truth"):
        text += f"; answers: {choices['truth']}"
    if choices.get("level"):
        text += f" ({choices['level']})"
    return text


def _hardware(run: RunResults) -> str:
    env = run.environment
    devices = ", ".join(map(str, env.get("accelerators") or [])) or "no accelerator"
    parts = [
        str(env.get("processor") or ""),
        _count(env.get("cores"), "core"),
        _count(env.get("threads"), "thread"),
        devices,
    ]
    return ", ".join(p for p in parts if p) if env else ""


def _count(number: Any, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if isinstance(number, int) else ""


def _software(run: RunResults) -> str:
    packages = run.environment.get("packages")
    named = [f"{name} {version}" for name, version in packages.items()] if isinstance(packages, dict) else []
    python = run.environment.get("python")
    return ", ".join([f"Python {python}", *named] if python else named)


# Settings that may differ between seeds without making another model.
INCIDENTAL = {"seed", "root", "workers", "cache", "out", "threads", "progress", "tensorboard", "save_seconds"}


def differences(rows: Sequence[Row]) -> list[str]:
    """Settings in which runs of one row differ although they are averaged as seeds of one model."""
    found = []
    for row in rows:
        flat = [
            _flat({k: run.config.get(k) for k in ("model", "backbone", "data", "loss", "train")}) for run in row.runs
        ]
        keys = sorted({key for one in flat for key in one})
        differing = [k for k in keys if len({repr(one.get(k)) for one in flat}) > 1]
        if differing:
            found.append(f"the runs of {row.label} also differ in {', '.join(differing[:6])}")
    return found


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values, without incidental ones."""
    if not isinstance(config, dict):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key not in INCIDENTAL:
            found.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return found
