"""What a decision tree does, told: the path of an image, and the rule of each leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrarium.models.readouts import tree_math

if TYPE_CHECKING:
    from vitrarium.models.readouts.soft_tree import SoftTree


@dataclass(frozen=True)
class TreeStep:
    """One question on the way to an answer.

    Attributes:
        unit: position of the unit that was asked for.
        name: of the unit.
        similarity: its gate, in [0, 1].
        present: whether the walk went right.
        before: (C,) probabilities of the classes at this node, before the question is answered.
    """

    unit: int
    name: str
    similarity: float
    present: bool
    before: tuple[float, ...]


@dataclass(frozen=True)
class TreePath:
    """The way of one image through the tree.

    Attributes:
        steps: the questions in order; nodes that no longer decide are left out.
        leaf: where it ends.
        probability: of this path, the product of the gates as they were taken.
        answer: (C,) probabilities of the classes in the leaf.
        decide: how the path was found: "greedy" or "likely".
    """

    steps: tuple[TreeStep, ...]
    leaf: int
    probability: float
    answer: tuple[float, ...]
    decide: str


def tell_paths(tree: SoftTree, gates: Tensor, decide: str) -> list[TreePath]:
    """The paths of B images with gates (B, M)."""
    decide = "likely" if decide == "soft" else decide
    leaf = tree.leaf(gates, decide)
    reached = tree.paths(gates)[-1].gather(1, leaf[:, None])[:, 0].exp().tolist()
    answers = [level.exp().cpu() for level in tree.node_answers()]
    passed, decides = tree_math.nodes_above(leaf, tree.depth).tolist(), tree.decides.tolist()
    found, names = [], tree.unit_names
    for row, end in enumerate(leaf.tolist()):
        steps = []
        for number, unit in enumerate(passed[row]):
            if decides[unit]:
                similarity, present = float(gates[row, unit]), bool(end >> (tree.depth - number - 1) & 1)
                before = tuple(answers[number][unit - 2**number + 1].tolist())
                steps.append(TreeStep(unit, names[unit], similarity, present, before))
        found.append(TreePath(tuple(steps), end, reached[row], tuple(answers[-1][end].tolist()), decide))
    return found


def tell_rules(tree: SoftTree) -> list[dict[str, Any]]:
    """The rule of every leaf that is kept, left to right.

    Returns:
        ``{leaf, if: [[unit name, present]], class, probability, reach, words}``, ``words`` as in "prototype_0 present,
        prototype_2 absent -> class 3".
    """
    decides, reach = tree.decides.tolist(), (tree.reach * tree.kept).tolist()
    whole = sum(reach)
    best = tree.leaves.softmax(-1).max(-1)
    rules, names = [], tree.unit_names
    for leaf in tree.kept.nonzero()[:, 0].tolist():
        conditions = []
        for number in range(tree.depth):
            unit = (leaf >> (tree.depth - number)) + 2**number - 1
            if decides[unit]:
                conditions.append([names[unit], bool(leaf >> (tree.depth - number - 1) & 1)])
        label = int(best.indices[leaf])
        said = ", ".join(f"{name} {'present' if present else 'absent'}" for name, present in conditions)
        rules.append(
            {
                "leaf": leaf,
                "if": conditions,
                "class": label,
                "probability": float(best.values[leaf]),
                "reach": reach[leaf] / whole,
                "words": f"{said} -> class {label}",
            }
        )
    return rules
