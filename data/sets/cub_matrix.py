"""``class_attribute_labels_continuous.txt``: what people said about every attribute of every class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.sets.cub_tables import Names, read_lines, real


def read_class_matrix(path: Path, classes: Names, attributes: Names) -> tuple[np.ndarray, str]:
    """Read the matrix with a line for each class and a column for each attribute, in the order of their tables.

    Args:
        path: of the matrix: percentages 0 .. 100, shares 0 .. 1, or 0 and 1; -1 means that nobody knows.
        classes: the C classes.
        attributes: the A attributes.

    Returns:
        (C, A) float64 in [0, 1], NaN where nobody knows, and which of the scales was taken.

    Raises:
        UserError: by line: a wrong number of columns, something that is no number or outside the scale; a wrong number
            of lines.
    """
    matrix = np.full((len(classes), len(attributes)), np.nan)
    lines: list[int] = []
    for line, (text,) in read_lines(path, "12.5 0 100", most=1):
        fields = text.split()
        if len(fields) != len(attributes):
            commas = "; separate them by blanks, not by commas" if len(fields) == 1 and "," in text else ""
            raise UserError(
                f"{path} line {line} has {len(fields)} columns for the {len(attributes)} attributes of "
                f"{attributes.path}",
                f"write a number for each attribute, in its order{commas}",
            )
        if len(lines) == len(classes):
            raise UserError(
                f"{path} line {line}: more lines than the {len(classes)} classes of {classes.path.name}",
                "write a line for each class, in its order",
            )
        where = f"{path} line {line}"
        matrix[len(lines)] = [real(f, where, f"value of '{attributes.values[a]}'") for a, f in enumerate(fields)]
        lines.append(line)
    if len(lines) < len(classes):
        raise UserError(
            f"{path} has {len(lines)} lines for the {len(classes)} classes of {classes.path.name}",
            "write a line for each class, in its order",
        )
    return _scaled(path, matrix, lines, attributes)


def _scaled(path: Path, matrix: np.ndarray, lines: list[int], attributes: Names) -> tuple[np.ndarray, str]:
    unknown = matrix == -1
    wrong = ((matrix < 0) & ~unknown) | (matrix > 100)
    if wrong.any():
        c, a = (int(i) for i in np.argwhere(wrong)[0])
        raise UserError(
            f"{path} line {lines[c]}: the value of '{attributes.values[a]}' is {matrix[c, a]:g}, outside 0 .. 100",
            "write percentages, shares from 0 to 1, or 0 and 1; -1 where nobody knows",
        )
    known = matrix[~unknown]
    percent = bool((known > 1).any())
    scale = "percentages" if percent else "0 and 1" if bool(np.isin(known, (0, 1)).all()) else "shares from 0 to 1"
    note = f"{path.name} was read as {scale}"
    if unknown.any():
        note += f", with {int(unknown.sum())} unknown values (-1)"
    return np.where(unknown, np.nan, matrix / (100 if percent else 1)), note
