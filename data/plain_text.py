"""Text files that users write, line by line: what is no UTF-8 is told with line, probable encoding and cure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from vitrarium.configs.errors import UserError

MAX_LINE = 1_000_000
"""Characters of a line; a longer one is no table, and would be held in memory whole."""

_ZIP, _OLD_OFFICE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"

_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}

_LOOKED_AT = 4096
"""Bytes at the beginning by which UTF-16 is recognised, and damaged lines by which a one-byte encoding is."""


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file (with or without byte order mark), with their ends: LF, CR LF or CR.

    Only one line is held in memory.

    Raises:
        UserError: an unreadable file, another encoding, zero bytes, a line that does not end.
    """
    number = 0
    try:
        _refuse_no_utf8(path)
        # An empty newline keeps the line ends, which quoted cells may hold, and yet splits at all three kinds.
        with path.open(newline="", encoding="utf-8-sig") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if "\0" in line:
                    raise UserError(
                        f"{path} line {number} holds a zero byte, which no text has",
                        f"the file is damaged or no text: {_cure(path)} again",
                    )
                if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                    raise UserError(f"{path} line {number} has more than {MAX_LINE:,} characters", _cure(path))
                yield line
    except UnicodeDecodeError:
        _refuse_encoding(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})", "check the path") from error


def _cure(path: Path) -> str:
    return "save it as CSV in UTF-8" if path.suffix.lower() == ".csv" else "save it as plain text in UTF-8"


def _refuse_no_utf8(path: Path) -> None:
    """What the first bytes tell: a spreadsheet, or an encoding of two or four bytes."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    if head.startswith((_ZIP, _OLD_OFFICE)):
        raise UserError(f"{path} is a spreadsheet or an archive, no text", "export it as CSV in UTF-8")
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            raise UserError(f"{path} is not UTF-8 text: line 1 begins with the mark of {encoding}", _cure(path))
    # Latin letters in UTF-16 have a zero as every second byte: first or second says which order.
    for name, zeros in (("UTF-16-LE", head[1::2]), ("UTF-16-BE", head[0::2])):
        if len(zeros) > 1 and zeros.count(0) > 0.4 * len(zeros) and head.count(0) < 0.6 * len(head):
            raise UserError(
                f"{path} is not UTF-8 text: from line 1 on every second byte is zero, so it is probably {name} without "
                "a byte order mark",
                _cure(path),
            )


def _refuse_encoding(path: Path) -> NoReturn:
    """Find the first line that is no UTF-8, and the encoding it probably has."""
    first, bad = 0, b""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), start=1):
            found = bytes(ord(letter) - 0xDC00 for letter in line if 0xDC80 <= ord(letter) <= 0xDCFF)
            bad += found
            first = first or (number if found else 0)
            if len(bad) > _LOOKED_AT:
                break
    raise UserError(
        f"{path} is not UTF-8 text: line {first} holds the byte 0x{bad[0]:02x}, {_probably(bad)}", _cure(path)
    )


def _probably(bad: bytes) -> str:
    """Which encoding of one byte a letter the bytes outside ASCII speak for, and what the first of them would be."""
    # 0x80 to 0x9f are control characters in Latin-1, but quotes, dashes and the euro sign in Windows-1252.
    if not any(byte < 0xA0 for byte in bad):
        return f"'{bytes(bad[:1]).decode('latin-1')}' in Latin-1 (ISO-8859-1), its probable encoding"
    try:
        bad.decode("cp1252")
    except UnicodeDecodeError:
        return "of an encoding that cannot be told"
    return f"'{bytes(bad[:1]).decode('cp1252')}' in Windows-1252 (cp1252), its probable encoding"
