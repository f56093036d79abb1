"""The order of examples: a pure function of (seed, epoch), shared by processes, and one can go on in its middle."""

from __future__ import annotations

import random

import pytest

from vitrarium.configs.errors import UserError
from vitrarium.data.sampler import EpochSampler


def indices(sampler):
    return [[index for _, index in batch] for batch in sampler]


def at(epoch, *args, **options):
    sampler = EpochSampler(*args, **options)
    sampler.set_epoch(epoch)
    return sampler


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): indices(at(epoch, 50, 8, seed=seed)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len({str(order) for order in orders.values()}) == 6
    walker = EpochSampler(50, 8, seed=1)
    for epoch in (2, 0, 1, 1):
        walker.set_epoch(epoch)
        assert indices(walker) == orders[1, epoch]


def test_every_example_once_and_the_epoch_travels_along():
    batches = list(at(3, 21, 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1]
    assert sorted(index for batch in batches for _, index in batch) == list(range(21))
    assert {epoch for batch in batches for epoch, _ in batch} == {3}


def test_goes_on_where_training_stopped_however_often_it_is_iterated():
    whole = indices(at(2, 30, 4))
    sampler = EpochSampler(30, 4)
    sampler.set_epoch(2, start_batch=5)
    assert (sampler.batches, len(sampler)) == (8, 3)
    assert indices(sampler) == whole[5:]
    assert indices(sampler) == whole[5:]
    sampler.set_epoch(2)
    assert indices(sampler) == whole[5:]
    sampler.set_epoch(3)
    assert len(sampler) == 8
    assert indices(sampler) == indices(at(3, 30, 4))


def test_an_iterator_keeps_the_epoch_it_was_made_in():
    sampler = EpochSampler(12, 4)
    begun = iter(sampler)
    sampler.set_epoch(1)
    assert [[i for _, i in batch] for batch in begun] == indices(at(0, 12, 4))


def test_processes_share_the_global_batches():
    rng = random.Random(0)
    for _ in range(200):
        size, batch, world = rng.randint(1, 40), rng.randint(3, 9), rng.randint(1, 3)
        epoch, drop = rng.randint(0, 5), rng.random() < 0.3
        alone = indices(at(epoch, size, batch, seed=7, drop_last=drop))
        shares = [indices(at(epoch, size, batch, seed=7, rank=r, world=world, drop_last=drop)) for r in range(world)]
        assert {len(share) for share in shares} == {len(alone)}
        for b, together in enumerate(alone):
            for rank in range(world):
                expected = [together[k] for k in range(rank, len(together), world)]
                assert shares[rank][b] == (expected or [together[rank % len(together)]])
        if drop:
            assert all(len(together) == batch for together in alone)
            assert len(alone) == size // batch


def test_evaluation_sees_every_example_once_in_order_without_padding():
    rng = random.Random(1)
    for _ in range(100):
        size, batch, world = rng.randint(0, 40), rng.randint(1, 9), rng.randint(1, 4)
        shares = [EpochSampler(size, batch, shuffle=False, rank=r, world=world) for r in range(world)]
        flat = [[i for b in indices(s) for i in b] for s in shares]
        assert sorted(i for share in flat for i in share) == list(range(size))
        for rank, share in enumerate(flat):
            assert share == list(range(size))[rank::world]
        assert [len(s) for s in shares] == [len(indices(s)) for s in shares]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch_size": 0}, "batches of 0"), ({"batch_size": 2, "rank": 1, "world": 3}, "shared by 3 processes")],
)
def test_impossible_batches_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        EpochSampler(10, **options)


def test_a_rank_beyond_the_processes_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EpochSampler(10, 4, rank=2, world=2)
