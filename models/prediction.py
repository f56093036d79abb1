"""Images in, answers with their reasons out: one at a time, or a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.abstention import confidence_of
from vitrarium.models.modes import evaluating

if TYPE_CHECKING:
    from vitrarium.data.preprocessing import Preprocessing
    from vitrarium.models.classifier import TransparentClassifier


@dataclass
class Prediction:
    """What a model says of one image.

    Attributes:
        label: name of the class.
        probability: of that class.
        confidence: how sure the model is of it, in [0, 1]: the probability, or what its threshold is set on.
        abstained: whether the confidence is below the model's threshold; ``label`` is what it would have said. A model
            without a threshold never abstains.
        probabilities: by class name, most probable first.
        units: activation by unit name, after corrections.
        contributions: by unit name, to the logit of ``label``.
        additive: whether contributions, remainder and bias add up to the logit.
        corrected: names of the units that were set or kept from a place; "everywhere" where all were kept from one.
    """

    label: str
    probability: float
    confidence: float
    abstained: bool
    probabilities: dict[str, float]
    units: dict[str, float]
    contributions: dict[str, float]
    additive: bool
    corrected: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return dict(vars(self))


@dataclass
class Predictions:
    """What a model says of B images, as arrays; ``predictions[i]`` is the :class:`Prediction` of one of them.

    Attributes:
        class_names: names of the C classes.
        unit_names: names of the M units.
        classes: (B,) position of the class that is named.
        probabilities: (B, C).
        confidence: (B,) float64.
        abstained: (B,) bool.
        units: (B, M) activations, after corrections.
        contributions: (B, M) to the logit of the class that is named; (B, 0) where they were not asked for.
        additive: whether contributions, remainder and bias add up to the logit.
        corrected: names of the units that were set or kept from a place; "everywhere" where all were kept from one.
    """

    class_names: tuple[str, ...]
    unit_names: tuple[str, ...]
    classes: np.ndarray
    probabilities: np.ndarray
    confidence: np.ndarray
    abstained: np.ndarray
    units: np.ndarray
    contributions: np.ndarray
    additive: bool
    corrected: list[str]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, row: int) -> Prediction:
        winner, shares = int(self.classes[row]), self.probabilities[row].tolist()
        order = np.argsort(-self.probabilities[row], kind="stable").tolist()
        return Prediction(
            label=self.class_names[winner],
            probability=shares[winner],
            confidence=float(self.confidence[row]),
            abstained=bool(self.abstained[row]),
            probabilities={self.class_names[c]: shares[c] for c in order},
            units=dict(zip(self.unit_names, self.units[row].tolist(), strict=True)),
            # Without contributions the names meet nothing.
            contributions=dict(zip(self.unit_names, self.contributions[row].tolist(), strict=False)),
            additive=self.additive,
            corrected=list(self.corrected),
        )


def predict(model: TransparentClassifier, image: Any, do: Mapping[str, Any] | None = None) -> Prediction:
    """See :meth:`TransparentClassifier.predict`."""
    return predict_batch(model, to_pixels(model, image), do)[0]


def predict_batch(
    model: TransparentClassifier, pixels: Tensor, do: Mapping[str, Any] | None = None, contributions: bool = True
) -> Predictions:
    """Classify a batch and say why.

    Args:
        model: any classifier of the zoo; it gets its modes back.
        pixels: (B, 3, H, W) in [0, 1], B >= 1, on the model's device.
        do: corrections by name, for all images; see :meth:`TransparentClassifier.predict`.
        contributions: whether to ask for them; for readouts that are not linear they cost a backward pass.

    Raises:
        UserError: an unknown unit, an impossible value or box.
    """
    with evaluating(model):
        output = model.under(model.backbone(pixels), do)[0] if do else model(pixels)
        classes = output.logits.argmax(-1)
        given = model.contributions(output.evidence, classes) if contributions else None
    names = model.evidence.units.names
    abstention = model.abstention
    sure = confidence_of(output.logits, "probability" if abstention is None else abstention.score).numpy()
    return Predictions(
        class_names=model.class_names,
        unit_names=names,
        classes=classes.cpu().numpy(),
        probabilities=_array(output.logits.softmax(-1)),
        confidence=sure,
        abstained=np.zeros(len(sure), bool) if abstention is None else sure < abstention.threshold,
        units=_array(output.evidence.activations),
        contributions=np.zeros((len(sure), 0), np.float32) if given is None else _array(given.units),
        additive=given is not None and given.additive,
        corrected=model.evidence.read_corrections(do).told(names) if do else [],
    )


def preprocessing_of(model: TransparentClassifier) -> Preprocessing:
    """The preprocessing that was saved with the model.

    Raises:
        UserError: the model was built without one.
    """
    if model.preprocessing is None:
        raise UserError("this model does not know its preprocessing", "give TransparentClassifier a Preprocessing")
    return model.preprocessing


def to_pixels(model: TransparentClassifier, image: Any) -> Tensor:
    """Any image as (1, 3, H, W) in [0, 1] on the model's device, by the preprocessing saved with the model."""
    return stack_pixels(model, [preprocessing_of(model).pixels(image)])


def stack_pixels(model: TransparentClassifier, arrays: Sequence[np.ndarray]) -> Tensor:
    """Images (H, W, 3) uint8 of the model's size as (B, 3, H, W) in [0, 1] on the model's device."""
    stacked = torch.from_numpy(np.stack(arrays)).to(model.evidence.alive.device)
    return stacked.permute(0, 3, 1, 2).float() / 255


def _array(tensor: Tensor) -> np.ndarray:
    values = tensor.detach().cpu()
    return (values if values.dtype == torch.float64 else values.float()).numpy()
