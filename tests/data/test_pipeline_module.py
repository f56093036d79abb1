"""The loaders: same batches whatever the workers, exact continuation, and no hand on the global random state."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from builders import ArraySplit, array_source, write_folder
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.batch import Batch
from vitrarium.data.module import DataModule

AUGMENT = {"geometry": ["flip_horizontal", {"name": "shift", "pixels": 2}], "appearance": [{"name": "noise", "p": 1}]}


def module(**options) -> DataModule:
    given = {"batch_size": 6, "cache_folder": "memory", "augment": AUGMENT, "seed": 3}
    return DataModule(options.pop("source", None) or array_source(), **{**given, **options})


def flat(batches):
    """Every tensor of some batches by name."""
    return [{name: value for name, value in vars(batch).items() if value is not None} for batch in batches]


def equal(one, other) -> bool:
    return len(one) == len(other) and all(_same(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def _same(a, b):
    def same(x, y):
        if isinstance(x, tuple):
            return len(x) == len(y) and all(map(torch.equal, x, y))
        return torch.equal(x.nan_to_num(-9), y.nan_to_num(-9))

    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def epoch(data: DataModule, number: int) -> list[Batch]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def test_batches_hold_everything_the_source_gives():
    (batch, *_) = module(views=2).train_dataloader()
    assert batch.image.shape == (6, 3, 16, 16)
    assert batch.image.dtype == torch.float32
    assert 0 <= batch.image.min() <= batch.image.max() <= 1
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert batch.concepts.shape == batch.concept_weight.shape == (6, 4)
    assert batch.human_map.shape == (6, 1, 16, 16)
    assert batch.has_map.dtype == batch.part_masks.dtype == torch.bool
    assert batch.part_masks.shape == (6, 3, 16, 16)
    assert batch.keypoints.shape == (6, 3, 3)
    assert [view.shape for view in batch.views] == [(6, 3, 16, 16)]
    assert not torch.equal(batch.views[0], batch.image)
    truth = torch.from_numpy(array_source().splits["train"].truth)
    assert torch.equal(batch.concepts.nan_to_num(-9), truth[batch.index].nan_to_num(-9))


def test_workers_do_not_change_the_batches():
    for number in (0, 4):
        alone, helped = (epoch(module(workers=w, views=2), number) for w in (0, 2))
        assert equal(alone, helped)
    assert not equal(epoch(module(), 0), epoch(module(), 1))
    assert not equal(epoch(module(), 0), epoch(module(seed=4), 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_states_alone(workers):
    data = module(workers=workers)
    data.split("train")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(2):
        list(data.train_dataloader())
        list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_in_the_middle_of_an_epoch(workers):
    whole = epoch(module(), 2)
    data = module(workers=workers)
    data.begin_stage(3, start=(2, 1))
    assert data.batches_per_epoch() == len(whole) == 4
    loader = data.train_dataloader()
    assert equal(list(loader), whole[1:])
    assert equal(list(loader), whole[1:])


def test_the_epoch_is_the_trainers_but_never_before_the_start():
    data = module()
    data.begin_stage(5, views=1, start=(3, 2))
    expected = {3: (3, 2), 4: (4, 0), 5: (5, 0)}
    for current, place in {0: expected[3], 3: expected[3], 4: expected[4], 5: expected[5]}.items():
        data.trainer = SimpleNamespace(current_epoch=current)
        sampler = data.train_dataloader().batch_sampler
        assert (sampler.epoch, sampler.start_batch) == place
    data.trainer = None


class Recorder(pl.LightningModule):
    """Writes down what it is shown."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.validated = nn.Linear(1, 1), {}, []

    def training_step(self, batch, number):
        self.seen.setdefault(self.current_epoch, []).extend(batch.index.tolist())
        return self.layer(batch.image.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, number):
        self.validated.extend(batch.index.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_shows_every_epoch_in_its_order():
    data, task = module(), Recorder()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    for number in range(3):
        assert task.seen[number] == [i for batch in epoch(module(), number) for i in batch.index.tolist()]
        assert sorted(task.seen[number]) == list(range(20))
    assert task.validated == list(range(7)) * 3


def test_evaluation_is_plain_and_in_order():
    data = module()
    batches = list(data.loader("train"))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(20))
    images = torch.from_numpy(array_source().splits["train"].images).permute(0, 3, 1, 2)
    assert torch.equal((torch.cat([batch.image for batch in batches]) * 255).round().byte(), images)
    assert [len(batch) for batch in data.loader("test", batch_size=4)] == [4, 4, 1]
    assert all(batch.views == () for batch in module(views=3).loader("val"))


