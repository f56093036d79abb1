"""What there is, by name."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from vitrarium.configs.compose import FOLDER, options
from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry

KINDS = (
    "presets", "experiments", "backbones", "data", "evidence", "readouts", "terms", "events", "transforms",
    "degradations", "metrics", "policies", "runs",
)  # fmt: skip


def names(kind: str, pattern: str = "*") -> list[str]:
    """Names of one kind ("presets", "backbones" ...) that match a shell pattern, sorted.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'", closest(kind, KINDS))
    return sorted(name for name in _all(kind) if fnmatch(name, pattern))


def about(kind: str, name: str) -> str:
    """One line on a name: the first comment of a YAML, the first line of a docstring."""
    if kind in ("presets", "experiments"):
        path = FOLDER / ("model" if kind == "presets" else "experiment") / f"{name}.yaml"
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        return first.lstrip("# ").strip() if first.startswith("#") else ""
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
    return _registries()[kind].list()


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
