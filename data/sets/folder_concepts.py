"""``concepts.csv`` and ``class_concepts.csv``: what a user knows of each image, or of each class, column by column."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concept_columns import ConceptColumns
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.naming import ImageNames, Names
from vitrarium.data.sets.class_concepts import CLASS_CONCEPTS, read_class_concepts
from vitrarium.data.sets.folder_layout import SPLIT_WORDS, Layout
from vitrarium.data.tables import OpenTable, Row, open_table

CONCEPTS = "concepts.csv"

LABELS = ("class", "label")
"""Columns that only repeat the folder and are checked against it."""

RESERVED = ("image", "split", *LABELS)
"""Columns that are no concepts."""


@dataclass(frozen=True)
class Known:
    """What the tables say.

    Attributes:
        lines: (N,) the line of ``concepts.csv`` that tells of each image, 0 where there is none.
        concepts: the concept set, or None without a column for one.
        truth: (N, K) float32 in [0, 1], NaN where nobody knows, or None.
        splits: the column ``split`` for each image, or None without it.
        notes: what a reader of numbers must know.
    """

    lines: np.ndarray
    concepts: ConceptSet | None = None
    truth: np.ndarray | None = None
    splits: list[str] | None = None
    notes: tuple[str, ...] = ()


def read_known(root: Path, layout: Layout, categorical: Sequence[str] = (), ignore: Sequence[str] = ()) -> Known:
    """Read both tables; a folder without them is a plain set of classes.

    Concepts stand either in ``concepts.csv``, a row for each image, or in ``class_concepts.csv``, a row for each class.

    Args:
        root: the data folder.
        layout: images and classes.
        categorical: columns whose numbers are names of values.
        ignore: columns that are no concepts.

    Raises:
        UserError: concepts in both tables, an unknown image or class, two rows for one, a label that is not the
            image's, an unknown split, what :class:`ConceptColumns` refuses.
    """
    of_images, of_classes = (_opened(root / name) for name in (CONCEPTS, CLASS_CONCEPTS))
    _check_options(root, [t for t in (of_images, of_classes) if t is not None], categorical, ignore)
    columns = [] if of_images is None else [c for c in of_images.columns if c not in (*RESERVED, *ignore)]
    if columns and of_classes is not None:
        raise UserError(
            f"{root / CONCEPTS} gives concepts ({', '.join(columns[:3])}), and so does {CLASS_CONCEPTS} beside it",
            f"remove one, or name columns that are no concepts in data.ignore=[{','.join(columns[:3])}]",
        )
    known = Known(np.zeros(len(layout.files), np.int64))
    if of_images is not None:
        known = _of_images(of_images, layout, columns, categorical, ignore)
    if of_classes is not None:
        said = read_class_concepts(of_classes.path, layout.class_names, "class", categorical, ignore)
        if said.concepts is None or said.truth is None:
            raise UserError(f"{of_classes.path} has no column for a concept", "add one, or remove the file")
        notes = (*known.notes, *said.notes, f"concepts come from {CLASS_CONCEPTS}: all images of a class have the same")
        known = replace(known, concepts=said.concepts, truth=said.truth[layout.labels], notes=notes)
    return known


def _opened(path: Path) -> OpenTable | None:
    return open_table(path) if path.exists() else None


def _check_options(root: Path, tables: Sequence[OpenTable], categorical: Sequence[str], ignore: Sequence[str]) -> None:
    """Columns that options name must be there, and not be needed."""
    for option, named in (("categorical", categorical), ("ignore", ignore)):
        if named and not tables:
            raise UserError(
                f"{option} columns are named, but there is no {root / CONCEPTS}", "remove the option, or add it"
            )
        for column in named:
            if not any(column in table.columns for table in tables):
                tables[-1].require(column)
    if "image" in ignore:
        raise UserError("data.ignore names the column 'image', which says what a row is about", "leave it out")
    both = sorted(set(categorical) & set(ignore))
    if both:
        raise UserError(f"'{both[0]}' is in data.categorical and in data.ignore", "leave it out of one")


def _of_images(
    table: OpenTable, layout: Layout, columns: Sequence[str], categorical: Collection[str], ignore: Collection[str]
) -> Known:
    """``concepts.csv``, row by row: only what is kept of a row is in memory."""
    table.require("image")
    count, names = len(layout.files), ImageNames(layout.files)
    collected = ConceptColumns(table.path, columns, categorical)
    labels = _LabelCheck(table, layout, [c for c in LABELS if c in table.columns and c not in ignore])
    splits = [""] * count if "split" in table.columns and "split" not in ignore else None
    lines, places = np.zeros(count, np.int64), array("q")
    rows = iter(table)
    for row in rows:
        index = names.find(row["image"])
        if index is None:
            names.refuse(row["image"], table.where(row), _not_found(rows, names))
        if lines[index]:
            raise UserError(
                f"{table.where(row)}: the image '{row['image']}' has a row already, in line {lines[index]}",
                "keep one of the two",
            )
        lines[index] = row.line
        places.append(index)
        labels(row, index)
        if splits is not None:
            splits[index] = _split(table, row)
        collected.add(row)
    if splits is not None and "" in splits:
        raise UserError(
            f"{table.path} has a column 'split', but no row for '{layout.files[splits.index('')]}'",
            "add a row for each image, or remove the column",
        )
    if not columns:
        return Known(lines, splits=splits)
    concepts, truth, notes = collected.finish(np.array(places, np.int64), count)
    if len(places) < count:
        missing = count - len(places)
        notes.insert(0, f"{missing} of {count} images have no row in {CONCEPTS}: their concepts are unknown")
    return Known(lines, concepts, truth, splits, tuple(notes))


def _not_found(rows: Iterator[Row], names: ImageNames) -> int:
    """How many further rows name no image: it tells the table of a larger set from a slip of the pen."""
    count = 0
    with contextlib.suppress(UserError):  # a later mistake is told when this one is mended
        for row in rows:
            count += names.find(row["image"]) is None
    return count


class _LabelCheck:
    """A column ``class`` or ``label`` must agree with the folders."""

    def __init__(self, table: OpenTable, layout: Layout, columns: Sequence[str]) -> None:
        self.table, self.layout, self.columns = table, layout, columns
        self.names = Names(layout.class_names)

    def __call__(self, row: Row, index: int) -> None:
        for column in self.columns:
            said, names = self.names.find(row[column]), self.layout.class_names
            if said is None:
                raise UserError(
                    f"{self.table.where(row)}: the {column} '{row[column]}' is none of the classes",
                    closest(row[column], names),
                )
            if said != self.layout.labels[index]:
                raise UserError(
                    f"{self.table.where(row)}: the {column} is '{row[column]}', but the image lies in the folder "
                    f"'{names[self.layout.labels[index]]}'",
                    "move the image or mend the cell",
                )


def _split(table: OpenTable, row: Row) -> str:
    word = row["split"].lower()
    if word not in SPLIT_WORDS:
        raise UserError(f"{table.where(row)}: unknown split '{row['split']}'", "write train, val or test")
    return SPLIT_WORDS[word]