def test_degradation_is_an_option_of_the_test_split():
    data = module(degrade="grey")

    def grey(loader):
        return all(torch.equal(batch.image[:, 0], batch.image[:, 1]) for batch in loader)

    assert grey(data.test_dataloader())
    assert grey(data.loader("test"))
    assert not grey(data.loader("test", degrade="clean"))
    assert not grey(data.val_dataloader())
    assert grey(data.loader("val", degrade="grey"))


def test_fields_that_nobody_needs_are_left_out():
    (batch, *_) = module(fields=["keypoints"]).train_dataloader()
    assert batch.keypoints is not None
    for name in ("concepts", "concept_weight", "human_map", "has_map", "part_masks"):
        assert getattr(batch, name) is None
    (whole, *_) = module().train_dataloader()
    assert torch.equal(batch.image, whole.image)
    assert torch.equal(batch.keypoints, whole.keypoints)


def test_processes_share_training_and_validation_but_not_events(monkeypatch):
    import torch.distributed as dist

    alone = module()
    whole = [batch.index.tolist() for batch in epoch(alone, 1)]
    shares, validated = [], []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append([batch.index.tolist() for batch in epoch(module(), 1)])
        validated += [i for batch in module().val_dataloader() for i in batch.index.tolist()]
        assert [i for batch in module().loader("val") for i in batch.index.tolist()] == list(range(7))
        assert module().batches_per_epoch() == 4
    for together, first, second in zip(whole, *shares, strict=True):
        assert (first, second) == (together[0::2], together[1::2])
    assert sorted(validated) == list(range(7))


def test_decodes_each_split_once_and_says_where_it_is(tmp_path):
    source = array_source()
    data = module(source=source, cache_folder=tmp_path)
    for _ in range(2):
        list(data.train_dataloader())
        list(data.loader("train"))
    assert source.splits["train"].asked == 20
    assert source.splits["test"].asked == 0
    assert data.describe().startswith("train: 20 examples")
    assert str(tmp_path) in data.describe()
    again = array_source()
    list(module(source=again, cache_folder=tmp_path).train_dataloader())
    assert again.splits["train"].asked == 0
    other = array_source(fingerprint="def")
    list(module(source=other, cache_folder=tmp_path).train_dataloader())
    assert other.splits["train"].asked == 20


def test_a_limit_of_zero_decodes_on_demand():
    data = module(cache_limit_gb=0.0)
    assert equal(epoch(data, 0), epoch(module(), 0))
    assert "on demand" in data.describe()


def test_progress_tells_the_split():
    told = []
    list(module(progress=lambda *news: told.append(news)).val_dataloader())
    assert told[-1] == ("val", 7, 7)


def test_what_a_split_knows_beyond_its_samples_travels_along():
    source = array_source()
    source.splits["test"].leaked = np.array([True] + [False] * 8)
    source.splits["test"].second_truth = np.zeros((9, 4), np.float32)
    split = module(source=source, degrade="grey").loader("test").dataset.split
    assert split.leaked.sum() == 1
    assert split.second_truth.shape == (9, 4)
    assert split.source is source.splits["test"]


def test_a_damaged_file_is_told_before_the_first_batch(tmp_path):
    files = write_folder(tmp_path, count=12)
    data = (tmp_path / files[0]).read_bytes()
    (tmp_path / files[0]).write_bytes(data[: len(data) // 2])
    source = build_source({"name": "folder", "root": str(tmp_path), "size": 16})
    name = next(name for name, split in source.splits.items() if files[0] in split.files)
    with pytest.raises(UserError, match=r"cat0\.png' cannot be decoded .*damaged"):
        DataModule(source, workers=2, cache_folder="memory").loader(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"views": 0}, "views is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"augment": {"geometry": ["blur"]}}, "listed under geometry"),
        ({"degrade": "gray"}, "did you mean 'grey'"),
        ({"fields": ["maps"]}, "no field 'maps'"),
    ],
)
def test_options_are_checked_at_once(options, words):
    with pytest.raises(UserError, match=words):
        module(**options)


def test_an_unknown_split_and_an_empty_epoch_are_refused():
    with pytest.raises(UserError, match="no split 'valid'; did you mean 'val'"):
        module().loader("valid")
    with pytest.raises(UserError, match="too few for a batch of 64"):
        module(batch_size=64, drop_last=True).train_dataloader()


def test_a_derived_split_is_as_long_as_its_source():
    assert len(module().split("train")) == len(ArraySplit(20))
