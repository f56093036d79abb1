"""Columns of a table as concepts: what their cells hold decides what they become."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.tables import Row

WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""What words say in a yes/no column."""

MAX_VALUES = 1000
"""Different words in a column; a column with more is a remark or a number, and would be a concept for each."""

Cell = tuple[int, str]
"""Line and text."""


class ConceptColumn:
    """One column, collected cell by cell in eight bytes each, whatever the cells hold.

    Numbers in [0, 1] and yes/no/true/false make a yes/no concept, other words a categorical group with sorted values,
    an empty cell or ``nan`` means that nobody knows.

    Args:
        path: of the table, for messages.
        name: of the column.
        categorical: whether its numbers are names of values.
    """

    def __init__(self, path: Path, name: str, categorical: bool = False) -> None:
        self.path, self.name, self._categorical = path, name, categorical
        self._numbers, self._codes = array("f"), array("i")
        self._words: dict[str, int] = {}
        self._first_number: Cell | None = None
        self._first_word: Cell | None = None
        self._outside: Cell | None = None

    def add(self, cell: str, line: int) -> None:
        """The cell of the next row.

        Raises:
            UserError: words and numbers mixed, or more different words than values can be.
        """
        number, code = math.nan, -1
        if cell and cell.lower() != "nan":
            number = math.nan if self._categorical else _number(cell)
            if math.isnan(number):
                code = self._word(cell, line)
                number = math.nan if self._categorical else WORDS.get(cell.lower(), math.nan)
            else:
                self._first_number = self._first_number or (line, cell)
                if not 0 <= number <= 1:
                    self._outside = self._outside or (line, cell)
                    number = math.nan
        if self._first_number and self._first_word:
            self._refuse_mixture(self._first_number, self._first_word)
        self._numbers.append(number)
        self._codes.append(code)

    def _word(self, cell: str, line: int) -> int:
        code = self._words.setdefault(cell, len(self._words))
        if code >= MAX_VALUES:
            raise UserError(
                f"{self.path} line {line}: the column '{self.name}' holds more than {MAX_VALUES:,} different words, "
                "too many for the values of a concept",
                f"remove the column, or name it in data.ignore=[{self.name}]",
            )
        if not self._categorical and self._first_word is None and cell.lower() not in WORDS:
            self._first_word = (line, cell)
        return code

    def _refuse_mixture(self, number: Cell, word: Cell) -> None:
        raise UserError(
            f"{self.path} line {word[0]}: '{word[1]}' in the column '{self.name}', where line {number[0]} has the "
            f"number {number[1]}",
            "write numbers from 0 to 1 only, or words only, and leave empty what nobody knows; "
            f"if numbers are names, set data.categorical=[{self.name}]",
        )

    def values(self) -> tuple[str, Sequence[str]]:
        """Name of the concept or group, and its values (none for yes/no).

        Raises:
            UserError: an empty column, a number outside [0, 1].
        """
        if not (self._words or self._first_number):
            raise UserError(f"{self.path}: the column '{self.name}' is empty", "fill it or remove it")
        if self._outside:
            raise UserError(
                f"{self.path} line {self._outside[0]}: the concept '{self.name}' is {self._outside[1]}, outside [0, 1]",
                "rescale it, or leave empty what nobody knows; if its numbers are names of values, set "
                f"data.categorical=[{self.name}]; if the column is no concept, data.ignore=[{self.name}]",
            )
        if not self._of_words():
            return self.name, ()
        # One value alone makes no group; as a yes/no concept of its own name it can still be read.
        return (f"{self.name}={next(iter(self._words))}", ()) if len(self._words) == 1 else (self.name, self._sorted())

    def truth(self) -> np.ndarray:
        """(rows, values) float32 in [0, 1], NaN where nobody knows; one column for a yes/no concept."""
        if not self._of_words():
            return np.frombuffer(self._numbers, np.float32)[:, None]
        order = np.array([self._words[value] for value in self._sorted()])
        codes = np.frombuffer(self._codes, np.int32)[:, None]
        return np.where(codes < 0, np.float32(np.nan), (codes == order).astype(np.float32))

    def _of_words(self) -> bool:
        return self._categorical or self._first_word is not None

    def _sorted(self) -> list[str]:
        return sorted(self._words)


class ConceptColumns:
    """The columns of a table that are concepts.

    Args:
        path: of the table.
        columns: their names.
        categorical: those whose numbers are names of values.
    """

    def __init__(self, path: Path, columns: Sequence[str], categorical: Collection[str] = ()) -> None:
        self.path = path
        self._columns = [ConceptColumn(path, name, name in categorical) for name in columns]

    def __bool__(self) -> bool:
        return bool(self._columns)

    def add(self, row: Row) -> None:
        """The cells of the next row."""
        for column in self._columns:
            column.add(row.cells[column.name], row.line)

    def finish(self, rows: np.ndarray, count: int, per_class: bool = False) -> tuple[ConceptSet, np.ndarray, list[str]]:
        """What was collected, as concepts.

        Args:
            rows: (rows,) what each row is about: an image, or a class.
            count: how many of these there are.
            per_class: whether they are classes.

        Returns:
            The concepts, their truth (count, K) with NaN where nobody knows, and notes on those that never vary.

        Raises:
            UserError: an empty column, a number outside [0, 1], two columns for one concept.
        """
        attributes: dict[str, Sequence[str]] = {}
        for column in self._columns:
            name, values = column.values()
            if name in attributes:
                raise UserError(f"{self.path} has two columns for the concept '{name}'", "rename or remove one")
            attributes[name] = values
        concepts = ConceptSet.categorical(attributes, per_class=per_class)
        truth = np.full((count, len(concepts)), np.nan, np.float32)
        notes = []
        for column, group in zip(self._columns, concepts.groups, strict=True):
            block = column.truth()
            truth[rows, group.members[0] : group.members[-1] + 1] = block
            if len(group.members) == 1 and len(np.unique(block[~np.isnan(block)])) == 1:
                notes.append(f"the concept '{group.name}' is the same wherever it is known")
        return concepts, truth, notes


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
