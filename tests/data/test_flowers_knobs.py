"""The knobs of annotation: noise, gaps, class-level concepts and imbalance do what they say, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from vitrarium.data.sets.flowers import FlowerSplit, flowers
from vitrarium.data.sets.flowers_annotation import annotate, class_counts
from vitrarium.data.sets.flowers_rules import ATTRIBUTES, concept_set, encode, species

COUNTS = {"train": 3000, "val": 1200, "test": 600}
GROUPS = concept_set().groups


def differing(split: FlowerSplit) -> np.ndarray:
    """Which groups (N, 8) are annotated with another value than the picture shows."""
    true = encode(split.looks)
    return np.stack([(split.truth[:, g.members] != true[:, g.members]).any(axis=1) for g in GROUPS], axis=1)


def test_without_knobs_annotations_are_true() -> None:
    for split in flowers(**COUNTS).splits.values():
        assert not differing(split).any()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_noise_shows_another_value_at_the_given_rate(rate: float) -> None:
    splits = flowers(**COUNTS, concept_noise=rate).splits
    for name in ("train", "val"):
        rates = differing(splits[name]).mean(axis=0)
        spread = 4.5 * np.sqrt(rate * (1 - rate) / len(splits[name]))
        assert np.abs(rates - rate).max() < spread
        for group in GROUPS:
            if group.categorical:
                np.testing.assert_array_equal(splits[name].truth[:, group.members].sum(axis=1), 1)
    assert not differing(splits["test"]).any()


def test_noise_spreads_over_the_other_values_evenly() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((20_000, len(ATTRIBUTES)), np.int64)
    given = annotate(rng, values, 1.0, 0.0)
    for a, options in enumerate(ATTRIBUTES.values()):
        share = np.bincount(given[:, a], minlength=len(options)) / len(given)
        assert share[0] == 0
        np.testing.assert_allclose(share[1:], 1 / (len(options) - 1), atol=0.02)


def test_missing_groups_are_whole_and_in_train_alone() -> None:
    splits = flowers(**COUNTS, missing_concepts=0.3).splits
    gone = np.isnan(splits["train"].truth)
    for group in GROUPS:
        columns = gone[:, group.members]
        assert (columns.all(axis=1) == columns.any(axis=1)).all()
        assert columns[:, 0].mean() == pytest.approx(0.3, abs=0.045)
    assert not np.isnan(splits["val"].truth).any()
    assert not np.isnan(splits["test"].truth).any()
    known = ~gone
    np.testing.assert_array_equal(splits["train"].truth[known], encode(splits["train"].looks)[known])


def test_all_concepts_can_be_missing() -> None:
    assert np.isnan(flowers(**COUNTS, missing_concepts=1).splits["train"].truth).all()


def test_class_level_concepts_are_those_of_most_training_images() -> None:
    source = flowers(**COUNTS, class_level=True)
    assert source.concepts is not None
    assert source.concepts.per_class
    train = source.splits["train"]
    for c, kind in enumerate(species(12)):
        expected = encode(train.looks[train.labels == c]).mean(axis=0)
        for split in source.splits.values():
            rows = split.truth[split.labels == c]
            assert (rows == rows[0]).all()
            for group in GROUPS:
                shares = expected[list(group.members)]
                if group.categorical:
                    assert shares[rows[0, list(group.members)].argmax()] == shares.max()
                else:
                    assert rows[0, group.members[0]] == (shares[0] > 0.5)
        for name, value in kind.conditions.items():
            group = next(g for g in GROUPS if g.name == name)
            if group.categorical:
                assert rows[0, group.members[group.values.index(value)]] == 1
            else:
                assert rows[0, group.members[0]] == (value == "yes")


def test_class_level_concepts_leave_the_pictures_varied() -> None:
    train = flowers(**COUNTS, class_level=True).splits["train"]
    assert differing(train).mean() > 0.2
    np.testing.assert_array_equal(train.looks, flowers(**COUNTS).splits["train"].looks)


@pytest.mark.parametrize(("classes", "imbalance"), [(12, 1.0), (12, 10.0), (10, 50.0), (2, 3.0)])
def test_classes_fall_geometrically_in_train_and_val_and_test_is_even(classes: int, imbalance: float) -> None:
    source = flowers(**COUNTS, classes=classes, imbalance=imbalance)
    shares = np.array([imbalance ** (-c / (classes - 1)) for c in range(classes)])
    for name in ("train", "val"):
        counts = np.bincount(source.splits[name].labels, minlength=classes)
        assert counts.sum() == COUNTS[name]
        assert np.abs(counts - COUNTS[name] * shares / shares.sum()).max() < 1
    counts = np.bincount(source.splits["test"].labels, minlength=classes)
    assert np.ptp(counts) <= 1


def test_counts_add_up_whatever_is_asked_for() -> None:
    for total in (1, 7, 100, 4001):
        for classes in (2, 5, 16):
            for imbalance in (1, 3.7, 200):
                counts = class_counts(total, classes, imbalance)
                assert counts.sum() == total
                assert (np.diff(counts) <= 1).all()


def test_the_labels_come_mixed() -> None:
    labels = flowers(**COUNTS).splits["train"].labels
    assert len(set(labels[:60])) == 12
    assert np.abs(np.corrcoef(labels, np.arange(len(labels)))[0, 1]) < 0.1


def test_notes_tell_what_was_done_to_the_data() -> None:
    source = flowers(
        **COUNTS, concept_noise=0.1, missing_concepts=0.25, class_level=True, imbalance=5, shortcut=0.7,
        shortcut_test="swapped",
    )  # fmt: skip
    text = "\n".join(source.notes)
    for said in ("10%", "25%", "majority", "5 times", "0.7", "swapped"):
        assert said in text
