"""What there is, by name."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrarium.configs.compose import FOLDER, compose, options, to_plain
from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry

if TYPE_CHECKING:
    from vitrarium.models.backbones.base import Backbone, Place
    from vitrarium.models.backbones.weights import WeightReport

KINDS = (
    "presets", "experiments", "backbones", "data", "evidence", "readouts", "terms", "events", "transforms",
    "degradations", "metrics", "policies", "zoo", "runs",
)  # fmt: skip


def names(kind: str, pattern: str = "*") -> list[str]:
    """Names of one kind ("presets", "backbones" ...) that match a shell pattern, sorted.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'", closest(kind, KINDS))
    return sorted(name for name in _all(kind) if fnmatch(name, pattern))


def look_at_backbone(
    name: str, size: int | None = None, weights: str | None = None
) -> tuple[list[Place], int, Backbone, WeightReport | None]:
    """Where a backbone can be cut, and what of some weights matches it.

    Args:
        name: of a backbone, of a configuration in the group ``backbone``, or a YAML of one.
        size: height and width of the images; default one that it surely takes.
        weights: a weight source to try; a configuration's own is not read.

    Returns:
        The places, the size, the backbone as it would be used, and the report on the weights.
    """
    from vitrarium.models.backbones import build_backbone, describe_backbone
    from vitrarium.models.backbones.weights import load_weights

    spec: dict[str, Any] = {"name": name}
    if name.endswith((".yaml", ".yml")) or name in options("backbone"):
        spec = to_plain(compose([f"backbone={name}"]))["backbone"]
    spec.pop("weights", None)
    backbone = build_backbone(spec)
    report = None if weights is None else load_weights(backbone, weights, minimum=0.0)
    side = size or backbone.image_size or backbone.probe_size
    return describe_backbone(spec, side), side, backbone, report


def about(kind: str, name: str) -> str:
    """One line on a name: the first comment of a YAML, the first line of a docstring, the numbers of an animal."""
    if kind in ("presets", "experiments"):
        path = FOLDER / ("model" if kind == "presets" else "experiment") / f"{name}.yaml"
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        return first.lstrip("# ").strip() if first.startswith("#") else ""
    if kind == "zoo":
        return _about_animal(name)
    registries = _registries()
    if kind in registries and name in registries[kind]:
        return (registries[kind].get(name).__doc__ or "").strip().split("\n")[0]
    return ""


def _all(kind: str) -> list[str]:
    if kind == "presets":
        return options("model")
    if kind == "experiments":
        return options("experiment")
    if kind == "runs":
        return [str(p.parent) for p in sorted(Path("runs").glob("**/progress.json"))]
    if kind == "backbones":
        from vitrarium.models.backbones import list_backbones

        return list_backbones()
    if kind == "zoo":
        from vitrarium.models.zoo import animals

        return animals()
    return _registries()[kind].list()


def _about_animal(name: str) -> str:
    """What it is, and how often it is right."""
    from vitrarium.models.zoo import animal_facts

    facts = animal_facts(name)
    said = [f"{facts['title'] or facts['preset']} on {facts['data']}"]
    for metric, words in (("accuracy", "class accuracy"), ("concept_accuracy", "concept accuracy")):
        number = facts["numbers"].get(metric)
        if number is not None:
            said.append(f"{words} {number['value']:.1%} ({number['low']:.1%} to {number['high']:.1%})")
    return ", ".join(said) + ", test split"


def _registries() -> dict[str, Registry]:
    from vitrarium.data.augmentation import TRANSFORMS
    from vitrarium.data.degrade import DEGRADATIONS
    from vitrarium.data.source import DATASETS
    from vitrarium.eval.interventions import POLICIES
    from vitrarium.eval.metrics import METRICS
    from vitrarium.models.evidence.base import EVIDENCE
    from vitrarium.models.readouts.base import READOUTS
    from vitrarium.train.events.base import EVENTS
    from vitrarium.train.terms.base import TERMS

    return {
        "data": DATASETS, "evidence": EVIDENCE, "readouts": READOUTS, "terms": TERMS, "events": EVENTS,
        "transforms": TRANSFORMS, "degradations": DEGRADATIONS, "metrics": METRICS, "policies": POLICIES,
    }  # fmt: skip
