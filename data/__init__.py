"""Data: what an example is, which concepts it has, and where it comes from.

A data set is built by :func:`build_source` from its registered name and options, and gives a :class:`DataSource`: three
splits of :class:`Sample`, a :class:`ConceptSet`, and what a reader of numbers must know. The loaders over it are in
:mod:`vitrarium.data.module`; everything in between is a file each: the cache of decoded examples (``cache``),
augmentation (``augmentation``), test-time degradations (``degrade``), the order of examples (``sampler``).

Importing this package loads neither albumentations nor Lightning, and torch only with a name that needs it:
concepts and preprocessing also serve exported models, which run without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitrarium.data.concepts import ConceptGroup, ConceptSet

if TYPE_CHECKING:
    from vitrarium.data.batch import Batch, Sample
    from vitrarium.data.source import DATASETS, SPLITS, DataSource, Split

_PLACES = {
    "Batch": "batch", "Sample": "batch",
    "DATASETS": "source", "SPLITS": "source", "DataSource": "source", "Split": "source",
}  # fmt: skip

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batch",
    "ConceptGroup",
    "ConceptSet",
    "DataSource",
    "Sample",
    "Split",
    "build_source",
]


def build_source(spec: Mapping[str, Any] | str) -> DataSource:
    """Build a data set from its name or ``{name, **options}``.

    Raises:
        UserError: an unknown name or option, or data that are missing or damaged.

    Example:
        >>> source = build_source({"name": "flowers", "train": 20, "val": 10, "test": 10})
        >>> {name: len(split) for name, split in source.splits.items()}
        {'train': 20, 'val': 10, 'test': 10}
    """
    from vitrarium.data.source import DATASETS

    return DATASETS.build(spec)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vitrarium.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vitrarium.data.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
