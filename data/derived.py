"""Splits made from other splits: the same examples, seen through something (a cache, a degradation)."""

from __future__ import annotations

from pathlib import Path

from vitrarium.data.batch import Sample
from vitrarium.data.source import Split


class DerivedSplit(Split):
    """A split with the examples, labels and truth of another one.

    Args:
        inner: the split it is made from.

    Attributes:
        inner: the split it is made from.
    """

    def __init__(self, inner: Split) -> None:
        self.inner = inner
        self.labels, self.truth = inner.labels, inner.truth
        self.leaked, self.second_truth = inner.leaked, inner.second_truth

    def sample(self, index: int) -> Sample:
        """Example ``index`` of the inner split."""
        return self.inner.sample(index)

    def origin(self, index: int) -> str:
        """Where example ``index`` of the inner split comes from."""
        return self.inner.origin(index)

    def where(self, index: int) -> str:
        """What to mend if example ``index`` of the inner split is wrong."""
        return self.inner.where(index)

    def file(self, index: int) -> Path | None:
        """The image file of example ``index`` of the inner split."""
        return self.inner.file(index)

    @property
    def source(self) -> Split:
        """The split of the data set at the bottom of all derivations."""
        return self.inner.source if isinstance(self.inner, DerivedSplit) else self.inner
