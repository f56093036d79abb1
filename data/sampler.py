"""Which examples come when: an order that is a pure function of (seed, epoch), for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vitrarium.configs.errors import UserError

Place = tuple[int, int]
"""(turn, index): augmentation is a function of both, so both travel to the worker.

The turn says how often the example has come before in this stage: the number of the epoch, unless a balanced order
lets the examples of rare classes come several times in one epoch.
"""


def check_balance(balance: float) -> float:
    """``balance`` if it is a number in [0, 1].

    Raises:
        UserError: it is not.
    """
    if isinstance(balance, bool) or not isinstance(balance, (int, float)) or not 0 <= balance <= 1:
        raise UserError(f"balance={balance}", "give a number from 0 (as the data are) to 1 (every class equally often)")
    return float(balance)


def class_quotas(counts: np.ndarray, balance: float) -> np.ndarray:
    """How many examples of each class an epoch of N = sum of n_c examples takes.

    q_c = N n_c^(1 - balance) / sum over classes of n^(1 - balance), rounded by largest remainders to whole numbers that
    add up to N. A class without examples gets none; every other gets at least one.

    Args:
        counts: (C,) examples n_c of each class.
        balance: 0 gives n_c, 1 the same number to every class that has examples.

    Returns:
        (C,) int64.
    """
    share = np.where(counts > 0, np.maximum(counts, 1) ** (1.0 - balance), 0.0)
    exact = counts.sum() * share / max(share.sum(), 1e-300)
    whole = np.floor(exact).astype(np.int64)
    missing = int(counts.sum() - whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


class EpochSampler(Sampler[list[Place]]):
    """Batches of places (turn, index), the same whatever the number of workers.

    With ``shuffle`` a batch is the share of this process in a global batch: rank r takes ``global_batch[r::world]``,
    so one and two processes see the same global batches. Where the last global batch has fewer examples than there
    are processes, those that would go without take one of its examples again: a process without a batch would make
    the others wait for ever. So the number of batches does not depend on the number of processes.

    Without ``shuffle`` every example comes exactly once over all processes, in order and without padding: rank r takes
    ``indices[r::world]`` in batches of ``batch_size``. Processes may differ by one batch.

    With ``balance`` rare classes come more often and frequent ones less often, in epochs of the same length: each epoch
    takes :func:`class_quotas` examples of each class. Nothing is drawn with replacement. The examples of a class stand
    in a queue that goes on from epoch to epoch, one permutation of them after another: none comes again before all of
    its class have come. What an epoch takes of the queue follows from its number, so it can be entered anywhere.

    Args:
        size: number of examples N.
        batch_size: examples per global batch (with ``shuffle``) or per batch (without).
        seed: of the order.
        shuffle: whether the order changes from epoch to epoch.
        rank: number of this process.
        world: number of processes.
        drop_last: leave out the last batch if it is smaller than the others.
        labels: (N,) class of each example; needed to balance.
        balance: in [0, 1]; 0 = every example once, 1 = every class equally often. Only with ``shuffle``.

    Attributes:
        epoch: the epoch whose order comes next; set it by :meth:`set_epoch`.
        start_batch: batches of this epoch to leave out, for going on where training stopped. It belongs to its epoch:
            iterating twice (as Lightning does when it reloads) starts at the same batch twice, and
            :meth:`set_epoch` to another epoch makes it 0.

    Example:
        >>> list(EpochSampler(5, 2, seed=0, shuffle=False))
        [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        labels: np.ndarray | None = None,
        balance: float = 0.0,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batches of {batch_size} images", "set batch_size to 1 or more")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes")
        if shuffle and batch_size < world:
            raise UserError(
                f"batches of {batch_size} cannot be shared by {world} processes", f"set batch_size to at least {world}"
            )
        if seed < 0 or size < 0:
            raise ValueError(f"seed {seed} and size {size} must not be negative")
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.epoch = self.start_batch = 0
        self.queues: list[tuple[int, np.ndarray, int]] = []
        if check_balance(balance) > 0:
            if not shuffle or labels is None or len(labels) != size:
                raise ValueError("a balanced order is shuffled and needs a label for every example")
            self.queues = _queues(np.asarray(labels), balance)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that comes next, and the batch it starts with.

        Args:
            epoch: number of the epoch, from 0.
            start_batch: batches to leave out; 0 keeps what was set before for this very epoch.
        """
        if epoch != self.epoch or start_batch:
            self.epoch, self.start_batch = epoch, start_batch

    def order(self) -> np.ndarray:
        """The N places of the present epoch in their global order, (N, 2) int64: turn and index."""
        if not self.shuffle:
            return self._once(np.arange(self.size))
        mixed = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        if not self.queues:
            return self._once(mixed)
        return np.concatenate([self._taken(*queue) for queue in self.queues])[mixed]

    def _once(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([np.full_like(indices, self.epoch), indices], 1)

    def _taken(self, label: int, members: np.ndarray, quota: int) -> np.ndarray:
        """What the present epoch takes of the queue of one class, (quota, 2)."""
        count, begin = len(members), self.epoch * quota
        turns = range(begin // count, -(-(begin + quota) // count))
        # The 1 at the end keeps these streams apart from those of the epochs, [seed, epoch].
        queue = [
            np.stack([np.full(count, t), np.random.default_rng([self.seed, label, t, 1]).permutation(members)], 1)
            for t in turns
        ]
        skipped = begin - turns.start * count
        return np.concatenate(queue)[skipped : skipped + quota]

    def __iter__(self) -> Iterator[list[Place]]:
        """Batches from ``start_batch`` on; epoch and start are those of this moment, not of the first batch."""
        order, step = self.order(), self.batch_size
        first, count = self.start_batch, self.batches
        if not self.shuffle:
            order = order[self.rank :: self.world]
        batches = (order[b * step : (b + 1) * step] for b in range(first, count))
        return ([(turn, index) for turn, index in self._share(batch).tolist()] for batch in batches)

    def _share(self, batch: np.ndarray) -> np.ndarray:
        """What this process takes of a batch."""
        if not self.shuffle:
            return batch
        start = self.rank if self.rank < len(batch) else self.rank % len(batch)
        return batch[start :: self.world]

    def __len__(self) -> int:
        """Batches still to come of this epoch: what a trainer counts to know when the epoch is over."""
        return max(0, self.batches - self.start_batch)

    @property
    def batches(self) -> int:
        """Batches of the whole epoch in this process, wherever it starts."""
        examples = self.size if self.shuffle else len(range(self.rank, self.size, self.world))
        full, rest = divmod(examples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)


def _queues(labels: np.ndarray, balance: float) -> list[tuple[int, np.ndarray, int]]:
    """Label, examples and examples per epoch of every class that has any."""
    kinds, counts = np.unique(labels, return_counts=True)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    return list(zip(kinds.tolist(), members, class_quotas(counts, balance).tolist(), strict=True))
