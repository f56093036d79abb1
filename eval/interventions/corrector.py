"""Where the answers come from: the annotation itself, or another person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.eval.collect import Collected
from vitrarium.eval.metrics.layout import known_groups, layout
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.units import UnitTable


@dataclass
class Corrector:
    """Answers for N images.

    Attributes:
        truth: (N, M) in [0, 1]; NaN = cannot answer. A categorical group with a NaN is not answered at all.
        source: who answers ("annotation", "second annotator"), for the records.
        level: "per image" if each image has its own answers, "per class" if truth was given once per class: then a
            correction hands over a code of the class.
    """

    truth: Tensor
    source: str = "annotation"
    level: str = "per image"

    def __len__(self) -> int:
        return len(self.truth)

    def answers(self, units: UnitTable) -> tuple[Tensor, Tensor]:
        """Truth with half-answered categorical groups taken back (N, M), and which groups are answered (N, G) bool."""
        concepts = units.concepts
        known = known_groups(self.truth, concepts)
        where = layout(concepts, self.truth.device)
        return self.truth.masked_fill(~known[:, where.group_of], float("nan")), known


def annotation(model: TransparentClassifier, collected: Collected) -> Corrector:
    """The annotator of the data set answers.

    Raises:
        UserError: the data has no concepts.
    """
    if collected.concepts is None:
        raise UserError("nobody can correct concepts: this data set has none", "choose a data set with concepts")
    return Corrector(collected.concepts, "annotation", _level(model))


def annotator(answers: Tensor, collected: Collected, source: str = "second annotator") -> Corrector:
    """Another person answers.

    Args:
        answers: (N, M) in [0, 1], NaN where there is no answer, in the order of ``collected``.
        collected: the images.
        source: who it is, for the records.

    Raises:
        UserError: a wrong number of rows, or numbers outside [0, 1].
    """
    answers = torch.as_tensor(answers, dtype=torch.float32)
    if answers.dim() != 2 or len(answers) != len(collected):
        raise UserError(
            f"answers of shape {tuple(answers.shape)} for {len(collected)} images",
            "give one row per image and one column per concept, NaN where there is no answer",
        )
    if bool(((answers < 0) | (answers > 1)).any()):
        raise UserError("answers outside [0, 1]", "give 0, 1 or a probability, and NaN where there is no answer")
    return Corrector(answers, source)


def _level(model: TransparentClassifier) -> str:
    return "per class" if model.concepts is not None and model.concepts.per_class else "per image"


def value_source(units: UnitTable) -> str:
    """What a corrected unit is set to, in words, for the records."""
    plain = bool((units.absent == 0).all()) and bool((units.present == 1).all())
    return "0 and 1" if plain else "training quantiles"
