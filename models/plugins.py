"""Parts that other packages brought: what a saved model says of them, and what is missing where it is loaded."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from vitrarium.configs.errors import UserError
from vitrarium.configs.registry import Registry
from vitrarium.models.backbones.base import BACKBONES, MODULE
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.readouts.base import READOUTS

PARTS: dict[str, Registry] = {"backbone": BACKBONES, "evidence": EVIDENCE, "readout": READOUTS}


def plugins_of(spec: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Where those parts come from that are not ours.

    A network that is named by its dotted path is not among them: the path says it.

    Args:
        spec: ``{"backbone": ..., "evidence": ..., "readout": ...}``, each a name or ``{name, **options}``.

    Returns:
        By part its ``module``, and its ``package`` (``name version``) if an installed one brought it.
    """
    found = {}
    for part, registry in PARTS.items():
        name = _name(spec[part])
        if name == MODULE or name not in registry:
            continue
        module = str(getattr(registry.get(name), "__module__", "") or "")
        if module.partition(".")[0] != "vitrarium":
            found[part] = {"module": module, **_package(module)}
    return found


def refuse_missing(spec: Mapping[str, Any], plugins: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse a saved model with a part that nobody registers here, and say who did when it was saved.

    Args:
        spec: of the saved model.
        plugins: what :func:`plugins_of` said then.

    Raises:
        UserError: with the package to install.
    """
    for part, registry in PARTS.items():
        name, home = _name(spec[part]), plugins.get(part)
        if home is not None and name not in registry:
            raise UserError(f"unknown {registry.kind} '{name}'", _cure(home))


def _name(spec: Mapping[str, Any] | str) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name", ""))


def _package(module: str) -> dict[str, str]:
    """The installed package of a module; nothing for a file of the user's."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    return {"package": f"{names[0]} {importlib.metadata.version(names[0])}"} if names else {}


def _cure(home: Mapping[str, str]) -> str:
    module = home.get("module", "")
    if "package" in home:
        return f"it came from the package {home['package']} (module {module}): install it"
    if module == "__main__":
        return "it was defined in the program that trained the model: run its definition before loading"
    return f"it came from the module {module}, which no installed package holds: import it before loading"
