"""How concepts lie in groups, as tensors; and what counts as right, value by value and group by group."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vitrarium.data.concepts import ConceptSet

TRUTH_RULE = "present if > 0.5 (largest member of a categorical group); ties and NaN are skipped"


class Layout(NamedTuple):
    """A concept set of K concepts in G groups.

    Attributes:
        group_of: (K,) int64 group of each concept.
        categorical: (G,) bool, exactly one member is true.
        blocks: (Gc, W) int64 members of the categorical groups, K where a group is narrower than the widest.
        block_groups: (Gc,) int64 which groups they are.
        single: (K,) bool, concepts of groups that are not categorical.
    """

    group_of: Tensor
    categorical: Tensor
    blocks: Tensor
    block_groups: Tensor
    single: Tensor


@lru_cache(maxsize=64)
def layout(concepts: ConceptSet, device: torch.device) -> Layout:
    """The tensors of a concept set on a device; computed once."""
    group_of = torch.from_numpy(concepts.group_of)
    categorical = torch.tensor([g.categorical for g in concepts.groups], dtype=torch.bool)
    members = [g.members for g in concepts.groups if g.categorical]
    width = max((len(m) for m in members), default=0)
    padded = [[*m, *[len(concepts)] * (width - len(m))] for m in members]
    made = Layout(
        group_of,
        categorical,
        torch.tensor(padded, dtype=torch.int64).reshape(len(members), width),
        categorical.nonzero()[:, 0],
        ~categorical[group_of],
    )
    return Layout(*(tensor.to(device) for tensor in made))


def known_values(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Truth (B, K) in [0, 1] to yes/no and to whether it is known at all; NaN and exactly 0.5 say nothing."""
    return truth > 0.5, ~torch.isnan(truth) & (truth != 0.5)


def group_right(probabilities: Tensor, truth: Tensor, concepts: ConceptSet) -> tuple[Tensor, Tensor]:
    """Right and known answers of each group.

    A categorical group gives one answer, its most probable member (the first among equals), held against the largest
    member of its truth; the truth is unknown where a member is NaN or none is largest. Any other group gives one yes/no
    answer per member, threshold 0.5.

    Args:
        probabilities: (B, K).
        truth: (B, K) in [0, 1], NaN = nobody knows.
        concepts: the K concepts in G groups.

    Returns:
        Two float tensors (B, G): how many answers are right, how many could be judged.
    """
    where = layout(concepts, truth.device)
    probabilities = probabilities.to(truth.dtype)
    present, known = known_values(truth)
    known = known & where.single
    right = known & ((probabilities > 0.5) == present)
    shape = (truth.shape[0], len(concepts.groups))
    # Of a named type: the default one is double where a model is trained in double precision.
    none = torch.zeros(shape, dtype=torch.float32, device=truth.device)
    right_count = none.index_add(1, where.group_of, right.float())
    known_count = none.index_add(1, where.group_of, known.float())
    if len(where.block_groups):
        block_right, block_known = _categorical(probabilities, truth, where.blocks)
        right_count = right_count.index_copy(1, where.block_groups, block_right.float())
        known_count = known_count.index_copy(1, where.block_groups, block_known.float())
    return right_count, known_count


def _categorical(probabilities: Tensor, truth: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Right and known, both (B, Gc) bool, for categorical groups."""
    outside = truth.new_full((truth.shape[0], 1), float("-inf"))
    guess = torch.cat([probabilities, outside], 1)[:, blocks].argmax(-1)
    values = torch.cat([truth, outside], 1)[:, blocks]
    largest = values.amax(-1, keepdim=True)  # NaN if a member is NaN, and then nothing equals it
    known = (values == largest).sum(-1) == 1
    return known & (guess == values.argmax(-1)), known


def known_groups(truth: Tensor, concepts: ConceptSet) -> Tensor:
    """(N, G) bool: an answer about the group teaches something.

    A categorical group is known when all its members are; any other group when at least one of its members is.
    """
    where = layout(concepts, truth.device)
    none = torch.zeros(truth.shape[0], len(concepts.groups), dtype=torch.int64, device=truth.device)
    known = none.index_add(1, where.group_of, (~torch.isnan(truth)).long())
    sizes = torch.bincount(where.group_of, minlength=len(concepts.groups))
    return torch.where(where.categorical, known == sizes, known > 0)
