"""``image_attribute_labels.txt``: what people said about every attribute of every image, millions of lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.sets.cub_tables import Names, read_names, whole

CHUNK = 1 << 22
"""Bytes that are read at a time."""

LIKE = "12 34 1 4 2.5"
"""Image, attribute, present, certainty, seconds."""

CERTAINTIES = {1: "not visible", 2: "guessing", 3: "probably", 4: "definitely"}
"""Those of the official set, and of a set without ``certainties.txt``."""

NONE = -1
"""In arrays: nobody annotated this."""

_DIGITS = 9


@dataclass(frozen=True)
class ImageLabels:
    """``image_attribute_labels.txt``.

    Attributes:
        present: (N, A) int8: 1 present, 0 absent, -1 not annotated.
        certainty: (N, A) int8: 1 not visible, 2 guessing, 3 probably, 4 definitely, -1 not annotated.
        longer: how many lines have more than five fields.
        first_longer: the number of the first of them, 0 if there is none.
    """

    present: np.ndarray
    certainty: np.ndarray
    longer: int
    first_longer: int


def read_certainties(path: Path) -> dict[int, int]:
    """Ids of certainties as 1 not visible, 2 guessing, 3 probably, 4 definitely; those of CUB without the file.

    Raises:
        UserError: a certainty by another name, or one of the four twice.
    """
    if not path.exists():
        return {number: number for number in CERTAINTIES}
    names = read_names(path, "certainty", "3 probably")
    known = {name: number for number, name in CERTAINTIES.items()}
    levels = {}
    for number, index in names.ids.items():
        word = names.values[index].replace("_", " ").lower()
        if word not in known:
            raise UserError(
                f"{names.where(index)}: unknown certainty '{names.values[index]}'",
                f"call it {', '.join(list(known)[:-1])} or {list(known)[-1]}",
            )
        levels[number] = known[word]
    return levels


def read_image_labels(path: Path, images: Names, attributes: Names, levels: dict[int, int]) -> ImageLabels:
    """Read lines ``<image id> <attribute id> <present> <certainty id> <seconds>``, a few megabytes at a time.

    The seconds are not used. A few lines of the official file have more than five fields: of these the first four
    count like anywhere else; if the fourth is no certainty (a stray 0), the next field that is one is taken.

    Args:
        path: of the table.
        images: the N images.
        attributes: the A attributes.
        levels: id of each certainty to its level 1 .. 4.

    Raises:
        UserError: by line: too few fields, something that is no integer, an unknown image, attribute or certainty, a
            presence that is not 0 or 1, an image and attribute twice.
    """
    shape = (len(images), len(attributes))
    present, certainty = np.full(shape, NONE, np.int8), np.full(shape, NONE, np.int8)
    reader = _Reader(path, images, attributes, levels)
    for block, number in _blocks(path):
        cells, values, degrees, lines = reader.read(block, number)
        order = np.argsort(cells, kind="stable")
        twice = np.concatenate([[False], np.diff(cells[order]) == 0])
        repeated = lines[order][twice].tolist() + lines[present.reshape(-1)[cells] != NONE].tolist()
        if repeated:
            raise _twice(path, min(repeated), images, attributes)
        present.reshape(-1)[cells], certainty.reshape(-1)[cells] = values, degrees
    return ImageLabels(present, certainty, reader.longer, reader.first_longer)


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a file, a few megabytes at a time, with the number of the first line."""
    number, rest = 1, b""
    with path.open("rb") as file:
        while more := file.read(CHUNK):
            block = rest + more
            end = block.rfind(b"\n") + 1
            if not end and len(block) > CHUNK:
                raise UserError(f"{path} line {number} is longer than {CHUNK:,} bytes", f"write lines like '{LIKE}'")
            if end:
                yield block[:end], number
                number += block.count(b"\n", 0, end)
            rest = block[end:]
    if rest.strip():
        yield rest + b"\n", number


