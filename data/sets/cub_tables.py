"""The plain tables of the CUB layout: ``<id> <value>`` lines, read one by one and refused by line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.plain_text import text_lines

_MOST = 5
"""Lines that one message names."""


def read_lines(path: Path, like: str, most: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Lines of a table whose columns are separated by blanks or tabs, as (line number, fields); empty ones are skipped.

    Args:
        path: of the table: UTF-8 with or without byte order mark, any line ends.
        like: a line as it should be, for messages; it tells the number of fields.
        most: or this many fields, the last of which is the rest of the line, blanks included.

    Raises:
        UserError: an unreadable file, another encoding, another separator, too few or too many fields.
    """
    count = most or len(like.split())
    if not path.exists():
        raise UserError(f"{path} is missing", f"each of its lines reads like '{like}'")
    for number, line in enumerate(text_lines(path), start=1):
        text = line.strip(" \t\r\n")
        if not text:
            continue
        fields = re.split(r"[ \t]+", text, maxsplit=most - 1 if most else 0) if most != 1 else [text]
        if len(fields) != count:
            raise _not_like(path, number, fields, count, text, like)
        yield number, fields


def _not_like(path: Path, number: int, fields: Sequence[str], count: int, text: str, like: str) -> UserError:
    for separator, name in ((",", "commas"), (";", "semicolons")):
        if len(fields) < count and separator in text:
            return UserError(
                f"{path} line {number} is separated by {name}", f"write blanks or tabs instead, as in '{like}'"
            )
    return UserError(f"{path} line {number} has {len(fields)} fields", f"write it like '{like}'")


def whole(field: str, where: str, what: str) -> int:
    """A whole number; ``what`` it is ("id", "class id") for the message."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", field):
        raise UserError(
            f"{where}: the {what} '{field}' is no whole number of at most 18 digits", "write an integer, then a blank"
        )
    return int(field)


def real(field: str, where: str, what: str) -> float:
    """A finite number; ``what`` it is for the message."""
    try:
        number = float(field)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise UserError(f"{where}: the {what} '{field}' is no number", "write a finite number, with a decimal point")
    return number


@dataclass(frozen=True)
class Names:
    """A table that names things: images, classes, parts, attributes.

    Attributes:
        path: where it lies.
        what: what it names, in the singular.
        ids: position by id.
        values: the N names, in the order of the file.
        lines: the line of each.
    """

    path: Path
    what: str
    ids: dict[int, int]
    values: tuple[str, ...]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.values)

    def where(self, index: int) -> str:
        """How messages call the line of entry ``index``."""
        return f"{self.path} line {self.lines[index]}"

    def find(self, field: str, where: str) -> int:
        """Position of the id that a line of another table names; ``where`` is that line."""
        number = whole(field, where, f"{self.what} id")
        if number not in self.ids:
            raise UserError(
                f"{where}: there is no {self.what} {number} in {self.path.name}",
                f"remove the line, or add the {self.what}",
            )
        return self.ids[number]


def read_names(path: Path, what: str, like: str, repeated: bool = False) -> Names:
    """Read ``<id> <name>`` lines; ids are any different integers, names may hold blanks.

    Args:
        path: of the table.
        what: what it names, in the singular.
        like: a line as it should be, for messages.
        repeated: whether names may occur twice (the caller looks itself).

    Raises:
        UserError: whatever :func:`read_lines` refuses, an id that is no integer, an id or name twice, no line at all.
    """
    ids: dict[int, int] = {}
    places: dict[str, int] = {}
    values: list[str] = []
    lines: list[int] = []
    for line, (field, value) in read_lines(path, like, most=2):
        where = f"{path} line {line}"
        number = whole(field, where, "id")
        if number in ids:
            raise UserError(
                f"{where}: the id {number} is given to '{values[ids[number]]}' already, in line {lines[ids[number]]}",
                "each line needs an id of its own",
            )
        if value in places and not repeated:
            raise UserError(
                f"{where}: the {what} '{value}' is named already, in line {lines[places[value]]}", "remove one of them"
            )
        ids[number] = places[value] = len(values)
        values.append(value)
        lines.append(line)
    if not values:
        raise UserError(f"{path} is empty", f"each of its lines reads like '{like}'")
    return Names(path, what, ids, tuple(values), tuple(lines))


def read_values(path: Path, names: Names, like: str) -> tuple[list[list[str]], np.ndarray]:
    """Read a table with at most one line for each entry of another one, ``<id> <field> ...``.

    Args:
        path: of the table.
        names: whose ids it uses.
        like: a line as it should be, for messages.

    Returns:
        The fields behind the id of each entry (N lists, empty where it has no line), and (N,) its line, 0 where none.

    Raises:
        UserError: whatever :func:`read_lines` refuses, an unknown id, two lines for one.
    """
    fields: list[list[str]] = [[] for _ in range(len(names))]
    lines = np.zeros(len(names), np.int64)
    for line, (field, *values) in read_lines(path, like):
        where = f"{path} line {line}"
        index = names.find(field, where)
        if lines[index]:
            other = "" if values == fields[index] else f", with '{' '.join(fields[index])}' instead"
            raise UserError(
                f"{where}: the {names.what} {field} has a line already, line {lines[index]}{other}", "keep one of them"
            )
        fields[index], lines[index] = values, line
    return fields, lines


def refuse_absent(path: Path, names: Names, lines: np.ndarray, why: str = "") -> None:
    """Refuse a table that leaves out some entries; the first few are named with their lines."""
    absent = np.flatnonzero(lines == 0)
    if not len(absent):
        return
    shown = ", ".join(f"'{names.values[i]}' (line {names.lines[i]})" for i in absent[:_MOST])
    rest = f" and {len(absent) - _MOST} more" if len(absent) > _MOST else ""
    raise UserError(
        f"{path} has no line for {len(absent)} of the {len(names)} entries of {names.path.name}: {shown}{rest}",
        f"add their lines, or remove them from {names.path.name}{why}",
    )
