"""Which examples come when: an order that is a pure function of (seed, epoch), for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vitrarium.configs.errors import UserError

Place = tuple[int, int]
"""(epoch, index): augmentation is a function of both, so both travel to the worker."""


class EpochSampler(Sampler[list[Place]]):
    """Batches of places (epoch, index), the same whatever the number of workers.

    With ``shuffle`` a batch is the share of this process in a global batch: rank r takes ``global_batch[r::world]``,
    so one and two processes see the same global batches. Where the last global batch has fewer examples than there
    are processes, those that would go without take one of its examples again: a process without a batch would make
    the others wait for ever. So the number of batches does not depend on the number of processes.

    Without ``shuffle`` every example comes exactly once over all processes, in order and without padding: rank r takes
    ``indices[r::world]`` in batches of ``batch_size``. Processes may differ by one batch.

    Args:
        size: number of examples N.
        batch_size: examples per global batch (with ``shuffle``) or per batch (without).
        seed: of the order.
        shuffle: whether the order changes from epoch to epoch.
        rank: number of this process.
        world: number of processes.
        drop_last: leave out the last batch if it is smaller than the others.

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

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that comes next, and the batch it starts with.

        Args:
            epoch: number of the epoch, from 0.
            start_batch: batches to leave out; 0 keeps what was set before for this very epoch.
        """
        if epoch != self.epoch or start_batch:
            self.epoch, self.start_batch = epoch, start_batch

    def order(self) -> np.ndarray:
        """The N examples of the present epoch in their global order, (N,) int64."""
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.size)

    def __iter__(self) -> Iterator[list[Place]]:
        """Batches from ``start_batch`` on; epoch and start are those of this moment, not of the first batch."""
        order, step = self.order(), self.batch_size
        epoch, first, count = self.epoch, self.start_batch, self.batches
        if not self.shuffle:
            order = order[self.rank :: self.world]
        batches = (order[b * step : (b + 1) * step] for b in range(first, count))
        return ([(epoch, int(i)) for i in self._share(batch)] for batch in batches)

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
