"""``concepts.csv``: what a user knows of each image, column by column."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.sets.folder_layout import SPLIT_WORDS, Layout
from vitrarium.data.tables import Row, Table, one_hot, read_table

RESERVED = ("image", "split", "class", "label")
"""Columns that are no concepts: ``class`` or ``label`` only repeats the folder and is checked against it."""

_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


class ImageNames:
    """How tables name images: by the path relative to the root, or by the file name where it is unique.

    Args:
        files: paths of the N images relative to the root.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._paths = {file: index for index, file in enumerate(files)}
        self._names: dict[str, list[int]] = {}
        for index, file in enumerate(files):
            self._names.setdefault(PurePosixPath(file).name, []).append(index)

    def find(self, name: str, where: str) -> int:
        """Position of the image called ``name``; ``where`` is for the message."""
        path = PurePosixPath(name.replace("\\", "/")).as_posix()
        if path in self._paths:
            return self._paths[path]
        found = self._names.get(path, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{where}: {len(found)} images are called '{name}'", f"write the path, as in {self._files[found[0]]}"
            )
        if not name:
            raise UserError(f"{where}: no image is named", f"write its path, as in {self._files[0]}")
        cure = closest(path, self._paths if "/" in path else self._names)
        raise UserError(f"{where}: there is no image '{name}'", cure)


@dataclass(frozen=True)
class Known:
    """What ``concepts.csv`` says.

    Attributes:
        concepts: the concept set, or None without a column for one.
        truth: (N, K) float32 in [0, 1], NaN where nobody knows, or None.
        splits: the column ``split`` for each image, or None without it.
        notes: what a reader of numbers must know.
    """

    concepts: ConceptSet | None = None
    truth: np.ndarray | None = None
    splits: list[str] | None = None
    notes: tuple[str, ...] = ()


def read_concepts(path: Path, layout: Layout, categorical: Collection[str] = ()) -> Known:
    """Read ``concepts.csv``; a folder without it is a plain set of classes.

    Numbers in [0, 1] and yes/no/true/false make a yes/no concept, other words a categorical group with sorted values,
    an empty cell or ``nan`` means that nobody knows.

    Args:
        path: of the table.
        layout: images and classes.
        categorical: columns whose numbers are names of values.

    Raises:
        UserError: an unknown image, two rows for one, a number outside [0, 1], words and numbers mixed in a column, an
            empty column, a label that is not the image's, an unknown split.
    """
    if not path.exists():
        if categorical:
            raise UserError(f"categorical columns are named, but there is no {path}", "remove the option, or add it")
        return Known()
    table = read_table(path)
    table.require("image", *categorical)
    rows = _rows_of_images(table, layout)
    _check_labels(table, rows, layout)
    splits = _splits(table, rows, layout) if "split" in table.columns else None
    columns = [column for column in table.columns if column not in RESERVED]
    notes = []
    missing = len(layout.files) - len(table.rows)
    if missing and columns:
        notes.append(f"{missing} of {len(layout.files)} images have no row in concepts.csv: their concepts are unknown")
    if not columns:
        return Known(splits=splits)
    attributes: dict[str, Sequence[str]] = {}
    blocks = []
    for column in columns:
        name, values, block = _column(table, column, column in categorical)
        if name in attributes:
            raise UserError(f"{path} has two columns for the concept '{name}'", "rename or remove one")
        if not values and len(np.unique(block[~np.isnan(block)])) == 1:
            notes.append(f"the concept '{name}' is the same wherever it is known")
        attributes[name] = values
        blocks.append(block)
    known = np.concatenate(blocks, axis=1)
    truth = np.full((len(layout.files), known.shape[1]), np.nan, np.float32)
    truth[rows] = known
    return Known(ConceptSet.categorical(attributes), truth, splits, tuple(notes))


