"""The readout that is a decision tree: one prototype per question, one distribution over classes per leaf."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts import tree_math, tree_words
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout
from vitrarium.models.types import Evidence

DECISIONS = ("soft", "likely", "greedy")


@READOUTS.register("soft_tree")
class SoftTree(Readout):
    """A soft binary decision tree of depth h over M = 2^h - 1 units (ProtoTree: Nauta et al., CVPR 2021).

    Each unit is a node; its activation is the probability of going right (the unit is present). Leaves hold values that
    a softmax turns into class probabilities; they learn without gradients (event ``update_leaves``) and are buffers.
    Training always mixes all leaves ("soft"). In evaluation ``decide`` says how an answer is found, and can be changed
    at any time without training anything again:

    - ``soft``: the mean of all leaves, weighted by the probability of their paths;
    - ``likely``: the leaf with the most probable path;
    - ``greedy``: one walk from the root, right where the gate is above 1/2.

    Logits are log-probabilities. ``contributions`` are exact under all three: see
    :func:`~vitrarium.models.readouts.tree_math.split_logit`; the bias is what the tree says before it asks anything.

    Args:
        layer: the evidence layer it reads: gates in [0, 1], one entry of the vector per unit, 2^h - 1 of them.
        classes: C.
        depth: h; None = by the number of units.
        decide: how answers are found in evaluation.
        spread: leaves start uniform in [0, ``spread``). 0 is the release's way: all leaves are alike at first, so the
            first step has no gradient. The start is forgotten within the first epoch.

    Raises:
        UserError: a number of units that makes no whole tree, an unknown way to decide.

    Attributes:
        leaves: (L, C) buffer, unnormalised values of the L = 2^h leaves, left to right.
        reach: (L,) buffer, share of the training images in each leaf over about an epoch.
        kept: (L,) bool buffer; a cut leaf is never reached.
        turn: (M,) int64 buffer: 0 = the node decides, -1 or 1 = always left or right, its other side having been cut.
        decides: (M,) bool buffer: which nodes have two living sides.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vector", "gates"})
    leaves: Tensor
    reach: Tensor
    kept: Tensor
    turn: Tensor
    decides: Tensor

    def __init__(
        self,
        layer: EvidenceLayer,
        classes: int,
        depth: int | None = None,
        decide: Literal["soft", "likely", "greedy"] = "greedy",
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        if spread < 0:
            raise UserError(f"readout 'soft_tree' with spread={spread}", "give 0 or more")
        self.depth = _depth(layer, depth)
        self.decide = decide
        leaves = 2**self.depth
        self.register_buffer("leaves", spread * torch.rand(leaves, classes))
        self.register_buffer("reach", torch.full((leaves,), 1.0 / leaves))
        self.register_buffer("kept", torch.ones(leaves, dtype=torch.bool))
        self.register_buffer("turn", torch.zeros(leaves - 1, dtype=torch.int64))
        self.register_buffer("decides", torch.ones(leaves - 1, dtype=torch.bool))
        self.read(layer)

    @property
    def decide(self) -> str:
        """How answers are found in evaluation: "soft", "likely" or "greedy"; assign to change it."""
        return self._decide

    @decide.setter
    def decide(self, way: str) -> None:
        self._decide = _way(way)

    def paths(self, vector: Tensor) -> list[Tensor]:
        """Gates (..., M) to the log-probabilities (..., 2^l) of reaching the nodes of every level, leaves last."""
        return tree_math.node_paths(vector, self.turn)

    def leaf(self, vector: Tensor, decide: str | None = None) -> Tensor:
        """(...) int64: the leaf that each image of gates (..., M) comes to; for "soft" the most probable one."""
        if _way(decide or self.decide) == "greedy":
            return tree_math.greedy_leaf(vector, self.turn)
        return self.paths(vector)[-1].argmax(-1)

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Gates (..., M) to log-probabilities (..., C).

        While it trains, the log-probabilities of the leaves are left in ``evidence.state["leaf_paths"]`` (..., L), for
        the event that updates them after the step.
        """
        if not self.training:
            return self.answer(vector, self.decide)
        paths = self.paths(vector)[-1]
        evidence.state["leaf_paths"] = paths.detach()
        return tree_math.soft_answer(paths, self.leaves)

    def answer(self, vector: Tensor, decide: str) -> Tensor:
        """Gates (..., M) to log-probabilities (..., C), found in one of the three ways."""
        if _way(decide) == "soft":
            return tree_math.soft_answer(self.paths(vector)[-1], self.leaves)
        return self.leaves.log_softmax(-1)[self.leaf(vector, decide)]

    def answers(self, evidence: Evidence) -> dict[str, Tensor]:
        """Log-probabilities (B, C) found in each of the three ways, by name; the classes of two agree or not."""
        return {way: self.answer(evidence.vector, way) for way in DECISIONS}

    def path_length(self, evidence: Evidence, decide: str | None = None) -> Tensor:
        """(B,) int64: how many questions are asked on the way to each answer; "soft" asks all that the tree has.

        Nodes that no longer decide are passed without asking.
        """
        if _way(decide or self.decide) == "soft":
            return self.decides.sum().expand(evidence.vector.shape[:-1])
        passed = tree_math.nodes_above(self.leaf(evidence.vector, decide), self.depth)
        return self.decides[passed].sum(-1)

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """What each question adds to the log-probability of a class; exact, the bias being what is said before any."""
        sampled = evidence.vector.dim() == 3
        vector = evidence.vector.mean(0) if sampled else evidence.vector
        answers = [level[:, classes].T for level in self.node_answers()]
        if self.training or self.decide == "soft":
            paths = self.paths(vector)
        else:
            paths = tree_math.one_path(self.leaf(vector), self.depth, answers[0].dtype)
        units = tree_math.split_logit(paths, answers)
        return Contributions(units, units.new_zeros(len(units)), answers[0][:, 0], additive=not sampled)

    def node_answers(self) -> list[Tensor]:
        """Log-probabilities (2^l, C) of the classes at the nodes of every level, leaves last: means of those below."""
        return tree_math.node_answers(self.leaves, self.reach, self.kept)

    def owners(self) -> Tensor:
        """(M, C) bool: classes that are the most probable one in some leaf below a node; none for one that is cut.

        A node that a cut has spared from deciding has none either: its prototype is no longer asked for.
        """
        below = torch.nn.functional.one_hot(self.leaves.argmax(1), self.leaves.shape[1]).bool() & self.kept[:, None]
        levels = list[Tensor]()
        for _ in range(self.depth):
            below = below.unflatten(0, (-1, 2)).any(1)
            levels.insert(0, below)
        return torch.cat(levels) & self.decides[:, None]

    @torch.no_grad()
    def cut(self, kept: Tensor) -> None:
        """Keep only some leaves, (L,) bool; a node with one side left leads there without asking.

        Raises:
            UserError: fewer than two leaves left, which would leave nothing to decide; nothing is changed.
        """
        kept = kept.to(self.kept.device) & self.kept
        if int(kept.sum()) < 2:
            raise UserError(
                f"{int(kept.sum())} of {int(self.kept.sum())} leaves would be left, and a tree needs at least 2",
                "cut less (a lower threshold), or train longer: leaves that nobody reached say nothing yet",
            )
        turn, decides = tree_math.turns(kept)
        for name, value in (("kept", kept), ("turn", turn), ("decides", decides)):
            getattr(self, name).copy_(value)

    def path(self, evidence: Evidence, decide: str | None = None) -> list[tree_words.TreePath]:
        """The way of each image through the tree, for explanations; see :class:`tree_words.TreePath`.

        Args:
            evidence: of B images.
            decide: "greedy" or "likely"; None = as the readout decides. A soft answer has no single path, its most
                probable one is told, with its probability.
        """
        return tree_words.tell_paths(self, evidence.vector.detach(), decide or self.decide)

    def rules(self) -> list[dict[str, Any]]:
        """One rule per leaf: ``{leaf, if: [(unit, present)], class, probability, reach, words}``."""
        return tree_words.tell_rules(self)


def _depth(layer: EvidenceLayer, wanted: int | None) -> int:
    """The depth of a tree over the units of a layer."""
    units, kind = len(layer.units), layer.units.kind
    found = tree_math.depth_of(units)
    if wanted is not None and wanted < 1:
        raise UserError(f"a tree of depth {wanted}", "give a depth of at least 1")
    if found is None or (wanted is not None and found != wanted):
        near = max(1, round(torch.tensor(units + 1.0).log2().item())) if wanted is None else wanted
        raise UserError(
            f"a tree of depth {near} needs {2**near - 1} {kind}s (2^depth - 1, one per node), and there are {units}",
            f"set model.evidence.shared={2**near - 1}",
        )
    if layer.vector_size != units:
        raise UserError(
            f"a tree needs one gate per unit, and {type(layer).__name__} gives {layer.vector_size} for {units} units",
            "choose evidence whose vector is its activations, such as prototypes with similarity=exp_l2",
        )
    return found


def _way(decide: str) -> str:
    if decide not in DECISIONS:
        raise UserError(f"a tree cannot decide '{decide}'", closest(decide, DECISIONS))
    return decide