class _Reader:
    """Parses blocks: all ordinary lines of a block at once, the others one by one."""

    def __init__(self, path: Path, images: Names, attributes: Names, levels: dict[int, int]) -> None:
        self.path, self.images, self.attributes, self.levels = path, images, attributes, levels
        self.tables = [_Lookup(images.ids), _Lookup(attributes.ids), _Lookup({0: 0, 1: 1}), _Lookup(levels)]
        self.longer = self.first_longer = 0

    def read(self, block: bytes, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cell of the flat (N, A) array, presence, level of certainty and line number of each annotation."""
        if number == 1:
            block = block.removeprefix(b"\xef\xbb\xbf")
        # Behind the end stand newlines, so that a number may be looked for behind the last one.
        letters = np.frombuffer(block + b"\n" * _DIGITS, np.uint8)
        newline = letters[: len(block)] == 10
        blank = newline | (letters[: len(block)] == 32) | (letters[: len(block)] == 9) | (letters[: len(block)] == 13)
        begins = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))
        ends = np.flatnonzero(newline)
        upto = np.searchsorted(begins, ends)
        counts = np.diff(upto, prepend=0)
        lines = np.flatnonzero(counts > 0)
        first, counts = (upto - counts)[lines], counts[lines]
        columns, good = [], counts >= 4
        for column, table in enumerate(self.tables):
            at = begins[np.minimum(first + column, len(begins) - 1)]
            values, digits = _integers(letters, at)
            found, known = table(values)
            columns.append(found)
            good &= digits & known
        starts = np.concatenate([[0], ends[:-1] + 1])
        for odd in np.flatnonzero(~good):
            line = block[starts[lines[odd]] : ends[lines[odd]]]
            for found, one in zip(columns, self._slowly(line, number + int(lines[odd])), strict=True):
                found[odd] = one
        longer = np.flatnonzero(counts > 5)
        if len(longer) and not self.longer:
            self.first_longer = number + int(lines[longer[0]])
        self.longer += len(longer)
        image, attribute, present, certainty = columns
        return image * len(self.attributes) + attribute, present, certainty, lines + number

    def _slowly(self, raw: bytes, number: int) -> tuple[int, int, int, int]:
        """One line as image, attribute, presence and level of certainty, with all checks."""
        where = f"{self.path} line {number}"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 text ({error.reason})", "save the file as UTF-8") from error
        fields = text.split()
        if len(fields) < 4:
            separator = next((s for s in ",;" if s in text), None)
            problem = f"has {len(fields)} fields" if separator is None else f"is separated by '{separator}'"
            raise UserError(f"{where} {problem}", f"write it like '{LIKE}', with blanks or tabs between")
        image, attribute = self.images.find(fields[0], where), self.attributes.find(fields[1], where)
        present = whole(fields[2], where, "presence")
        if present not in (0, 1):
            raise UserError(f"{where}: the presence is {present}", "write 1 for present, 0 for absent")
        candidates = fields[3:4] if len(fields) <= 5 else fields[3:-1]
        for field in candidates:
            if field.isdecimal() and int(field) in self.levels:
                return image, attribute, present, self.levels[int(field)]
        certainty = whole(fields[3], where, "certainty")
        raise UserError(f"{where}: there is no certainty {certainty}", f"known: {', '.join(map(str, self.levels))}")


class _Lookup:
    """Many integers to their values at once."""

    def __init__(self, table: dict[int, int]) -> None:
        keys = sorted(table)
        self.keys = np.array(keys, np.int64)
        self.values = np.array([table[key] for key in keys], np.int64)

    def __call__(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values, and which of the integers are known at all."""
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return self.values[at], self.keys[at] == wanted


def _integers(letters: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that begin at these positions, and which of them are plain digits up to the next blank."""
    values, running = np.zeros(len(begins), np.int64), np.ones(len(begins), bool)
    plain = running.copy()
    for step in range(_DIGITS):
        letter = letters[begins + step]
        digit = running & (letter >= 48) & (letter <= 57)
        if step == 0:
            plain &= digit
        plain &= digit | ~running | (letter == 32) | (letter == 9) | (letter == 13) | (letter == 10)
        values = np.where(digit, values * 10 + letter - 48, values)
        running = digit
        if not running.any():
            return values, plain
    # What still goes on is longer than fits: it is read slowly.
    return values, plain & ~running


def _twice(path: Path, line: int, images: Names, attributes: Names) -> UserError:
    """The message about an image and attribute that are annotated twice; looks for the first line again."""
    with path.open("rb") as file:
        wanted: list[bytes] = []
        for number, raw in enumerate(file, start=1):
            if number == line:
                wanted = raw.split()[:2]
                break
    with path.open("rb") as file:
        first = next(number for number, raw in enumerate(file, start=1) if _same(raw.split()[:2], wanted))
    image, attribute = (int(field) for field in wanted)
    names = f"'{images.values[images.ids[image]]}' and '{attributes.values[attributes.ids[attribute]]}'"
    return UserError(f"{path} line {line}: {names} are annotated already, in line {first}", "keep one of the lines")


def _same(fields: list[bytes], wanted: list[bytes]) -> bool:
    return len(fields) == 2 and [f.removeprefix(b"\xef\xbb\xbf").lstrip(b"0+") for f in fields] == [
        w.lstrip(b"0+") for w in wanted
    ]
