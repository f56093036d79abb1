"""Vitrarium: a zoo of image classifiers that are interpretable by design.

Train, look, correct, compare:

    import vitrarium as vt
    run = vt.fit("model=cbm", "data=flowers", out="runs/cbm")
    model = vt.load("runs/cbm")
    model.predict("cell.jpg", do={"granularity": "yes"})

Importing the package loads neither torch nor timm; a function loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrarium.comparing import compare
    from vitrarium.configs.compose import compose
    from vitrarium.configs.errors import Interrupted, UserError
    from vitrarium.experiments import experiment
    from vitrarium.listing import names
    from vitrarium.runs import Run, fit
    from vitrarium.using import evaluate, explain, intervene, load, predict

__version__ = "0.1.0"

_PLACES = {
    "Interrupted": "vitrarium.configs.errors",
    "Run": "vitrarium.runs",
    "UserError": "vitrarium.configs.errors",
    "compare": "vitrarium.comparing",
    "compose": "vitrarium.configs.compose",
    "evaluate": "vitrarium.using",
    "experiment": "vitrarium.experiments",
    "explain": "vitrarium.using",
    "fit": "vitrarium.runs",
    "intervene": "vitrarium.using",
    "load": "vitrarium.using",
    "names": "vitrarium.listing",
    "predict": "vitrarium.using",
}

__all__ = [
    "Interrupted",
    "Run",
    "UserError",
    "compare",
    "compose",
    "evaluate",
    "experiment",
    "explain",
    "fit",
    "intervene",
    "load",
    "names",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vitrarium' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
