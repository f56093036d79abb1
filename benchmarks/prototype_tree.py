"""A training step of a soft decision tree: levels as tensors against one object per node.

    python benchmarks/prototype_tree.py

The step is what comes after the gates: forward pass, loss, gradient of the gates, and the gradient-free update of the
leaves; depth 9, batch 64, 200 classes. The other side is the tree as it is usually written, from the formulas of Nauta
et al. (CVPR 2021): every node and leaf is an object that calls its children, leaves are updated one by one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from common import interleave, median_spread, report
from torch import Tensor
from torch.nn import functional

from vitrarium.data.batch import Batch
from vitrarium.models.evidence.prototypes import Prototypes
from vitrarium.models.readouts.soft_tree import SoftTree
from vitrarium.models.types import Evidence, Output
from vitrarium.train.events.base import Moment
from vitrarium.train.events.tree import UpdateLeaves

TARGET = 15.0
SIZES = {True: (5, 16, 20), False: (9, 64, 200)}
STEPS = 50


class Leaf:
    """One leaf as an object: it keeps its values and the probability of its path."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.path = values, torch.empty(0)

    def forward(self, gates: Tensor, path: Tensor) -> Tensor:
        """What the leaf adds to the answers, (B, C), for log-probabilities of its path (B,)."""
        self.path = path
        return path.exp()[:, None] * self.values.softmax(0)

    def update(self, old: Tensor, target: Tensor, answer: Tensor) -> None:
        """Take off the old values (C,), add what this batch of true classes and answers (B, C) gives."""
        share = self.path.detach().exp()[:, None] * self.values.softmax(0) * target / answer
        self.values = (self.values - old / STEPS).clamp_min(0) + share.sum(0)


class Node:
    """One node as an object that asks its children."""

    def __init__(self, unit: int, left: Node | Leaf, right: Node | Leaf) -> None:
        self.unit, self.left, self.right = unit, left, right

    def forward(self, gates: Tensor, path: Tensor) -> Tensor:
        """What all below adds to the answers, (B, C)."""
        gate = gates[:, self.unit]
        left = self.left.forward(gates, path + (1 - gate).log())
        return left + self.right.forward(gates, path + gate.log())


def grow(values: Tensor, leaves: list[Leaf], depth: int, level: int = 0, place: int = 0) -> Node | Leaf:
    """The tree of objects over leaf values (L, C); the leaves are also put into a list."""
    if level == depth:
        leaves.append(Leaf(values[place].clone()))
        return leaves[-1]
    left, right = (grow(values, leaves, depth, level + 1, 2 * place + side) for side in (0, 1))
    return Node(2**level - 1 + place, left, right)


class Objects:
    """A training step of the tree of objects."""

    def __init__(self, values: Tensor, depth: int) -> None:
        self.leaves: list[Leaf] = []
        self.root = grow(values, self.leaves, depth)
        self.old = [leaf.values.clone() for leaf in self.leaves]

    def step(self, gates: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Answers (B, C) and the gradient of the gates (B, M)."""
        answer = self.root.forward(gates, torch.zeros(len(gates)))
        (gradient,) = torch.autograd.grad(functional.nll_loss(answer.log(), label), gates)
        with torch.no_grad():
            target = functional.one_hot(label, classes)
            for leaf, old in zip(self.leaves, self.old, strict=True):
                leaf.update(old, target, answer)
        return answer.detach(), gradient


class Levels:
    """A training step of ours: the readout, and the event that updates its leaves."""

    def __init__(self, values: Tensor, depth: int) -> None:
        layer = Prototypes(channels=1, classes=values.shape[1], shared=2**depth - 1, similarity="exp_l2", picture=0)
        self.tree, self.event = SoftTree(layer, values.shape[1]).train(), UpdateLeaves()
        self.tree.leaves.copy_(values)

    def step(self, gates: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Answers (B, C) and the gradient of the gates (B, M)."""
        evidence = Evidence(gates, gates)
        logits = self.tree(evidence)
        (gradient,) = torch.autograd.grad(functional.nll_loss(logits, label), gates)
        seen = Output(logits.detach(), evidence.detach())
        model: Any = SimpleNamespace(readout=self.tree)
        nothing: Any = None
        batch = Batch(torch.empty(len(gates), 3, 1, 1), label)
        self.event.run(Moment(model, nothing, nothing, nothing, seed=0, answers=[(batch, seen)], runs=float(STEPS)))
        return logits.detach().exp(), gradient


def rows(quick: bool) -> list[dict[str, Any]]:
    """Records for :func:`common.report`; ``quick`` measures a small tree, which says nothing about the target."""
    depth, batch, classes = SIZES[quick]
    generator = torch.Generator().manual_seed(0)
    values = 5 * torch.rand(2**depth, classes, generator=generator)
    gates = (0.02 + 0.96 * torch.rand(batch, 2**depth - 1, generator=generator)).requires_grad_()
    label = torch.randint(0, classes, (batch,), generator=generator)
    ours, theirs = Levels(values, depth), Objects(values, depth)
    found = [side.step(gates, label, classes) for side in (ours, theirs)]
    updated = torch.stack([leaf.values for leaf in theirs.leaves])
    pairs = [*zip(*found, strict=True), (ours.tree.leaves, updated)]
    answers, gradients, leaves = (float((a - b).abs().max()) for a, b in pairs)
    times = interleave(
        {
            "ours": lambda: ours.step(gates, label, classes),
            "theirs": lambda: theirs.step(gates, label, classes),
        },
        5 if quick else 15,
        1,
    )
    (mine, spread), (other, spread_other) = (median_spread(times[name]) for name in ("ours", "theirs"))
    return [
        {
            "name": "tree training step",
            "ours": mine,
            "theirs": other,
            "ratio": other / mine,
            "target": None if quick else TARGET,
            "difference": answers,
            "note": f"against one object per node; depth {depth}, batch {batch}, {classes} classes; the largest "
            f"difference is that of answers, of gradients it is {gradients:.1g}, of updated leaves {leaves:.1g}; "
            f"spread {spread * 1e3:.1f} and {spread_other * 1e3:.1f} ms",
        }
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(rows(quick=False))
