"""CSV files that users write: read as text, line by line, refused with file, line and cure."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.files import SUFFIXES
from vitrarium.data.plain_text import text_lines

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}


@dataclass(slots=True)
class Row:
    """One line of a table.

    Attributes:
        line: its number in the file, that of the header being 1 as a rule; the first one if a quoted cell spans lines.
        cells: column to text, without surrounding blanks.
    """

    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


@dataclass(frozen=True)
class Header:
    """What is known of a table before its lines are read.

    Attributes:
        path: where it lies.
        columns: names in the header, in order.
        separator: what stands between cells.
    """

    path: Path
    columns: tuple[str, ...]
    separator: str = field(default=",", kw_only=True)

    def where(self, row: Row | int) -> str:
        """How messages call a row, or a line by its number."""
        return f"{self.path} line {row if isinstance(row, int) else row.line}"

    def require(self, *columns: str) -> None:
        """Refuse a table without these columns; a missing header and a wrong separator are told as such."""
        for column in columns:
            if column not in self.columns:
                _refuse_separator(self.path, self.columns, self.separator, column)
                _refuse_missing_header(self.path, self.columns, column)
                raise UserError(
                    f"{self.path} has no column '{column}' (it has: {', '.join(self.columns)})",
                    closest(column, self.columns),
                )


@dataclass(frozen=True)
class OpenTable(Header):
    """A CSV file that is read as it is iterated over: rows one by one, empty lines left out; as often as one likes."""

    def __iter__(self) -> Iterator[Row]:
        records = _records(self.path, self.separator)
        next(records)
        for line, cells in records:
            if len(cells) != len(self.columns):
                raise UserError(
                    f"{self.path} line {line} has {len(cells)} cells, the header {len(self.columns)}",
                    "put text with commas in quotes, and leave unknown cells empty",
                )
            yield Row(line, dict(zip(self.columns, cells, strict=True)))


@dataclass(frozen=True)
class Table(Header):
    """A CSV file in memory, for tables of bounded length.

    Attributes:
        rows: its lines without empty ones.
    """

    rows: list[Row]


def open_table(path: Path, separator: str = ",") -> OpenTable:
    """The header of a CSV file in UTF-8 (with or without byte order mark); its lines are read by iterating over it.

    A row is forgotten when the next one is asked for: a table of any length takes the memory that its reader keeps.

    Args:
        path: of the file.
        separator: what stands between cells.

    Raises:
        UserError: an unreadable file, another encoding or separator, empty or repeated names in the header. While
            iterating: a line with too many or too few cells, a quote that is not closed, a zero byte.
    """
    header = next(_records(path, separator), None)
    if header is None:
        raise UserError(f"{path} is empty", "give it a header and a line per image, or remove it")
    columns = tuple(header[1])
    if len(columns) == 1:
        _refuse_separator(path, columns, separator)
    for position, name in enumerate(columns, start=1):
        if not name or columns.index(name) + 1 != position:
            _refuse_missing_header(path, columns)
        if not name:
            raise UserError(f"{path}: column {position} has no name", "name it in the first line, or remove it")
        if columns.index(name) + 1 != position:
            raise UserError(f"{path} has two columns '{name}'", "rename or remove one")
    return OpenTable(path, columns, separator=separator)


def read_table(path: Path, separator: str = ",") -> Table:
    """:func:`open_table` with all rows at once.

    Raises:
        UserError: as there.
    """
    table = open_table(path, separator)
    return Table(path, table.columns, list(table), separator=separator)


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each record that is not empty."""
    reader = csv.reader(text_lines(path), strict=True, delimiter=separator)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _refuse_quotes(path, line, reader.line_num, error)
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield line, cells


def _refuse_quotes(path: Path, first: int, last: int, error: csv.Error) -> NoReturn:
    """The two ways a record cannot be parsed: text behind a closing quote, and a quote that swallows what follows."""
    unclosed = "unexpected end" in str(error) or "field larger" in str(error)
    problem = "a cell begins with a quote that is not closed" if unclosed and last >= first else str(error)
    raise UserError(f"{path} line {first}: {problem}", "mend the quotes of that line") from error


def _refuse_separator(path: Path, columns: Sequence[str], separator: str, column: str | None = None) -> None:
    """Refuse a header that another separator would split (so that ``column`` is among its names)."""
    text = separator.join(columns)
    for other, name in _SEPARATORS.items():
        names = [part.strip().strip('"') for part in text.split(other)]
        if other != separator and len(names) > 1 and (column is None or column in names):
            right = _SEPARATORS[separator]
            raise UserError(f"{path} is not separated by {right} but by {name}", f"save it as CSV with {right}")


def _refuse_missing_header(path: Path, columns: Sequence[str], column: str = "image") -> None:
    """Refuse a first line that begins with a number or names an image: it is data, and no header."""
    images = [name for name in columns if PurePosixPath(name.replace("\\", "/")).suffix.lower() in SUFFIXES]
    if images or columns[0].replace(".", "", 1).isdigit():
        shown = (images or columns)[0]
        raise UserError(
            f"{path} has no header: its first line holds '{shown}' already",
            f"put a line with the names of the columns above it: {column}, ...",
        )


def one_hot(table: Table, column: str, values: Sequence[str]) -> np.ndarray:
    """A column of words as (rows, values) float32: 1 for the value of the row, 0 for the others, NaN where it is empty.

    Raises:
        UserError: a cell that is none of the values.
    """
    encoded = np.zeros((len(table.rows), len(values)), np.float32)
    position = {value: k for k, value in enumerate(values)}
    for r, row in enumerate(table.rows):
        cell = row[column]
        if not cell:
            encoded[r] = np.nan
        elif cell in position:
            encoded[r, position[cell]] = 1
        else:
            raise UserError(f"{table.where(row)}: '{cell}' is no {column}", closest(cell, values))
    return encoded
