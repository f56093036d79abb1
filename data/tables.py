"""CSV files that users write: read as text, refused with file, line and cure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError, closest


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        line: its number in the file, the header being 1.
        cells: column to text, without surrounding blanks.
    """

    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        path: where it lies.
        columns: names in the header, in order.
        rows: its lines without empty ones.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def where(self, row: Row) -> str:
        """How messages call a line."""
        return f"{self.path} line {row.line}"

    def require(self, *columns: str) -> None:
        """Refuse a table without these columns."""
        for column in columns:
            if column not in self.columns:
                raise UserError(
                    f"{self.path} has no column '{column}' (it has: {', '.join(self.columns)})",
                    closest(column, self.columns),
                )


def read_table(path: Path) -> Table:
    """Read a CSV file with a header, commas, and UTF-8 (with or without byte order mark).

    Raises:
        UserError: an unreadable file, another encoding or separator, empty or repeated names in the header, a line
            with too many or too few cells.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason})", "save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}", "mend the quotes of that line") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})", "check the path") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise UserError(f"{path} is empty", "give it a header and a line per image, or remove it")
    header = lines[0][1]
    _check_header(path, header)
    rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"{path} line {number} has {len(cells)} cells, the header {len(header)}",
                "put text with commas in quotes, and leave unknown cells empty",
            )
        rows.append(Row(number, dict(zip(header, cells, strict=True))))
    return Table(path, tuple(header), rows)


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise UserError(f"{path} is not separated by commas", "save it as CSV with commas")
    for position, name in enumerate(header, start=1):
        if not name:
            raise UserError(f"{path}: column {position} has no name", "name it in the first line, or remove it")
        if header.index(name) + 1 != position:
            raise UserError(f"{path} has two columns '{name}'", "rename or remove one")


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
