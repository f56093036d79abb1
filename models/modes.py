"""Evaluation mode for a while: every module gets back the mode it had, a frozen one among those that learn its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards this module and all inside are in the modes (training, evaluation) they were in before.

    ``module.train(before)`` would not do: it sets all modules alike, and the norms of a frozen part would learn.
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has the mode it had.

    Tensors made inside are ordinary ones even under an outer ``torch.inference_mode``, so that they can enter autograd
    later.
    """
    with modes_kept(module), torch.inference_mode(False), torch.no_grad():
        module.eval()
        yield
