"""Interventions during training: what a stage's ``do`` means for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention, set_units


class TrainingDo:
    """Sets concepts to their truth during training.

    - ``truth``: all of them (the readout of an independent bottleneck sees only true concepts);
    - ``random``: each group with some probability (RandInt; Espinosa Zarlenga et al., NeurIPS 2022, concept
    embeddings), drawn
      per sample or, as the released code does, once for the whole batch. Groups are set whole.

    Concepts whose truth is unknown are left as predicted.

    Args:
        kind: "none", "truth" or "random".
        probability: of each group under "random".
        per: "sample" or "batch".
    """

    def __init__(self, kind: str = "none", probability: float = 0.25, per: str = "sample") -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"do.probability={probability}", "give a number from 0 to 1")
        self.kind, self.probability, self.per = kind, probability, per

    @staticmethod
    def of(config: Mapping[str, Any]) -> TrainingDo:
        """From the stage's ``do``."""
        return TrainingDo(config["kind"], config["probability"], config["per"])

    def __call__(
        self, model: TransparentClassifier, batch: Batch, generator: torch.Generator | None = None
    ) -> Intervention | None:
        """The intervention for this batch, or None."""
        if self.kind == "none":
            return None
        units = model.evidence.units.judged
        assert batch.concepts is not None
        if self.kind == "truth":
            mask = torch.ones_like(batch.concepts, dtype=torch.bool)
        else:
            rows = len(batch) if self.per == "sample" else 1
            chosen = torch.rand(rows, len(units.groups), generator=generator) < self.probability
            group_of = units.group_of.to(chosen.device)
            mask = chosen[:, group_of].expand(len(batch), -1).to(batch.concepts.device)
        return set_units(units, batch.concepts, mask)
