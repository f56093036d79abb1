"""The tables of ``wbcatt``: the official annotation, and that of the second annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.source import SPLITS
from vitrarium.data.tables import Table, one_hot, read_table

SECOND_FILE = "pbc_attr_reannotations.csv"

NOT_ATTRIBUTES = ("img_name", "label", "path")


@dataclass(frozen=True)
class Annotations:
    """The official tables.

    Attributes:
        tables: one per split.
        class_names: sorted names of the classes.
        concepts: the attributes as categorical groups, values sorted.
    """

    tables: dict[str, Table]
    class_names: tuple[str, ...]
    concepts: ConceptSet

    def truth(self, table: Table) -> np.ndarray:
        """The attributes of a table as concepts (rows, K)."""
        return np.concatenate([one_hot(table, g.name, g.values) for g in self.concepts.groups], axis=1)

    def labels(self, table: Table) -> np.ndarray:
        """The classes of a table (rows,) int64."""
        position = {name: c for c, name in enumerate(self.class_names)}
        for row in table.rows:
            if row["label"] not in position:
                raise UserError(
                    f"{table.where(row)}: the label '{row['label']}' is none of the classes",
                    closest(row["label"], position),
                )
        return np.array([position[row["label"]] for row in table.rows], np.int64)


def read_annotations(root: Path) -> Annotations:
    """Read the official tables; classes and values are those that occur in them, sorted.

    Raises:
        UserError: a missing or damaged table, tables with different columns.
    """
    tables = {split: read_table(root / f"pbc_attr_v1_{split}.csv") for split in SPLITS}
    first = tables["train"]
    first.require(*NOT_ATTRIBUTES)
    for table in tables.values():
        table.require(*first.columns)
        if not table.rows:
            raise UserError(f"{table.path} lists no images", "download it again")
    attributes = [column for column in first.columns if column not in NOT_ATTRIBUTES]
    values = {
        name: sorted({row[name] for table in tables.values() for row in table.rows} - {""}) for name in attributes
    }
    classes = tuple(sorted({row["label"] for row in first.rows}))
    return Annotations(tables, classes, ConceptSet.categorical(values))


def second_annotator(root: str | Path) -> dict[str, tuple[np.ndarray, int]]:
    """What the second annotators wrote: the ceiling that people set.

    Args:
        root: the data folder.

    Returns:
        Name of the image file to its concepts (K,) float32 and its class.
    """
    return read_second(Path(root), read_annotations(Path(root)))


def read_second(root: Path, annotations: Annotations) -> dict[str, tuple[np.ndarray, int]]:
    """:func:`second_annotator` where the official tables are read already."""
    table = read_table(root / SECOND_FILE)
    table.require(*annotations.tables["train"].columns)
    truth, labels = annotations.truth(table), annotations.labels(table)
    return {row["img_name"]: (truth[r], int(labels[r])) for r, row in enumerate(table.rows)}


def second_truth(
    second: Mapping[str, tuple[np.ndarray, int]], names: Sequence[str], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The second annotators' answers in the order of a split.

    Args:
        second: from :func:`second_annotator`.
        names: file name of each of the N images.
        width: number of concepts K.

    Returns:
        Concepts (N, K) float32 with NaN, and classes (N,) int64 with -1, where they were not asked.
    """
    truth, labels = np.full((len(names), width), np.nan, np.float32), np.full(len(names), -1, np.int64)
    for index, name in enumerate(names):
        if name in second:
            truth[index], labels[index] = second[name]
    return truth, labels
