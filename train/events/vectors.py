"""What the readout is given, over a whole split: for events that fit it by a solver."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrarium.models.modes import evaluating
from vitrarium.train.events.base import Moment


def readout_vectors(moment: Moment, split: str) -> tuple[Tensor, Tensor]:
    """One clean pass over a split, under the stage's training intervention.

    Args:
        moment: where training stands.
        split: "train" or "val".

    Returns:
        (N, E) the evidence's vectors, for sampled evidence their means, on the CPU; (N,) int64 labels.
    """
    model = moment.model
    generator = torch.Generator().manual_seed(moment.seed)
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in moment.loaders(split):
            batch = batch.to(device)
            vector = model.on(batch, moment.do(model, batch, generator)).evidence.vector
            vectors.append((vector.mean(0) if vector.dim() == 3 else vector).cpu())
            labels.append(batch.label.cpu())
    return torch.cat(vectors), torch.cat(labels)
