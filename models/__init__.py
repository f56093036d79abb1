"""Backbones, evidence layers, readouts, and the classifier that joins them: plain ``torch.nn``."""

from vitrarium.models.assembly import build
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.folder import load_model, save_model
from vitrarium.models.intervention import Intervention
from vitrarium.models.types import Evidence, Features, Output

__all__ = [
    "Evidence",
    "Features",
    "Intervention",
    "Output",
    "TransparentClassifier",
    "build",
    "load_model",
    "save_model",
]
