"""How much the decision loses when one unit says of an image what it says of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.eval.metrics.resampling import Bootstrap
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating


@dataclass
class Importance:
    """What is lost when units are shuffled, one at a time.

    Attributes:
        units: the J units.
        loss: (J,) mean rise of the log-loss in nats; negative where shuffling helps.
        low: (J,) lower ends of the 95 % intervals over images.
        high: (J,) upper ends.
        loss_by_class: (J, C) the same over the images of each class; NaN for a class without images.
        recall_by_class: (J, C) fall of the recall of each class, in [-1, 1].
    """

    units: tuple[int, ...]
    loss: Tensor
    low: Tensor
    high: Tensor
    loss_by_class: Tensor
    recall_by_class: Tensor


def permutation_importance(
    model: TransparentClassifier,
    batches: Callable[[], Iterable[Batch]],
    said: Tensor,
    units: Sequence[int],
    boot: Bootstrap,
    seed: int = 0,
    repeats: int = 1,
) -> Importance:
    """Permutation importance (Breiman, Machine Learning 2001) of units, at the evidence.

    Unit j of image n is set to what the unit says of image p_j(n), p_j a random order of the whole split, through
    ``do``: where units have maps, the map is shifted until its reduction has that value, so the layers above see the
    image's own map at another level. (Chen, Bei & Rudin 2020 exchange whole maps within a batch; a value can be
    exchanged in every family, and over the whole split even where its order goes by class.) The backbone runs once more
    over the split, the layers above it once for each unit.

    Args:
        model: any classifier.
        batches: gives the batches of the split, with positions, each image once.
        said: (N, M) activations by position in the split, as the model says them.
        units: the J units to shuffle.
        boot: over the N images.
        seed: of the orders.
        repeats: random orders for each unit; losses are averaged over them.

    Raises:
        UserError: fewer than one repeat, batches without positions.
    """
    if repeats < 1:
        raise UserError(f"repeats={repeats}", "shuffle at least once")
    images, at = len(said), model.evidence.alive.device
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(images, generator=generator) for _ in range(repeats * len(units))]
    donors = torch.stack([said[order, unit] for order, unit in zip(orders, [*units] * repeats, strict=True)], 1)
    rise, fall = torch.zeros(images, len(units)), torch.zeros(images, len(units))
    labels = torch.zeros(images, dtype=torch.int64)
    with evaluating(model):
        for batch in batches():
            if batch.index is None:
                raise UserError("batches without positions cannot be shuffled", "give Batch.index")
            rows, here = batch.index.cpu(), batch.to(at)
            lost, missed = _shuffled(model, here, units, donors[rows].to(at), repeats)
            rise[rows], fall[rows], labels[rows] = lost.cpu(), missed.cpu(), batch.label.cpu()
    low, high = boot.of_means(rise)
    member = functional.one_hot(labels, len(model.class_names)).double()
    count = member.sum(0)
    mean = torch.where(count > 0, 1 / count.clamp_min(1), torch.full_like(count, float("nan")))
    by_class = [(table.double().T @ member) * mean for table in (rise, fall)]
    return Importance(tuple(units), rise.double().mean(0), low, high, by_class[0], by_class[1])


def _shuffled(
    model: TransparentClassifier, batch: Batch, units: Sequence[int], values: Tensor, repeats: int
) -> tuple[Tensor, Tensor]:
    """Rise of the log-loss and fall of correctness of each image (B, J), with J * repeats values to set."""
    features = model.look(batch)
    evidence = model.observe(features)
    loss, right = _judge(model.answer(evidence).logits, batch.label)
    rise, fall = values.new_zeros(len(loss), len(units)), values.new_zeros(len(loss), len(units))
    for n in range(values.shape[1]):
        j = n % len(units)
        mask = torch.zeros(evidence.activations.shape, dtype=torch.bool, device=values.device)
        mask[:, units[j]] = True
        set_to = torch.where(mask, values[:, n : n + 1].to(evidence.activations), evidence.activations)
        new_loss, new_right = _judge(model.answer(evidence, Intervention(mask, set_to)).logits, batch.label)
        rise[:, j] += (new_loss - loss) / repeats
        fall[:, j] += (right - new_right) / repeats
    return rise, fall


def _judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) log-loss and (B,) 1 where the answer is right."""
    logits = logits.float()
    return functional.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float()
