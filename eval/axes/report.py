"""A judgement as files: tables, pictures, one page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.eval.axes.drawing import draw_geometry, draw_importance, draw_ratings
from vitrarium.eval.axes.judging import AXIS, FILTER, MASKED, PROBE, STRONG, Judgement
from vitrarium.eval.axes.measures import label_counts
from vitrarium.eval.axes.sheet import draw_top_images, share_there, top_images
from vitrarium.eval.explanations import heat
from vitrarium.eval.explanations.saving import write
from vitrarium.eval.records import write_table

SAID = {
    "axes.png": ("AUC of each concept", "Does the axis rank the images that have the concept above those that do not?"),
    "top_images.png": ("Top images of each axis", "A pure axis shows its own concept only."),
    "geometry.png": ("How axes and concepts lie", "Pale off the diagonal: axes and concepts are kept apart."),
    "importance.png": ("What the decision uses", "Red: shuffling the axis hurts this class."),
}
TABLES = ("axes.csv", "summary.csv", "importance.csv")


@dataclass
class AxesReport:
    """How well units stand for concepts; ``write`` makes tables, pictures and a page of it.

    Attributes:
        judged: what was found.
        title: of the model.
        against: which layer gave best filter and probe, in words.
        image_of: position in the split to an image, for the sheet of top images.
        images: how many of each axis are shown.
        credit: line of credit of the pictures, or None.
        notes: what a reader must know.
    """

    judged: Judgement
    title: str
    against: str
    image_of: Callable[[int], np.ndarray]
    images: int = 8
    credit: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tops = top_images(self.judged.seen, len(self.judged.concepts), self.images) if self._shows() else None

    def _shows(self) -> bool:
        return self.judged.has_axes and self.images > 0

    def rows(self) -> list[dict[str, Any]]:
        """A row per concept; None where something is not defined."""
        judged = self.judged
        positive, negative = label_counts(judged.seen.truth)
        there = None if self._tops is None else share_there(self._tops[1])
        rows = []
        for k, name in enumerate(judged.concepts.names):
            row: dict[str, Any] = {
                "concept": name,
                "group": judged.concepts.groups[int(judged.concepts.group_of[k])].name,
                "with": int(positive[k]), "without": int(negative[k]), "in_means": bool(judged.chosen[k]),
            }  # fmt: skip
            for key, rating in judged.ratings.items():
                row |= {
                    f"{key}_auc": _number(rating.auc[k]), f"{key}_low": _number(rating.low[k]),
                    f"{key}_high": _number(rating.high[k]),
                }  # fmt: skip
                if key in judged.baselines:
                    row[f"{key}_choice"] = judged.baselines[key].chosen[k]
            if there is not None:
                row["top_images_with"] = _number(there[k])
            if judged.importance is not None:
                row["importance"] = _number(judged.importance.loss[k])
            rows.append(row)
        return rows

    def summary(self) -> list[dict[str, Any]]:
        """A row per measure over all concepts: measure, value, low, high, concepts, about."""
        found = []
        for name, mean in self.judged.means().items():
            low, high = mean.interval
            found.append(_row(name, mean.value, self._about(name), low, high, mean.concepts))
        for space in self.judged.spaces:
            for what, correlation in (("places", space.places), ("images", space.images)):
                if correlation is not None:
                    still = f", {correlation.constant} constant channels left out" if correlation.constant else ""
                    said = f"{space.name}, over {what}{still}"
                    found.append(_row(f"axis_correlation_{what}", correlation.mean, said))
            found.append(_row("intra_concept_cosine", space.likeness.intra, space.name))
            found.append(_row("inter_concept_similarity", space.likeness.inter, space.name))
        return found

    def _about(self, name: str) -> str:
        strong = STRONG in name
        for key in (FILTER, PROBE):
            baseline = self.judged.baselines[key + (STRONG if strong else "")]
            if name.startswith(key):
                chosen = ", chosen on validation" if strong else ""
                return f"{self.against}, reduction {baseline.reduction}{chosen}"
        if name.startswith(("gain", "share")):
            return f"against {self.against}" + (", its strongest reductions" if strong else "")
        return self.title

    def pictures(self) -> dict[str, bytes]:
        """PNG files by name."""
        judged = self.judged
        made = {"axes.png": draw_ratings(judged, self.title)}
        if self._tops is not None:
            sheet = draw_top_images(self.image_of, *self._tops, judged.concepts.names, self.title, self.credit)
            buffer = io.BytesIO()
            sheet.save(buffer, "PNG")
            made["top_images.png"] = buffer.getvalue()
        made["geometry.png"] = draw_geometry(judged, self.title)
        if judged.importance is not None:
            made["importance.png"] = draw_importance(
                judged.importance, judged.concepts.names, judged.classes, self.title
            )  # fmt: skip
        return made

    def importance_rows(self) -> list[dict[str, Any]]:
        """A row per concept and class, and one over all classes."""
        lost = self.judged.importance
        if lost is None:
            return []
        rows = []
        for j, unit in enumerate(lost.units):
            name = self.judged.concepts.names[unit]
            ends = {"low": _number(lost.low[j]), "high": _number(lost.high[j])}
            rows.append({"concept": name, "class": "", "loss_rise": _number(lost.loss[j]), **ends, "recall_fall": None})
            for c, label in enumerate(self.judged.classes):
                loss, recall = _number(lost.loss_by_class[j, c]), _number(lost.recall_by_class[j, c])
                rows.append(
                    {"concept": name, "class": label, "loss_rise": loss, "low": None, "high": None,
                     "recall_fall": recall}
                )  # fmt: skip
        return rows

    def write(self, folder: str | Path) -> Path:
        """``axes.csv``, ``summary.csv``, ``importance.csv``, their pictures and ``axes.html``; each file appears whole.

        Files of an earlier report that no longer apply are removed.

        Raises:
            UserError: a folder that cannot be written.
        """
        folder = Path(folder)
        tables = dict(zip(TABLES, (self.rows(), self.summary(), self.importance_rows()), strict=True))
        try:
            for name, rows in tables.items():
                if rows:
                    write_table(folder / name, rows)
                else:
                    (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"'{folder}' cannot be written: {error}", "choose another folder with -o") from error
        pictures = self.pictures()
        for name in SAID:
            if name in pictures:
                write(folder / name, pictures[name])
            else:
                (folder / name).unlink(missing_ok=True)
        write(folder / "axes.html", self.page(pictures).encode("utf-8"))
        return folder

    def page(self, pictures: dict[str, bytes]) -> str:
        """The text of an HTML file with its pictures inside."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("vitrarium.eval.axes", "."), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        shown = [
            {"heading": SAID[name][0], "said": SAID[name][1], "address": heat.data_address(content)}
            for name, content in pictures.items()
        ]
        about = f"{self.judged.split} split, {len(self.judged.seen.truth):,} images. Held against: {self.against}."
        columns, rows = self._table()
        return environment.get_template("axes.html").render(
            title=self.title, about=about, notes=[*self.notes, *self.judged.notes], pictures=shown, columns=columns,
            rows=rows, summary=[_shown(row) for row in self.summary()], credit=self.credit,
        )  # fmt: skip

    def _table(self) -> tuple[list[str], list[list[str]]]:
        keys = [key for key in (AXIS, MASKED, FILTER, PROBE) if key in self.judged.ratings]
        columns = ["concept", "with", "without", *(key.replace("_", " ") for key in keys), "filter chosen"]
        rows = [
            [
                row["concept"].replace("_", " "), str(row["with"]), str(row["without"]),
                *(_word(row[f"{key}_auc"]) for key in keys), row.get(f"{FILTER}_choice", ""),
            ]
            for row in self.rows()
        ]  # fmt: skip
        return columns, rows


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _row(
    measure: str, value: float, about: str, low: float = math.nan, high: float = math.nan, concepts: int | None = None
) -> dict[str, Any]:
    return {
        "measure": measure, "value": _number(value), "low": _number(low), "high": _number(high), "concepts": concepts,
        "about": about,
    }  # fmt: skip


def _word(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _shown(row: dict[str, Any]) -> dict[str, str]:
    interval = "" if row["low"] is None or row["high"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    concepts = "" if row["concepts"] is None else str(row["concepts"])
    return {
        "measure": row["measure"].replace("_", " "), "value": _word(row["value"]), "interval": interval,
        "concepts": concepts, "about": row["about"],
    }  # fmt: skip
