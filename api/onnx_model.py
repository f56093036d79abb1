"""An exported ONNX model in onnxruntime, answering by name. Neither torch nor timm is needed or loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.corrections import read_corrections
from vitrarium.data.preprocessing import Preprocessing

DESCRIPTION = "vitrarium"
"""The entry of the file's metadata that holds its description."""


@dataclass
class OnnxPrediction:
    """What an exported model says of one image.

    Attributes:
        label: name of the class.
        probability: of that class.
        confidence: how sure the model is, in [0, 1]: the probability, or what its threshold is set on.
        abstained: whether the confidence is below the model's threshold; ``label`` is what it would have said.
        probabilities: by class name, most probable first.
        units: activation by unit name, after corrections.
        corrected: names of the units that were set.
    """

    label: str
    probability: float
    confidence: float
    abstained: bool
    probabilities: dict[str, float]
    units: dict[str, float]
    corrected: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return dict(vars(self))


class OnnxModel:
    """A file that ``vitrarium export --format onnx`` has written.

    Args:
        path: the file; nothing beside it is read.
        threads: threads of one answer; None leaves it to onnxruntime.

    Attributes:
        description: what stands in the file: inputs, outputs, names, preprocessing, threshold.
        class_names: names of the C classes.
        unit_names: names of the M units.

    Raises:
        UserError: no such file, a damaged one, one from elsewhere, no onnxruntime.

    Example:
        >>> model = OnnxModel("model.onnx")                        # doctest: +SKIP
        >>> model.predict("cell.jpg", do={"granularity": "yes"}).label    # doctest: +SKIP
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("running an ONNX file needs onnxruntime", "pip install 'vitrarium[export]'") from error
        if not Path(path).is_file():
            raise UserError(f"there is no file '{path}'", "check the path")
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of errors for each kind of damage
            raise UserError(f"'{path}' is no ONNX file or damaged", "export the model again") from error
        text = self.session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)
        if text is None:
            raise UserError(f"'{path}' was not written by vitrarium", "give a file that vitrarium export has written")
        self.description: dict[str, Any] = json.loads(text)
        self.class_names = tuple(self.description["class_names"])
        self._units = ConceptSet.from_dict(self.description["units"])
        self.unit_names = self._units.names
        self._absent, self._present = (
            np.array([np.nan if v is None else v for v in self.description[end]], np.float32)
            for end in ("absent", "present")
        )

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits (B, C) and units (B, M) of a batch, for code that has pixels already.

        Args:
            image: (B, channels, H, W) in [0, 1].
            mask: (B, M) bool, True where a unit is set; None sets none.
            values: (B, M) the activations they are set to.

        Raises:
            UserError: another shape than the model was exported for.
        """
        wanted, given = self.description["inputs"]["image"][1:], list(np.shape(image)[1:])
        if given != wanted:
            raise UserError(
                f"the images have the shape (B, {', '.join(map(str, given))}), "
                f"the model takes (B, {', '.join(map(str, wanted))})",
                "give predict() the picture itself, which it brings to size",
            )
        shape = (len(image), len(self.unit_names))
        mask = np.zeros(shape, bool) if mask is None else np.broadcast_to(mask, shape)
        values = np.zeros(shape, np.float32) if values is None else np.broadcast_to(values, shape)
        feed = {
            "image": np.ascontiguousarray(image, np.float32),
            "mask": np.ascontiguousarray(mask, bool),
            "values": np.ascontiguousarray(values, np.float32),
        }
        logits, units = self.session.run(["logits", "units"], feed)
        return logits, units

    def predict(self, image: Any, do: Mapping[str, Any] | None = None) -> OnnxPrediction:
        """Classify one image, with corrections by name.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) uint8 or float in [0, 1].
            do: corrections by name, for instance ``{"granularity": "yes"}``; categorical groups are set whole. Units
                can be silent or have a score, as in ``TransparentClassifier.predict``; places cannot be banned.

        Raises:
            UserError: an image that cannot be read, an unknown unit, an impossible value.
        """
        if self.description["preprocessing"] is None:
            raise UserError("this model does not know its preprocessing", "call it with pixels of its size")
        pixels = Preprocessing(**self.description["preprocessing"]).pixels(image)
        mask, values = self._intervention(do or {})
        logits, units = self(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255, mask, values)
        # In double precision, like the confidence that the threshold was chosen on.
        exponentials = np.exp(logits[0].astype(np.float64) - logits[0].max())
        probabilities = exponentials / exponentials.sum()
        order = np.argsort(-probabilities, kind="stable")
        confidence, abstained = self._confidence(probabilities[order])
        return OnnxPrediction(
            label=self.class_names[order[0]],
            probability=float(probabilities[order[0]]),
            confidence=confidence,
            abstained=abstained,
            probabilities={self.class_names[c]: float(probabilities[c]) for c in order},
            units=dict(zip(self.unit_names, units[0].tolist(), strict=True)),
            corrected=[name for name, chosen in zip(self.unit_names, mask, strict=True) if chosen],
        )

    def _intervention(self, do: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Answers by name as mask and values (M,): value = absent + truth (present - absent)."""
        kind = self.description["units"]["kind"]
        # Files of earlier versions do not say these two.
        alive, gates = self.description.get("alive"), self.description.get("gates", False)
        given = read_corrections(self._units, do, kind, alive, gates)
        if given.confines:
            raise UserError(
                "an exported model takes no places where units may not look: it has inputs for images and values only",
                "predict with the model folder itself, or set units",
            )
        mask, truth = np.zeros(len(self.unit_names), bool), np.zeros(len(self.unit_names), np.float32)
        for unit, value in given.values.items():
            mask[unit], truth[unit] = True, value
        # What is wholly absent or present needs only that one value; the other may be unknown.
        between = self._absent + truth * (self._present - self._absent)
        values = np.where(truth == 0, self._absent, np.where(truth == 1, self._present, between))
        unknown = np.flatnonzero(mask & np.isnan(values))
        if len(unknown):
            end = {0.0: "absent", 1.0: "present"}.get(float(truth[unknown[0]]), "absent and present")
            raise UserError(
                f"{kind} '{self.unit_names[unknown[0]]}' has no activation that stands for {end}",
                "units need concepts as truth, or the event 'calibrate' in the recipe; "
                "a plain number can be set as score:NUMBER",
            )
        for unit, score in given.scores.items():
            mask[unit], values[unit] = True, score
        return mask, np.where(mask, values, 0)

    def _confidence(self, ranked: np.ndarray) -> tuple[float, bool]:
        """How sure the model is, and whether that is too little, from its probabilities in falling order."""
        rule = self.description["abstention"]
        sure = float(ranked[0] - ranked[1]) if rule and rule["score"] == "margin" else float(ranked[0])
        return sure, bool(rule) and sure < rule["threshold"]
