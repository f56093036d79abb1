"""Balanced epochs: how often each class comes, in which order, and that one can enter anywhere."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from builders import array_source

from vitrarium.configs.errors import UserError
from vitrarium.data.module import DataModule
from vitrarium.data.sampler import EpochSampler, class_quotas

# 120 examples of four classes; class 2 has none.
LABELS = np.random.default_rng(5).permutation(np.repeat([0, 1, 3, 4], [80, 25, 12, 3]))
COUNTS = {0: 80, 1: 25, 3: 12, 4: 3}


def balanced(balance, epoch=0, labels=LABELS, **options):
    sampler = EpochSampler(len(labels), 16, labels=labels, balance=balance, **{"seed": 9, **options})
    sampler.set_epoch(epoch)
    return sampler


def batches(sampler):
    return list(sampler)


def flat(sampler):
    return [place for batch in sampler for place in batch]


def expected_shares(balance):
    """N n_c^(1 - balance) / sum of n^(1 - balance), class by class."""
    powers = {c: n ** (1 - balance) for c, n in COUNTS.items()}
    return {c: 120 * p / sum(powers.values()) for c, p in powers.items()}


@pytest.mark.parametrize("balance", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_every_epoch_has_the_promised_classes_and_the_same_length(balance):
    wanted = expected_shares(balance)
    seen = []
    for epoch in range(4):
        counts = Counter(int(LABELS[index]) for _, index in flat(balanced(balance, epoch)))
        assert sum(counts.values()) == 120
        assert counts.keys() == COUNTS.keys()
        assert all(abs(counts[c] - wanted[c]) < 1 for c in COUNTS)
        seen.append(counts)
    assert all(counts == seen[0] for counts in seen)
    if balance == 1:
        assert set(seen[0].values()) == {30}


def test_quotas_round_by_largest_remainders():
    """Ten examples of classes with 7, 2 and 1: shares 10/3 each at balance 1, the first class gets what is over."""
    assert class_quotas(np.array([7, 2, 1]), 1.0).tolist() == [4, 3, 3]
    assert class_quotas(np.array([7, 0, 2, 1]), 0.0).tolist() == [7, 0, 2, 1]
    rng = np.random.default_rng(0)
    for _ in range(100):
        counts, balance = rng.integers(1, 400, rng.integers(1, 9)), float(rng.random())
        quotas = class_quotas(counts, balance)
        total = math.fsum(float(n) ** (1 - balance) for n in counts)
        exact = [float(Fraction(int(counts.sum()))) * float(n) ** (1 - balance) / total for n in counts]
        assert quotas.sum() == counts.sum()
        assert all(abs(q - e) < 1 and q >= 1 for q, e in zip(quotas, exact, strict=True))


def test_without_balance_the_order_is_that_of_the_seed_and_the_epoch():
    for epoch in (0, 3):
        order = np.random.default_rng([9, epoch]).permutation(120)
        assert flat(balanced(0.0, epoch)) == [(epoch, index) for index in order.tolist()]


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_none_comes_again_before_all_of_its_class_have_come(balance):
    seen: Counter[int] = Counter()
    for epoch in range(7):
        for turn, index in sorted(flat(balanced(balance, epoch))):
            # The turn of a place says how often the example has come before: the same place never comes twice.
            assert turn == seen[index]
            seen[index] += 1
        for label in COUNTS:
            times = [seen[i] for i in np.nonzero(label == LABELS)[0].tolist()]
            assert max(times) - min(times) <= 1, (epoch, label)
    assert max(seen.values()) > 7 > min(seen.values())


def test_order_is_a_function_of_seed_and_epoch_whichever_way_it_is_reached():
    walker = balanced(0.5)
    for epoch in (4, 0, 2, 2, 4):
        walker.set_epoch(epoch)
        assert flat(walker) == flat(balanced(0.5, epoch))
    assert flat(balanced(0.5, 1)) != flat(balanced(0.5, 2))
    assert flat(balanced(0.5, 1)) != flat(balanced(0.5, 1, seed=10))


def test_goes_on_at_any_batch():
    whole = batches(balanced(0.8, 3))
    assert len(whole) == 8
    for start in range(9):
        sampler = balanced(0.8)
        sampler.set_epoch(3, start_batch=start)
        assert len(sampler) == 8 - start
        assert batches(sampler) == whole[start:]
        assert batches(sampler) == whole[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_global_batches(world):
    alone = batches(balanced(0.6, 2))
    shares = [batches(balanced(0.6, 2, rank=rank, world=world)) for rank in range(world)]
    for number, together in enumerate(alone):
        for rank in range(world):
            assert shares[rank][number] == together[rank::world]


def test_classes_with_one_example_and_one_class_alone():
    labels = np.array([0] * 9 + [1])
    for epoch in range(3):
        places = flat(balanced(1.0, epoch, labels))
        assert sorted(turn for turn, index in places if index == 9) == list(range(5 * epoch, 5 * epoch + 5))
    assert sorted(index for _, index in flat(balanced(1.0, 2, np.zeros(10, int)))) == list(range(10))


@pytest.mark.parametrize("balance", [-0.1, 1.5, float("nan"), "half", True])
def test_values_outside_the_unit_interval_are_refused(balance):
    with pytest.raises(UserError, match=r"from 0 .* to 1"):
        balanced(balance)
    with pytest.raises(UserError, match=r"from 0 .* to 1"):
        DataModule(array_source(), balance=balance)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="a label for every example"):
        EpochSampler(5, 2, labels=LABELS, balance=0.5)
    with pytest.raises(ValueError, match="shuffled"):
        EpochSampler(120, 2, labels=LABELS, shuffle=False, balance=0.5)


def rare_source():
    """20 training images of which three are of class 1."""
    source = array_source()
    source.splits["train"].labels = np.array([0] * 17 + [1] * 3)
    return source


def loaded(workers, start=(0, 0)):
    augment = {"appearance": [{"name": "noise", "p": 1}]}
    data = DataModule(
        rare_source(), batch_size=6, workers=workers, augment=augment, seed=3, cache_folder="memory", balance=1.0
    )
    data.begin_stage(3, start=start)
    return list(data.train_dataloader())


def test_loaders_are_balanced_whatever_the_workers_and_go_on_in_the_middle():
    whole = loaded(0)
    labels = torch.cat([batch.label for batch in whole])
    assert torch.bincount(labels).tolist() == [10, 10]
    for batch, other in zip(whole, loaded(2), strict=True):
        assert torch.equal(batch.index, other.index)
        assert torch.equal(batch.image, other.image)
    for batch, other in zip(whole[2:], loaded(0, start=(0, 2)), strict=True):
        assert torch.equal(batch.image, other.image)


def test_an_example_that_comes_twice_in_an_epoch_is_augmented_anew():
    pictures: dict[int, list[torch.Tensor]] = {}
    for batch in loaded(0):
        for index, image in zip(batch.index.tolist(), batch.image, strict=True):
            pictures.setdefault(index, []).append(image)
    assert max(map(len, pictures.values())) == 4
    for images in pictures.values():
        assert all(not torch.equal(a, b) for n, a in enumerate(images) for b in images[:n])


def test_validation_and_test_stay_as_they_are():
    data = DataModule(rare_source(), batch_size=4, cache_folder="memory", balance=1.0)
    for split, size in (("train", 20), ("val", 7), ("test", 9)):
        assert torch.cat([batch.index for batch in data.loader(split)]).tolist() == list(range(size))
