"""One image in, an answer with its reasons out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError

if TYPE_CHECKING:
    from vitrarium.models.classifier import TransparentClassifier


@dataclass
class Prediction:
    """What a model says of one image.

    Attributes:
        label: name of the class.
        probability: of that class.
        probabilities: by class name, most probable first.
        units: activation by unit name, after corrections.
        contributions: by unit name, to the logit of ``label``.
        additive: whether contributions, remainder and bias add up to the logit.
        corrected: names of the units that were set.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    units: dict[str, float]
    contributions: dict[str, float]
    additive: bool
    corrected: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return dict(vars(self))


def predict(model: TransparentClassifier, image: Any, do: Mapping[str, Any] | None = None) -> Prediction:
    """See :meth:`TransparentClassifier.predict`."""
    pixels = to_pixels(model, image)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            intervention = model.intervention(do) if do else None
            output = model(pixels, intervention)
        probabilities = output.logits.softmax(-1)[0]
        winner = output.logits.argmax(-1)
        contributions = model.contributions(output.evidence, winner)
    finally:
        model.train(training)
    names = model.evidence.units.names
    order = probabilities.argsort(descending=True).tolist()
    corrected = [] if intervention is None else [n for n, m in zip(names, intervention.mask[0], strict=True) if m]
    return Prediction(
        label=model.class_names[int(winner)],
        probability=float(probabilities[winner]),
        probabilities={model.class_names[c]: float(probabilities[c]) for c in order},
        units=dict(zip(names, output.evidence.activations[0].tolist(), strict=True)),
        contributions=dict(zip(names, contributions.units[0].tolist(), strict=True)),
        additive=contributions.additive,
        corrected=corrected,
    )


def to_pixels(model: TransparentClassifier, image: Any) -> Tensor:
    """Any image as (1, 3, H, W) in [0, 1] on the model's device, by the preprocessing saved with the model."""
    if model.preprocessing is None:
        raise UserError("this model does not know its preprocessing", "give TransparentClassifier a Preprocessing")
    return model.preprocessing(image).to(next(model.parameters()).device)
