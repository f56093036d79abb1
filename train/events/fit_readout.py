"""Fit a linear readout by a proper solver instead of gradient steps."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.train.events.base import EVENTS, Event, Moment
from vitrarium.train.events.vectors import readout_vectors


@EVENTS.register("fit_readout")
class FitReadout(Event):
    """Multinomial logistic regression from evidence to class, its regularisation chosen on validation.

    The evidence is that of the clean training split under the stage's training intervention: with ``do: {kind: truth}``
    the readout is fitted to true concepts (independent bottleneck), without one to predicted concepts (sequential). The
    strength with the smallest validation log-loss wins. Accuracy would be too coarse: on a thousand images strengths
    that differ a thousandfold often tie, and yet behave quite differently once concepts are corrected.

    Args:
        strengths: candidates for C, the inverse strength of the L2 penalty.
        iterations: limit of the solver.
    """

    default_when = "start"

    def __init__(self, strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0), iterations: int = 2000) -> None:
        if not strengths or min(strengths) <= 0:
            raise UserError(f"strengths={list(strengths)}", "give one or more numbers above 0")
        self.strengths, self.iterations = tuple(sorted(strengths)), iterations
        self.report: dict[str, Any] = {}

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a readout that is not linear."""
        if not isinstance(getattr(model.readout, "linear", None), torch.nn.Linear):
            raise UserError(
                f"event 'fit_readout' needs a linear readout, not {type(model.readout).__name__}",
                "set model.readout.name=linear",
            )

    def run(self, moment: Moment) -> None:
        """Two passes of the backbone (training and validation split), then one fit per candidate."""
        self.check(moment.model)
        linear: torch.nn.Linear = moment.model.readout.linear  # type: ignore[assignment]
        train, val = self._vectors(moment, "train"), self._vectors(moment, "val")
        best: tuple[float, Any] | None = None
        for strength in self.strengths:
            fitted = self._fit(*train, strength)
            loss = _log_loss(fitted, *val)
            self.report[f"{strength:g}"] = {
                "log_loss": loss,
                "accuracy": float((fitted.predict(val[0]) == val[1]).mean()),
            }
            for name, value in self.report[f"{strength:g}"].items():
                moment.log(f"fit_readout/val_{name}@{strength:g}", value)
            if best is None or loss < best[0]:
                best = (loss, fitted)
        assert best is not None
        weight, bias = _all_classes(best[1], linear.out_features)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            if linear.bias is not None:
                linear.bias.copy_(torch.from_numpy(bias))

    def _fit(self, vectors: np.ndarray, labels: np.ndarray, strength: float) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=self.iterations).fit(vectors, labels)

    def _vectors(self, moment: Moment, split: str) -> tuple[np.ndarray, np.ndarray]:
        vectors, labels = readout_vectors(moment, split)
        return vectors.double().numpy(), labels.numpy()


def _log_loss(fitted: Any, vectors: np.ndarray, labels: np.ndarray) -> float:
    """Mean -log probability of the true class; a class that training never saw has the least positive probability."""
    place = {label: column for column, label in enumerate(fitted.classes_)}
    columns = np.array([place.get(label, -1) for label in labels])
    chosen = np.where(columns >= 0, fitted.predict_proba(vectors)[np.arange(len(labels)), columns], 0.0)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def _all_classes(fitted: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, E) and bias (C,); two classes are split evenly, a class absent from training is never chosen."""
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight, bias = np.zeros((classes, coefficients.shape[1])), np.full(classes, -1e3)
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    return weight, bias
