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
    from vitrarium.checking import check_data, example, show_data
    from vitrarium.comparing import compare
    from vitrarium.configs.allowed import allow
    from vitrarium.configs.compose import compose
    from vitrarium.configs.errors import Interrupted, UserError
    from vitrarium.experiments import experiment
    from vitrarium.exporting import export
    from vitrarium.hub import from_pretrained, push_to_hub
    from vitrarium.judging_axes import axes, trajectories
    from vitrarium.listing import names
    from vitrarium.onnx_model import OnnxModel
    from vitrarium.predicting import predict_many
    from vitrarium.runs import Run, fit
    from vitrarium.using import (
        backbone,
        build,
        edit,
        evaluate,
        explain,
        gallery,
        intervene,
        load,
        predict,
        prototypes,
        set_threshold,
    )

__version__ = "0.1.0"

_PLACES = {
    "allow": "vitrarium.configs.allowed",
    "axes": "vitrarium.judging_axes",
    "backbone": "vitrarium.using",
    "build": "vitrarium.using",
    "Interrupted": "vitrarium.configs.errors",
    "OnnxModel": "vitrarium.onnx_model",
    "Run": "vitrarium.runs",
    "UserError": "vitrarium.configs.errors",
    "check_data": "vitrarium.checking",
    "compare": "vitrarium.comparing",
    "compose": "vitrarium.configs.compose",
    "edit": "vitrarium.using",
    "evaluate": "vitrarium.using",
    "example": "vitrarium.checking",
    "experiment": "vitrarium.experiments",
    "explain": "vitrarium.using",
    "export": "vitrarium.exporting",
    "fit": "vitrarium.runs",
    "from_pretrained": "vitrarium.hub",
    "gallery": "vitrarium.using",
    "intervene": "vitrarium.using",
    "load": "vitrarium.using",
    "names": "vitrarium.listing",
    "predict": "vitrarium.using",
    "predict_many": "vitrarium.predicting",
    "prototypes": "vitrarium.using",
    "push_to_hub": "vitrarium.hub",
    "set_threshold": "vitrarium.using",
    "show_data": "vitrarium.checking",
    "trajectories": "vitrarium.judging_axes",
}

__all__ = [
    "Interrupted",
    "OnnxModel",
    "Run",
    "UserError",
    "allow",
    "axes",
    "backbone",
    "build",
    "check_data",
    "compare",
    "compose",
    "edit",
    "evaluate",
    "example",
    "experiment",
    "explain",
    "export",
    "fit",
    "from_pretrained",
    "gallery",
    "intervene",
    "load",
    "names",
    "predict",
    "predict_many",
    "prototypes",
    "push_to_hub",
    "set_threshold",
    "show_data",
    "trajectories",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vitrarium' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
