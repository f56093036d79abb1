"""The mathematics of soft decision trees, level by level: no node is an object, every level is one tensor.

A tree of depth h has M = 2^h - 1 nodes and L = 2^h leaves. Node p of level l (both from 0) is unit 2^l - 1 + p; its
children are the nodes 2p (left: the unit is absent) and 2p + 1 (right: it is present) of level l + 1. A node is named
by its place alone, so weights mean the same in every process (the released ProtoTree files nodes in a set of objects).

A pruned tree keeps its shape: ``turn`` (M,) says of each node whether it still decides (0), or always leads left (-1)
or right (1) because nothing is left on the other side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrarium.models.prototypes.similarity import at_least_float32

NEVER = float("-inf")


def depth_of(units: int) -> int | None:
    """The depth h with 2^h - 1 = ``units``; None where there is none."""
    depth = (units + 1).bit_length() - 1
    return depth if units > 0 and 2**depth == units + 1 else None


def level(tree: Tensor, number: int) -> Tensor:
    """The nodes (..., 2^l) of one level of a tensor (..., M) over all nodes."""
    first = 2**number - 1
    return tree[..., first : first + 2**number]


def node_paths(gates: Tensor, turn: Tensor) -> list[Tensor]:
    """Log-probability of reaching each node: log p(root) = 0, log p(child) = log p(node) + log p(side).

    p(right) is the gate and p(left) is 1 - gate (Nauta et al., CVPR 2021), so every level sums to 1 (the release starts
    its logarithmic mode at 1 and its levels sum to e). Gates are kept away from 0 and 1 by the smallest step of their
    number format: logarithms stay finite, and a side that only a pruned node has given up has probability 0.

    Args:
        gates: (..., M) in [0, 1].
        turn: (M,) int64, see above.

    Returns:
        (..., 2^l) for every level l from 0 to h; the last one is that of the leaves.
    """
    (gates,) = at_least_float32(gates)
    least = torch.finfo(gates.dtype).eps
    right = gates.clamp(least, 1 - least)
    given_up = torch.stack((turn > 0, turn < 0), -1)
    certain = torch.zeros_like(given_up, dtype=gates.dtype).masked_fill(given_up, NEVER)
    sides = torch.where((turn != 0)[:, None], certain, torch.stack((1 - right, right), -1).log())
    paths = [torch.zeros_like(gates[..., :1])]
    # Split and not sliced: the gradient of a slice is as large as the whole tree, once for every level.
    for level_sides in sides.split([2**number for number in range(depth_of(gates.shape[-1]) or 0)], -2):
        paths.append((paths[-1][..., None] + level_sides).flatten(-2))
    return paths


def soft_answer(paths: Tensor, leaves: Tensor) -> Tensor:
    """The logits of a tree that asks all its leaves: log sum_leaf p(leaf) softmax(leaf).

    Args:
        paths: (..., L) log-probabilities of the leaves.
        leaves: (L, C) unnormalised values.

    Returns:
        (..., C) log-probabilities of the classes.
    """
    with torch.autocast(paths.device.type, enabled=False):
        mixed = paths.exp() @ leaves.softmax(-1).to(paths)
    return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()


def greedy_leaf(gates: Tensor, turn: Tensor) -> Tensor:
    """The leaf that one walk from the root ends in: right where the gate is above 1/2, (..., M) to (...) int64."""
    place = torch.zeros_like(gates[..., 0], dtype=torch.int64)
    for number in range(depth_of(gates.shape[-1]) or 0):
        gate = level(gates, number).gather(-1, place[..., None])[..., 0]
        forced = level(turn, number)[place]
        right = ((gate > 0.5) & (forced == 0)) | (forced > 0)
        place = 2 * place + right.to(torch.int64)
    return place


def nodes_above(leaf: Tensor, depth: int) -> Tensor:
    """The units that a walk to each leaf passes, from the root: (...) int64 to (..., h)."""
    steps = torch.arange(depth, device=leaf.device)
    return (leaf[..., None] >> (depth - steps)) + 2**steps - 1


def turns(kept: Tensor) -> tuple[Tensor, Tensor]:
    """What remains of a tree when only some leaves are kept: a node with one living side leads there without asking.

    That is the release's splicing (the sibling of a cut subtree moves up) without changing shapes.

    Args:
        kept: (L,) bool.

    Returns:
        ``turn`` (M,) int64, and ``decides`` (M,) bool: which nodes still have two sides.
    """
    turn, decides, alive = list[Tensor](), list[Tensor](), kept
    while len(alive) > 1:
        sides = alive.unflatten(0, (-1, 2))
        left, right = sides.unbind(1)
        decides.insert(0, left & right)
        turn.insert(0, right.to(torch.int64) - left.to(torch.int64))
        alive = left | right
    return torch.cat(turn), torch.cat(decides)


def leaf_counts(paths: Tensor, leaves: Tensor, label: Tensor) -> Tensor:
    """What one batch adds to the leaves: sum_i p_i(leaf) softmax(leaf)_c [y_i = c] / yhat_i,c.

    With yhat_i = sum_leaf p_i(leaf) softmax(leaf) (Nauta et al., CVPR 2021) the summand of an image is the share of
    each leaf in the probability of its true class: a softmax over leaves of log p_i(leaf) + log softmax(leaf)_y. It is
    computed as that: nothing is divided by a probability that has underflowed, and each image adds exactly 1 in all.

    Args:
        paths: (B, L) log-probabilities of the leaves.
        leaves: (L, C) unnormalised values.
        label: (B,) int64.

    Returns:
        (L, C), at least 0.
    """
    shares = (paths + leaves.log_softmax(-1).to(paths)[:, label].T).softmax(-1)
    counts = torch.zeros_like(leaves, dtype=paths.dtype)
    return counts.index_add_(1, label, shares.T)


def node_answers(leaves: Tensor, reach: Tensor, kept: Tensor) -> list[Tensor]:
    """What the tree would answer if it stopped at a node: the mean of the leaves below, weighted by their reach.

    Args:
        leaves: (L, C) unnormalised values.
        reach: (L,) above 0, share of the training images in each leaf.
        kept: (L,) bool; cut leaves count no more.

    Returns:
        (2^l, C) log-probabilities for every level l from 0 to h; 0 for nodes with nothing below them.
    """
    (leaves,) = at_least_float32(leaves)
    weight = reach.to(leaves).clamp_min(torch.finfo(leaves.dtype).tiny).log().masked_fill(~kept, NEVER)
    mass, mixed, answers = weight, weight[:, None] + leaves.log_softmax(-1), list[Tensor]()
    while True:
        found = (mixed - mass[:, None]).masked_fill((mass == NEVER)[:, None], 0.0)
        answers.insert(0, found)
        if len(mass) == 1:
            return answers
        mass, mixed = mass.unflatten(0, (-1, 2)).logsumexp(1), mixed.unflatten(0, (-1, 2)).logsumexp(1)


def split_logit(paths: list[Tensor], answers: list[Tensor]) -> Tensor:
    """How much each node moves the logit, so that all of them and the answer of the root add up to it.

    Let V(n) be the probability of the class at node n (:func:`node_answers`) and F_l = sum_n p(n) V(n) over the nodes
    of level l: F_0 is what the tree says before it asks anything, F_h its answer. Deciding level l changes F by the sum
    over its nodes of d_n = sum_children p(child) V(child) - p(n) V(n), and the logit by log F_{l+1} - log F_l. Each
    node gets d_n / L(F_{l+1}, F_l) of that, with the logarithmic mean L(a, b) = (a - b) / (log a - log b): exact, with
    the sign of d_n, and the same for rising and falling (logarithmic mean Divisia index: Ang, Energy Policy, 2004). On
    a single path it is the plain difference of log-probabilities from node to node.

    Args:
        paths: (B, 2^l) log-probability of reaching each node, for l from 0 to h.
        answers: (B, 2^l) log-probability of the class at each node, for l from 0 to h.

    Returns:
        (B, M).
    """
    found = []
    for number in range(len(paths) - 1):
        own, below = paths[number] + answers[number], paths[number + 1] + answers[number + 1]
        before, after = own.logsumexp(-1, keepdim=True), below.logsumexp(-1, keepdim=True)
        top = torch.maximum(before, after)
        change = (below - top).exp().unflatten(-1, (-1, 2)).sum(-1) - (own - top).exp()
        gap = (after - before).abs()
        # gap / (1 - exp(-gap)) is 1 in the limit, and numerically long before.
        scale = torch.where(gap > 1e-12, gap / -torch.expm1(-gap.clamp_min(1e-12)), torch.ones_like(gap))
        found.append(change * scale)
    return torch.cat(found, -1)


def one_path(leaf: Tensor, depth: int, dtype: torch.dtype) -> list[Tensor]:
    """As :func:`node_paths`, for a walk that ends in ``leaf`` (B,) with certainty."""
    return [
        torch.full((len(leaf), 2**number), NEVER, dtype=dtype, device=leaf.device).scatter(
            1, (leaf >> (depth - number))[:, None], 0.0
        )
        for number in range(depth + 1)
    ]
