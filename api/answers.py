"""The lines that say what a model answered about many images: CSV or JSON, columns by name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prediction import Predictions
from vitrarium.predicting import Answered

COLUMNS = ("label", "probability", "confidence", "abstained", "probabilities", "units", "contributions")
# Columns that are one for each class or unit, and how such a column begins.
MANY = {"probabilities": "probability:", "units": "unit:", "contributions": "contribution:"}


class CsvForm:
    """Answers as CSV: image, the chosen single columns, error, then one column for each class and unit.

    Numbers have six significant digits.

    Args:
        model: whose classes and units name the columns.
        columns: of :data:`COLUMNS`.
    """

    def __init__(self, model: TransparentClassifier, columns: Sequence[str]) -> None:
        self.columns = [c for c in COLUMNS if c in columns]
        self.single = [c for c in self.columns if c not in MANY]
        self.many = [c for c in self.columns if c in MANY]
        units = model.evidence.units.names
        names = {"probabilities": model.class_names, "units": units, "contributions": units}
        self.header = ["image", *self.single, "error", *(MANY[c] + name for c in self.many for name in names[c])]
        width = len(self.header) - len(self.single) - 2
        self._numbers, self._nothing = ",%.6g" * width, "," * width

    def head(self) -> str:
        """The header line."""
        return _cells(self.header) + "\n"

    def lines(self, answered: Answered) -> str:
        """One line for each image."""
        said = answered.predictions
        rows = iter(()) if said is None else zip(self._singles(said), self._table(said), strict=True)
        lines = []
        for image, error in zip(answered.images, answered.errors, strict=True):
            if error is None:
                single, numbers = next(rows)
                lines.append(_cells([image, *single, ""]) + self._numbers % tuple(numbers))
            else:
                lines.append(_cells([image, *[""] * len(self.single), error]) + self._nothing)
        return "".join(line + "\n" for line in lines)

    def _singles(self, said: Predictions) -> Iterable[tuple[str, ...]]:
        columns = {
            "label": lambda: [said.class_names[c] for c in said.classes.tolist()],
            "probability": lambda: [f"{p:.6g}" for p in said.probabilities.max(1).tolist()],
            "confidence": lambda: [f"{c:.6g}" for c in said.confidence.tolist()],
            "abstained": lambda: [str(a) for a in said.abstained.tolist()],
        }
        return zip(*(columns[c]() for c in self.single), strict=True) if self.single else [()] * len(said)

    def _table(self, said: Predictions) -> list[list[float]]:
        if not self.many:
            return [[]] * len(said)
        return np.concatenate([getattr(said, c) for c in self.many], 1).tolist()  # type: ignore[no-any-return]

    def made(self, first: str) -> bool:
        """Whether a file that begins with this line is a table of answers, of whatever model and columns."""
        cells = next(csv.reader([first]), [])
        return cells[:1] == ["image"] and "error" in cells

    def read(self, part: TextIO) -> Iterator[tuple[str, bool]]:
        """Image, and whether it could not be read, of each line of an unfinished table.

        Raises:
            UserError: the table of another model or other columns.
        """
        rows = csv.reader(part)
        if next(rows, None) != self.header:
            raise UserError(*other_command(part.name))
        at = self.header.index("error")
        for row in rows:
            if len(row) != len(self.header):
                raise UserError(*other_command(part.name))
            yield row[0], bool(row[at])


class JsonForm:
    """Answers as JSON, one object a line: image, the chosen columns, what was corrected, and whether sums are exact.

    Args:
        columns: of :data:`COLUMNS`.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = [c for c in COLUMNS if c in columns]

    def head(self) -> str:
        """Nothing stands above the lines."""
        return ""

    def lines(self, answered: Answered) -> str:
        """One line for each image."""
        return "".join(json.dumps({"image": str(a.image), **self._said(a)}) + "\n" for a in answered)

    def _said(self, answer: Any) -> dict[str, Any]:
        if answer.prediction is None:
            return {"error": answer.error}
        said: dict[str, Any] = answer.prediction.to_dict()
        exact = ("additive",) if "contributions" in self.columns else ()
        return {c: said[c] for c in (*self.columns, *exact, "corrected")}

    def made(self, first: str) -> bool:
        """Whether a file that begins with this line holds answers, of whatever model and columns."""
        return first.startswith('{"image": ')

    def read(self, part: TextIO) -> Iterator[tuple[str, bool]]:
        """Image, and whether it could not be read, of each line of an unfinished file."""
        for line in part:
            try:
                row = json.loads(line)
                yield row["image"], "error" in row
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(*other_command(part.name)) from error


Form = CsvForm | JsonForm


def choose_form(model: TransparentClassifier, as_json: bool = False, columns: str | None = None) -> Form:
    """The form of the lines.

    Args:
        model: whose answers they hold.
        as_json: JSON, else CSV.
        columns: some of :data:`COLUMNS`, separated by commas. None = all; but in CSV no units and contributions where
            units are numbered only: those of a backbone are hundreds, and nobody knows what they mean.

    Raises:
        UserError: an unknown column.
    """
    asked = [name.strip() for name in (columns or "").split(",") if name.strip()]
    for name in asked:
        if name not in COLUMNS:
            raise UserError(f"there is no column '{name}'", closest(name, COLUMNS))
    if as_json:
        return JsonForm(asked or COLUMNS)
    nameless = () if model.evidence.units.named else ("units", "contributions")
    return CsvForm(model, asked or [c for c in COLUMNS if c not in nameless])


def other_command(part: str) -> tuple[str, str]:
    """Why an unfinished file is not gone on with, and the cure."""
    return (
        f"'{part}' was made by another command: its images, columns, corrections or model are others",
        "resume with the command that began it, or remove it",
    )


def _cells(cells: Sequence[Any]) -> str:
    """Cells of a CSV line, without its end."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
