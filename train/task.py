"""One stage of a recipe as a Lightning module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Batch
from vitrarium.eval.metrics import validation_metrics
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.types import Output
from vitrarium.train.interventions import TrainingDo
from vitrarium.train.terms.base import Step


class Task(pl.LightningModule):
    """Trains the parts that a stage learns, on the terms that it names.

    Args:
        model: the classifier.
        terms: the stage's terms by label.
        weights: weight of each term by label.
        stage: the stage's plain configuration.
        train: the plain training configuration.
        name: of the stage, for logs and messages.
        seed: all randomness of step t is a function of (seed, stage, t), so nothing needs to be saved to resume.
        steps: optimiser steps of the whole stage.
    """

    def __init__(
        self,
        model: TransparentClassifier,
        terms: nn.ModuleDict,
        weights: Mapping[str, float],
        stage: Mapping[str, Any],
        train: Mapping[str, Any],
        name: str,
        seed: int,
        steps: int,
    ) -> None:
        super().__init__()
        self.model, self.terms = model, terms
        self.weights, self.stage, self.settings = dict(weights), dict(stage), dict(train)
        self.name, self.seed, self.steps = name, seed, max(steps, 1)
        self.do = TrainingDo.of(stage["do"])
        self.batches = 0
        self.sums: dict[str, float] = {}
        self.counted = 0
        # What step events may read: filled only if there are any, emptied after every optimiser step.
        self.remembers, self.answers = False, list[tuple[Batch, Output]]()
        self.validation = nn.ModuleDict(validation_metrics(model))
        self._wants_input_gradient = any("input_gradient" in t.needs for t in terms.values())  # type: ignore[operator]
        self._freeze()

    def _freeze(self) -> None:
        """Only learnt parts require a gradient; settled before any wrapping, because DDP must not see it change."""
        self.learnt = learnt_parts(self.model, self.stage["learn"])
        for part, parameters in self.model.parts().items():
            for parameter in parameters:
                parameter.requires_grad_(part in self.learnt)

    def train(self, mode: bool = True) -> Task:
        """Training mode, except that frozen parts keep their normalisation in evaluation mode."""
        super().train(mode)
        if mode:
            for part in ("backbone", "evidence", "readout"):
                if part not in self.learnt:
                    getattr(self.model, part).eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.model(x).logits

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1]."""
        return min(self.batches / (self.steps * self.settings["accumulate"]), 1.0)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The weighted sum of the terms; a term that is not finite stops training by its name."""
        # Dropout, random interventions and sampled evidence draw from the global state: step t always draws the same.
        torch.manual_seed(derive(self.seed, self.name, self.batches, self.global_rank))
        if self._wants_input_gradient:
            batch.image.requires_grad_()
        output = self.model.on(batch, self.do(self.model, batch))
        views = [self.model(view, self.do(self.model, batch)) for view in batch.views]
        step = Step(self.model, batch, output, views, self.progress)
        total = output.logits.new_zeros(())
        for label, term in self.terms.items():
            loss = term(step)
            self._note(label, loss)
            total = total + self.weights[label] * loss
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        self.batches += 1
        self.counted += 1
        if self.remembers:
            seen = output.evidence.without_maps().detach()
            self.answers.append((batch, Output(output.logits.detach(), seen)))
        return total

    def _note(self, label: str, loss: Tensor) -> None:
        value = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            raise UserError(
                f"the loss term '{label}' became {value} in stage '{self.name}', epoch {self.current_epoch + 1}, "
                f"step {self.batches + 1}",
                "the last good checkpoint is kept: lower train.lr or the term's weight, or set train.clip=1",
            )
        self.sums[label] = self.sums.get(label, 0.0) + value
        self.log(f"loss/{label}", value, prog_bar=True, logger=False)

    def finish_epoch(self) -> None:
        """Log the epoch's mean of each term; the sums live in the checkpoint, so a resumed epoch reports the whole."""
        for label, total in self.sums.items():
            self.log(f"train/loss/{label}", total / max(self.counted, 1), sync_dist=True)
        self.sums, self.counted = {}, 0

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Update the metrics."""
        output = self.model.on(batch)
        for metric in self.validation.values():
            metric.update_output(output, batch)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        for name, metric in self.validation.items():
            self.log(f"val/{name}", metric.compute(), prog_bar=name in self.stage["select"])  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]

    def configure_optimizers(self) -> Any:
        """Optimiser with a learning rate per part, and the schedule."""
        optimiser = build_optimiser(self.model, self.learnt, self.settings, self.stage["lr"])
        warmup = round(self.settings["warmup"] * self.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: rate(step, self.steps, warmup, self.settings["schedule"])
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learnt_parts(model: TransparentClassifier, learn: Mapping[str, float]) -> dict[str, float]:
    """Learning-rate factor of each part that a stage learns; an empty mapping stands for all of them.

    Raises:
        UserError: a part that the model does not have.
    """
    parts = model.parts()
    for part in learn:
        if part not in parts:
            raise UserError(f"'{part}' cannot be learnt: it is no part", closest(part, parts))
    return {part: factor for part, factor in (learn or dict.fromkeys(parts, 1.0)).items() if factor > 0}


def without_frozen(
    stages: Mapping[str, Mapping[str, Any]], frozen: Sequence[str], model: TransparentClassifier
) -> dict[str, dict[str, Any]]:
    """The stages of a recipe, none of which learns a part that ``train.freeze`` names.

    Raises:
        UserError: a part that the model does not have, a stage with epochs that has nothing left to learn.
    """
    parts = model.parts()
    for part in frozen:
        if part not in parts:
            raise UserError(f"train.freeze names '{part}', which is no part of the model", closest(part, parts))
    changed = {}
    for name, stage in stages.items():
        learn = {p: f for p, f in (stage["learn"] or dict.fromkeys(parts, 1.0)).items() if p not in frozen}
        if stage["epochs"] > 0 and not learn:
            raise UserError(
                f"stage '{name}' learns only {', '.join(stage['learn'])}, which train.freeze freezes",
                "freeze less, or choose another preset",
            )
        changed[name] = {**stage, "learn": learn} if frozen else dict(stage)
    return changed


def build_optimiser(
    model: TransparentClassifier,
    learnt: Mapping[str, float],
    settings: Mapping[str, Any],
    lr: float | None = None,
) -> torch.optim.Optimizer:
    """The optimiser over the learnt parts; no weight decay on biases and normalisation (fewer than two dimensions)."""
    base, decay = lr or settings["lr"], settings["weight_decay"]
    groups = []
    for part, factor in learnt.items():
        parameters = model.parts()[part]
        for chosen, penalty in (
            ([p for p in parameters if p.dim() >= 2], decay),
            ([p for p in parameters if p.dim() < 2], 0.0),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": base * factor, "weight_decay": penalty})
    if not groups:
        raise UserError(
            "a stage with epochs learns no parameters", "name a part in its learn mapping, or set epochs: 0"
        )
    if settings["optimiser"] == "sgd":
        return torch.optim.SGD(groups, lr=base, momentum=0.9)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings["optimiser"]](groups, lr=base)


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Learning-rate factor: linear from 0 over ``warmup`` steps, then a half cosine to 0, or constant."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * min(done, 1.0)))))


def derive(*parts: Any) -> int:
    """A seed that is a pure function of ``parts``."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")
