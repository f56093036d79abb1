"""The path of one image through a decision tree: what each question looked for, what it found, and where that led."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.eval.explanations import heat
from vitrarium.eval.explanations.patches import Match, Source
from vitrarium.eval.explanations.prototypes import looks_of
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating
from vitrarium.models.prediction import to_pixels
from vitrarium.models.regions import Places
from vitrarium.models.types import Evidence, Features


@dataclass
class Stop:
    """One question on the way.

    Attributes:
        name: of the unit that was asked for.
        similarity: what was found, in [0, 1]; as set, where a person set it.
        present: whether the walk went on to the side of "present".
        before: probability of every class before the question, by name.
        source: what the prototype stands for; None where that is not known.
        match: where it was found in the image; None for units that are not looked for in patches.
        corrected: whether a person set the unit.
    """

    name: str
    similarity: float
    present: bool
    before: dict[str, float]
    source: Source | None = None
    match: Match | None = None
    corrected: bool = False

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def answer(self) -> str:
        """Whether it is "present" or "absent"."""
        return "present" if self.present else "absent"


@dataclass
class Walk:
    """The whole way.

    Attributes:
        image: (H, W, 3) uint8, as the model saw it.
        stops: the questions in order.
        answer: probability of every class in the leaf, by name, most probable first.
        probability: of this path; the other leaves share the rest.
        decide: "greedy" (one walk is all there is), "likely" (the leaf of the most probable path) or "soft" (the answer
            mixes all leaves, and this path is only the most probable one).
    """

    image: np.ndarray
    stops: list[Stop]
    answer: dict[str, float]
    probability: float
    decide: str

    @property
    def label(self) -> str:
        """The class that the leaf names."""
        return next(iter(self.answer))

    def after(self, number: int) -> dict[str, float]:
        """Probability of every class after the first ``number`` questions, by name."""
        return self.stops[number].before if number < len(self.stops) else self.answer

    def sentence(self) -> str:
        """The path in words: "prototype 0 is present, prototype 2 is absent: so it is a rose."."""
        said = ", ".join(f"{stop.title} is {stop.answer} ({stop.similarity:.2f})" for stop in self.stops)
        if self.decide == "soft":
            return f"The likeliest path (of probability {self.probability:.2f}): {said}, which leads to {self.label}."
        return f"{said[:1].upper()}{said[1:]}: the leaf says {self.label}."

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; the image as a PNG data address."""
        stops = [
            {
                **vars(stop),
                "source": None if stop.source is None else stop.source.to_dict(),
                "match": None if stop.match is None else stop.match.to_dict(),
            }
            for stop in self.stops
        ]
        return {**vars(self), "image": heat.data_address(heat.png(self.image)), "stops": stops}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Walk:
        """Inverse of :meth:`to_dict`."""
        stops = [
            Stop(**{**stop, "source": Source.from_dict(stop["source"]), "match": Match.from_dict(stop["match"])})
            for stop in data["stops"]
        ]
        return Walk(**{**data, "image": heat.from_data_address(data["image"]), "stops": stops})


def walk_of(
    model: TransparentClassifier,
    pixels: Tensor,
    features: Features,
    evidence: Evidence,
    do: Intervention | None = None,
) -> Walk | None:
    """The path of one image; None where the readout has none. Call it under ``evaluating``.

    Args:
        model: the classifier.
        pixels: (1, 3, H, W) the image.
        features: of the image.
        evidence: of the image, after the intervention.
        do: the intervention.
    """
    tell = getattr(model.readout, "path", None)
    if tell is None:
        return None
    told, names = tell(evidence)[0], model.class_names
    units = [step.unit for step in told.steps]
    looks = looks_of(model, pixels, features, units, do) if "prototypes" in model.evidence.gives else {}
    stops = []
    for step in told.steps:
        match, source = looks.get(step.unit, (None, None))
        before = dict(zip(names, step.before, strict=True))
        corrected = do is not None and bool(do.mask[0, step.unit])
        stops.append(Stop(step.name, step.similarity, step.present, before, source, match, corrected))
    answer = dict(sorted(zip(names, told.answer, strict=True), key=lambda pair: -pair[1]))
    image = (pixels[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Walk(image, stops, answer, told.probability, str(getattr(model.readout, "decide", told.decide)))


def explain_path(model: TransparentClassifier, image: Any, do: Mapping[str, Any] | None = None) -> Walk:
    """The path of one image through a model that is a tree.

    Args:
        model: a classifier whose readout is a tree.
        image: a path, a PIL image, or an array (H, W, 3) uint8 or float in [0, 1].
        do: corrections by name, as :meth:`TransparentClassifier.predict` takes them.

    Raises:
        UserError: a readout without paths, an unreadable image, an unknown unit or value.
    """
    pixels = to_pixels(model, image)
    with evaluating(model):
        features = model.backbone(pixels)
        seen = model.observe(features)
        made = model.intervention(do, 1, Places.of(seen, features)) if do else None
        walk = walk_of(model, pixels, features, model.answer(seen, made, features).evidence, made)
    if walk is None:
        raise UserError(
            f"{type(model.readout).__name__} is no tree, so an image has no path", "use vitrarium explain instead"
        )
    return walk
