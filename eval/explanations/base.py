"""The registry of explainers: functions ``(model, image, ...) -> explanation``."""

from __future__ import annotations

from vitrarium.configs.registry import Registry

EXPLAINERS = Registry("explainer", ["vitrarium.eval.explanations.contributions"])