def _rows_of_images(table: Table, layout: Layout) -> np.ndarray:
    """The image of each row (rows,)."""
    names = ImageNames(layout.files)
    lines: dict[int, int] = {}
    for row in table.rows:
        index = names.find(row["image"], table.where(row))
        if index in lines:
            raise UserError(
                f"{table.where(row)}: the image '{row['image']}' has a row already, in line {lines[index]}",
                "keep one of the two",
            )
        lines[index] = row.line
    return np.array(list(lines), np.int64)


def _check_labels(table: Table, rows: np.ndarray, layout: Layout) -> None:
    """A column ``class`` or ``label`` must agree with the folders."""
    for column in {"class", "label"} & set(table.columns):
        for row, index in zip(table.rows, rows, strict=True):
            folder = layout.class_names[layout.labels[index]]
            if row[column] not in layout.class_names:
                raise UserError(
                    f"{table.where(row)}: the {column} '{row[column]}' is none of the classes",
                    closest(row[column], layout.class_names),
                )
            if row[column] != folder:
                raise UserError(
                    f"{table.where(row)}: the {column} is '{row[column]}', but the image lies in the folder '{folder}'",
                    "move the image or mend the cell",
                )


def _splits(table: Table, rows: np.ndarray, layout: Layout) -> list[str]:
    splits = [""] * len(layout.files)
    for row, index in zip(table.rows, rows, strict=True):
        word = row["split"].lower()
        if word not in SPLIT_WORDS:
            raise UserError(f"{table.where(row)}: unknown split '{row['split']}'", "write train, val or test")
        splits[index] = SPLIT_WORDS[word]
    if "" in splits:
        raise UserError(
            f"{table.path} has a column 'split', but no row for '{layout.files[splits.index('')]}'",
            "add a row for each image, or remove the column",
        )
    return splits


def _column(table: Table, column: str, categorical: bool) -> tuple[str, Sequence[str], np.ndarray]:
    """Name of the concept or group, its values (none for yes/no), and its block (rows, values) of the truth."""
    filled = [row for row in table.rows if not _unknown(row[column])]
    if not filled:
        raise UserError(f"{table.path}: the column '{column}' is empty", "fill it or remove it")
    if not categorical:
        numbers = [row for row in filled if _number(row[column]) is not None]
        words = [row for row in filled if _number(row[column]) is None]
        if all(row[column].lower() in _WORDS for row in words):
            return column, (), _yes_no(table, column)
        if numbers:
            _refuse_mixture(table, column, numbers[0], words[0])
    values = sorted({row[column] for row in filled})
    block = one_hot(_blanked(table, column), column, values)
    if len(values) == 1:
        # One value alone makes no group; as a yes/no concept of its own name it can still be read.
        return f"{column}={values[0]}", (), block
    return column, values, block


def _refuse_mixture(table: Table, column: str, number: Row, word: Row) -> None:
    raise UserError(
        f"{table.where(word)}: '{word[column]}' in the column '{column}', where line {number.line} has the number "
        f"{number[column]}",
        f"write numbers from 0 to 1 only, or words only; if numbers are names, set data.categorical=[{column}]",
    )


def _yes_no(table: Table, column: str) -> np.ndarray:
    block = np.full((len(table.rows), 1), np.nan, np.float32)
    for r, row in enumerate(table.rows):
        if _unknown(row[column]):
            continue
        word = row[column].lower()
        value = _WORDS[word] if word in _WORDS else float(word)
        if not 0 <= value <= 1:
            raise UserError(
                f"{table.where(row)}: the concept '{column}' is {row[column]}, outside [0, 1]",
                f"rescale it; if its numbers are names of values, set data.categorical=[{column}]",
            )
        block[r] = value
    return block


def _unknown(cell: str) -> bool:
    return cell == "" or cell.lower() == "nan"


def _blanked(table: Table, column: str) -> Table:
    """The column alone, with ``nan`` written as an empty cell."""
    rows = [Row(row.line, {column: "" if _unknown(row[column]) else row[column]}) for row in table.rows]
    return Table(table.path, (column,), rows)


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return None if math.isnan(number) else number
