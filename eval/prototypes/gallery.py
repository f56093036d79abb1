"""The gallery: all living prototypes of a model, class by class, with the patches that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vitrarium.configs.errors import UserError
from vitrarium.data.ink import INK, PAPER, SOFT, letters
from vitrarium.eval.explanations import heat
from vitrarium.eval.explanations.saving import write
from vitrarium.eval.prototypes.tiles import BOX, FIELD, captioned, tile
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.drift import describe_drift, pictures_are_current
from vitrarium.models.prototypes.health import Finding
from vitrarium.models.prototypes.nearest import allowed_classes, prototype_layer

SHARED = "shared by all classes"


@dataclass
class Exhibit:
    """One prototype on show.

    Attributes:
        unit: name of its unit.
        picture: (S, S, 3) uint8, source image with boxes.
        source: class of the source image and its position in the training split, in words; empty without a source.
        drift: what the drift meter says, in words.
        weights: the classes that it speaks for most, with their weights, strongest first.
        findings: of the health report, in words.
    """

    unit: str
    picture: np.ndarray
    source: str
    drift: str
    weights: list[tuple[str, float]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


@dataclass
class Gallery:
    """All living prototypes by class; ``save`` writes a picture (``.png``) or a page (``.html``).

    Attributes:
        title: heading.
        rooms: name of a class (or :data:`SHARED`) and its prototypes.
        credit: credit line of the data set's pictures, or None where nobody knows.
        notes: what a reader must know.
    """

    title: str
    rooms: list[tuple[str, list[Exhibit]]]
    credit: str | None = None
    notes: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write it; the file appears whole.

        Raises:
            UserError: another suffix, or a place that cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".png":
            write(path, heat.png(np.asarray(self.picture())))
        elif path.suffix.lower() == ".html":
            write(path, self.page().encode("utf-8"))
        else:
            raise UserError(f"a gallery cannot be saved as '{path.name}'", "end the name in .png or .html")
        return path

    def picture(self, size: int = 160, columns: int = 10) -> Image.Image:
        """One picture, a row of tiles for each class; classes with more than ``columns`` prototypes take more rows."""
        # As wide as the longest row, but with room for the heading.
        columns = max(min(columns, max((len(exhibits) for _, exhibits in self.rooms), default=1)), 4)
        rows: list[tuple[str, list[Image.Image]]] = []
        for name, exhibits in self.rooms:
            tiles = [captioned(e.picture, _caption(e)) for e in exhibits]
            for start in range(0, len(tiles), columns):
                rows.append((name if start == 0 else "", tiles[start : start + columns]))
        gap, margin, head = 10, 24, 118
        wide = margin * 2 + columns * (size + gap) - gap
        high = head + sum((34 if name else 0) + max(t.height for t in tiles) + gap for name, tiles in rows) + margin
        sheet = Image.new("RGB", (wide, high), PAPER)
        pen = ImageDraw.Draw(sheet)
        pen.text((margin, 20), self.title, fill=INK, font=letters(26, bold=True))
        self._legend(pen, margin, 62)
        top = head
        for name, tiles in rows:
            if name:
                pen.text((margin, top + 4), name, fill=INK, font=letters(17, bold=True))
                top += 34
            for place, drawn in enumerate(tiles):
                sheet.paste(drawn, (margin + place * (size + gap), top))
            top += max(t.height for t in tiles) + gap
        return sheet

    def _legend(self, pen: ImageDraw.ImageDraw, left: float, top: float) -> None:
        small = letters(13)
        for colour, said in ((BOX, "highest 5 % of its similarity"), (FIELD, "all that the patch can have seen")):
            pen.rectangle((left, top, left + 16, top + 16), outline=INK, width=4)
            pen.rectangle((left + 1, top + 1, left + 15, top + 15), outline=colour, width=2)
            pen.text((left + 24, top), said, fill=SOFT, font=small)
            left += 44 + small.getlength(said)
        lines = [self.credit] if self.credit else []
        pen.text((24, top + 24), " · ".join([*lines, *self.notes]), fill=SOFT, font=small)

    def page(self) -> str:
        """The text of an HTML file with its pictures inside."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("vitrarium.eval.prototypes", "."), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        return environment.get_template("gallery.html").render(self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "credit": self.credit,
            "notes": self.notes,
            "rooms": [
                {
                    "name": name,
                    "exhibits": [
                        {
                            "unit": e.unit.replace("_", " "),
                            "picture": heat.data_address(heat.png(e.picture)),
                            "source": e.source,
                            "drift": e.drift,
                            "weights": [f"{label} {weight:+.2f}" for label, weight in e.weights],
                            "findings": e.findings,
                        }
                        for e in exhibits
                    ],
                }
                for name, exhibits in self.rooms
            ],
        }


def _caption(e: Exhibit) -> list[str]:
    return [e.unit.replace("_", " "), e.source or "no source", e.drift.partition(":")[0]]


def build_gallery(
    model: TransparentClassifier,
    title: str = "Prototypes",
    credit: str | None = None,
    findings: Sequence[Finding] = (),
    size: int = 160,
) -> Gallery:
    """The gallery of a model, from what is saved with it: no data are needed.

    Args:
        model: its evidence is made of prototypes.
        title: heading.
        credit: credit line of the pictures.
        findings: of the health report; shown with the prototypes concerned.
        size: of the tiles in pixels.

    Raises:
        UserError: a model without prototypes.
    """
    layer = prototype_layer(model)
    owners, weight = allowed_classes(model), model.readout.effective_weight
    current = pictures_are_current(model)
    said: dict[str, list[str]] = {}
    for finding in findings:
        said.setdefault(finding.unit, []).append(f"{finding.kind}: {finding.message}")
    rooms: dict[str, list[Exhibit]] = {}
    for p in layer.alive_prototypes().nonzero()[:, 0].tolist():
        unit = int(layer.unit_of_prototype[p])
        name = layer.units.names[unit]
        label = int(layer.sources.label[p])
        classes = owners[p].nonzero()[:, 0].tolist()
        room = SHARED if len(classes) != 1 else model.class_names[classes[0]]
        weights: list[tuple[str, float]] = []
        if weight is not None:
            total = weight.detach()[:, layer.unit_of == unit].sum(1)
            order = total.abs().argsort(descending=True, stable=True)[:3].tolist()
            weights = [(model.class_names[c], float(total[c])) for c in order if float(total[c])]
        source = f"{model.class_names[label]}, image {int(layer.sources.index[p])}" if label >= 0 else ""
        rooms.setdefault(room, []).append(
            Exhibit(
                name,
                tile(layer.sources, p, size),
                source,
                describe_drift(model, p, current),
                weights,
                said.get(name, []),
            )
        )
    order = [*model.class_names, SHARED]
    return Gallery(title, sorted(rooms.items(), key=lambda item: order.index(item[0])), credit, _notes(model))


def _notes(model: TransparentClassifier) -> list[str]:
    pruned = int((~model.evidence.alive).sum())
    return [f"{pruned} of {len(model.evidence.alive)} pruned"] if pruned else []
