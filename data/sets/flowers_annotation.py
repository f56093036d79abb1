"""Labels, looks and annotations of a split, drawn without drawing a single picture."""

from __future__ import annotations

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.sets.flowers_rules import ATTRIBUTES, required

SIZES = np.array([len(values) for values in ATTRIBUTES.values()])


def class_counts(total: int, classes: int, imbalance: float) -> np.ndarray:
    """Images per class (C,): n_c proportional to imbalance^(-c / (C - 1)), whole numbers that add up to ``total``.

    What rounding down leaves over goes to the largest fractions (largest remainders).
    """
    share = float(imbalance) ** (-np.arange(classes) / (classes - 1))
    exact = total * share / share.sum()
    counts = np.floor(exact).astype(np.int64)
    left = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[left] += 1
    return counts


def draw_labels(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Labels (N,) int64 in random order, ``counts[c]`` of class c."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.argsort(rng.random(len(labels)), kind="stable")]


def draw_looks(rng: np.random.Generator, labels: np.ndarray, classes: int) -> np.ndarray:
    """Attribute values (N, 8): as the species asks, uniform where it leaves them free."""
    free = (rng.random((len(labels), len(SIZES))) * SIZES).astype(np.int64)
    asked = required(classes)[labels]
    return np.where(asked >= 0, asked, free)


def majority(looks: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The most frequent value of each attribute in each class (C, 8), the first one on a tie."""
    table = np.zeros((classes, len(SIZES)), np.int64)
    for c in range(classes):
        for a, values in enumerate(SIZES):
            table[c, a] = np.bincount(looks[labels == c, a], minlength=values).argmax()
    return table


def annotate(rng: np.random.Generator, values: np.ndarray, noise: float, missing: float) -> np.ndarray:
    """What an annotator writes down.

    Args:
        rng: source of chance; the same numbers are drawn whatever the rates.
        values: (N, 8) true values.
        noise: probability that a group shows another value than the true one, each other value equally likely.
        missing: probability that a group is left open.

    Returns:
        (N, 8) values, -1 where left open.
    """
    wrong, step, gone = rng.random((3, *values.shape))
    other = (values + 1 + (step * (SIZES - 1)).astype(np.int64)) % SIZES
    given = np.where(wrong < noise, other, values)
    return np.where(gone < missing, -1, given)


def draw_marks(rng: np.random.Generator, labels: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """Marks (N,): that of the image's own class with probability ``strength``, else one of all classes at random."""
    own, any_class = rng.random((2, len(labels)))
    return np.where(own < strength, labels, (any_class * classes).astype(np.int64))


def check_range(name: str, value: float, low: float, high: float, whole: bool = False) -> None:
    """Refuse an option that is no number in [low, high], or no whole one where one is asked for.

    Raises:
        UserError: with the name, the value and the range.
    """
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        number = "a whole number" if whole else "a number"
        raise UserError(f"flowers cannot have {name}={value!r}", f"give {number} from {low} to {high}")
