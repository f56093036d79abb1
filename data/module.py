"""The loaders of a data set: decoded once, augmented by (seed, epoch, index, view), in an order one can go on with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.augmentation import Augmentation
from vitrarium.data.batch import Batch, Sample, collate
from vitrarium.data.cache import GIB, CachedSplit, cached, default_folder
from vitrarium.data.degrade import CLEAN, DEGRADATIONS, degraded
from vitrarium.data.features import KeptFeatures, as_it_is
from vitrarium.data.reading import single_threaded
from vitrarium.data.sampler import EpochSampler, Place, check_balance
from vitrarium.data.source import SPLITS, DataSource, Split

MEMORY = "memory"

FIELDS = ("concepts", "human_map", "part_masks", "keypoints")


class Examples(Dataset[list[Sample]]):
    """A split as the loader sees it: a place (turn, index) to the views of one example.

    Args:
        split: where the examples come from.
        augmentation: what happens to them, or None.
        views: how many views.
        without: fields of :class:`Sample` that nobody needs; they are neither moved nor stacked.
    """

    def __init__(
        self, split: Split, augmentation: Augmentation | None = None, views: int = 1, without: Iterable[str] = ()
    ) -> None:
        self.split, self.augmentation, self.views = split, augmentation, views
        self.without: dict[str, Any] = dict.fromkeys(without)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, place: Place) -> list[Sample]:
        turn, index = place
        sample = self.split.sample(index)
        if self.without:
            sample = replace(sample, **self.without)
        if self.augmentation is None:
            return [sample] * self.views
        return self.augmentation(sample, turn, index, self.views)


class DataModule(pl.LightningDataModule):
    """Train, validation and test loaders of a data source.

    Lightning must not put samplers of its own in place of these: give its trainer ``use_distributed_sampler=False``.

    Args:
        source: the data set.
        batch_size: images per step over all processes.
        workers: loader processes; 0 loads in this one.
        augment: ``{geometry: [...], appearance: [...]}`` of training images, see :class:`Augmentation`.
        views: how many appearances of each training image; the further ones are in ``Batch.views``.
        seed: of data order and augmentation, at least 0.
        cache_folder: where decoded images are kept: None = ``$VITRARIUM_CACHE`` or ``~/.cache/vitrarium``; "memory"
            keeps them in memory.
        cache_limit_gb: a split that takes more when decoded is decoded on demand (1 GB = 2^30 bytes).
        degrade: degradation of the test split, a name or ``{name, **options}``.
        fields: what batches hold beside image and label ("concepts", "human_map", "part_masks", "keypoints"); None =
            all that the source gives. Fields left out cost nothing.
        drop_last: leave out a last training batch that is smaller than the others.
        balance: how evenly the classes come in shuffled loaders, in [0, 1], see :class:`EpochSampler`.
        progress: called with (split, examples decoded, examples in all) while the cache is built.

    Raises:
        UserError: options that no data set or registry knows.

    Example:
        >>> from vitrarium.data import build_source
        >>> source = build_source({"name": "flowers", "train": 32, "val": 8, "test": 8, "size": 32})
        >>> module = DataModule(source, batch_size=16, cache_folder="memory")
        >>> next(iter(module.train_dataloader())).image.shape
        torch.Size([16, 3, 32, 32])
    """

    def __init__(
        self,
        source: DataSource,
        batch_size: int = 64,
        workers: int = 0,
        augment: Mapping[str, Any] | None = None,
        views: int = 1,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        cache_limit_gb: float = 4.0,
        degrade: str | Mapping[str, Any] = CLEAN,
        fields: Sequence[str] | None = None,
        drop_last: bool = False,
        balance: float = 0.0,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        super().__init__()
        _refuse(batch_size=(batch_size, 1), workers=(workers, 0), views=(views, 1), seed=(seed, 0))
        self.source, self.batch_size, self.workers, self.views, self.seed = source, batch_size, workers, views, seed
        self.augment = dict(augment or {})
        Augmentation.from_config(self.augment)
        DEGRADATIONS.check(degrade)
        self.degrade, self.drop_last, self.progress = degrade, drop_last, progress
        self.cache_folder, self.cache_limit = cache_folder, int(cache_limit_gb * GIB)
        self.balance = check_balance(balance)
        for name in fields or ():
            if name not in FIELDS:
                raise UserError(f"batches have no field '{name}'", closest(name, FIELDS))
        self.fields = None if fields is None else frozenset(fields)
        self._cached: dict[str, CachedSplit] = {}
        # By split: what a frozen backbone gave for its images; loaders of these splits then touch no image.
        self.features: dict[str, KeptFeatures] = {}
        self._start = (0, 0)

    def split(self, name: str) -> CachedSplit:
        """A split with its decoded examples; the first call decodes them.

        Raises:
            UserError: an unknown split, or an example that cannot be read.
        """
        if name not in self.source.splits:
            raise UserError(f"data set '{self.source.name}' has no split '{name}'", closest(name, SPLITS))
        if name not in self._cached:
            folder = None if self.cache_folder == MEMORY else Path(self.cache_folder or default_folder())
            key = f"{self.source.name}-{self.source.fingerprint}-{name}"
            tell = self.progress
            progress = None if tell is None else lambda done, count: tell(name, done, count)
            self._cached[name] = cached(self.source.splits[name], folder, key, self.cache_limit, progress)
        return self._cached[name]

    def describe(self) -> str:
        """Where the decoded examples and features of the splits used so far are kept, a line each."""
        kept: list[tuple[str, CachedSplit | KeptFeatures]] = [*self._cached.items(), *self.features.items()]
        return "\n".join(f"{name}: {split.describe()}" for name, split in kept)

    def begin_stage(self, seed: int, views: int = 1, start: Place = (0, 0)) -> None:
        """Set what the next training loaders are built with.

        Args:
            seed: of order and augmentation in this stage, at least 0.
            views: how many appearances of each image.
            start: (epoch, batch) to go on with; earlier batches of that epoch are left out.
        """
        _refuse(seed=(seed, 0), views=(views, 1), epoch=(start[0], 0), batch=(start[1], 0))
        self.seed, self.views, self._start = seed, views, (int(start[0]), int(start[1]))

    def batches_per_epoch(self) -> int:
        """Training batches of a whole epoch in this process."""
        return self._sampler("train", shuffle=True).batches

    def train_dataloader(self) -> DataLoader[Any]:
        """The training loader of the present epoch.

        The epoch is the trainer's, but never before the one that :meth:`begin_stage` named: while a trainer resumes it
        asks for a loader before it knows its epoch. Without a trainer set the epoch by
        ``loader.batch_sampler.set_epoch(epoch)``.
        """
        loader = self.loader("train", shuffle=True, augment=True, shard=True)
        sampler = loader.batch_sampler
        assert isinstance(sampler, EpochSampler)
        if not sampler.batches:
            raise UserError(
                f"the training split has {sampler.size} images, too few for a batch of {self.batch_size}",
                "lower batch_size",
            )
        epoch = max(self.trainer.current_epoch if self.trainer is not None else 0, self._start[0])
        sampler.set_epoch(epoch, self._start[1] if epoch == self._start[0] else 0)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation split, in order, each example once over all processes."""
        return self.loader("val", shard=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split under the configured degradation, in order, each example once over all processes."""
        return self.loader("test", shard=True)

    def loader(
        self,
        split: str,
        shuffle: bool = False,
        augment: bool = False,
        degrade: str | Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        shard: bool = False,
    ) -> DataLoader[Any]:
        """A loader of any split; it yields :class:`~vitrarium.data.batch.Batch`.

        Args:
            split: "train", "val" or "test".
            shuffle: in an order that depends on (seed, epoch), with the balance of classes that was asked for.
            augment: with the training augmentation and its views.
            degrade: a degradation; None = the configured one for the test split, none for the others.
            batch_size: images per batch; None = that of training.
            shard: whether several processes share the split; otherwise each one sees all of it.
        """
        chosen = degrade if degrade is not None else (self.degrade if split == "test" else CLEAN)
        kept = self.features.get(split) if chosen == CLEAN else None
        examples: Dataset[Any]
        join: Callable[[list[Any]], Batch]
        if kept is not None:
            # Whole batches out of arrays: worker processes would only carry them about.
            examples, join, workers = kept.examples(augment), as_it_is, 0  # type: ignore[assignment]
        else:
            examples, join, workers = self._examples(split, augment, chosen), collate, self.workers
        return DataLoader(
            examples,
            batch_sampler=self._sampler(split, shuffle, shard, batch_size),
            collate_fn=join,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=single_threaded if workers else None,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: an iterator draws a seed for its workers, and from the global state
            # that draw would make a resumed run differ from one that never stopped.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _examples(self, split: str, augment: bool, degrade: str | Mapping[str, Any]) -> Examples:
        augmentation = Augmentation.from_config(self.augment, self.seed) if augment else None
        if augmentation is not None and augmentation:
            augmentation.prepare()
        without = () if self.fields is None else set(FIELDS) - self.fields
        if "concepts" in without:
            without = {*without, "concept_weight"}
        images = degraded(self.split(split), degrade)
        return Examples(images, augmentation or None, self.views if augment else 1, without)

    def _sampler(self, split: str, shuffle: bool, shard: bool = True, batch_size: int | None = None) -> EpochSampler:
        size = len(self.source.splits[split])
        rank, world = _place_among_processes() if shard else (0, 1)
        drop_last, balance = self.drop_last and shuffle, self.balance if shuffle else 0.0
        labels, batch_size = self.source.splits[split].labels, batch_size or self.batch_size
        return EpochSampler(size, batch_size, self.seed, shuffle, rank, world, drop_last, labels, balance)


def _place_among_processes() -> tuple[int, int]:
    """(rank, number of processes) of torch.distributed; (0, 1) where it is not running."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _refuse(**given: tuple[int, int]) -> None:
    """Refuse options below their least value."""
    for name, (value, least) in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {value!r}", f"set {name} to a whole number of at least {least}")
