"""The gallery of prototypes: all that live, class by class, with the patches that they come from."""

from __future__ import annotations

from collections.abc import Sequence

from vitrarium.eval.gallery.drawing import BOX, FIELD
from vitrarium.eval.gallery.exhibits import Exhibit, Gallery, Tile
from vitrarium.eval.gallery.facts import SHARED, class_rooms, in_rooms, pruned_note, spoken_for, unit_weights
from vitrarium.eval.prototypes.tiles import source_in_words, tile
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.drift import describe_drift, pictures_are_current
from vitrarium.models.prototypes.health import Finding
from vitrarium.models.prototypes.nearest import prototype_layer

__all__ = ["SHARED", "Exhibit", "Gallery", "build_gallery"]


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
    names, weights, rooms = layer.units.names, unit_weights(model), class_rooms(model)
    current = pictures_are_current(model)
    said: dict[str, list[str]] = {}
    for finding in findings:
        said.setdefault(finding.unit, []).append(f"{finding.kind}: {finding.message}")
    hung: dict[str, list[Exhibit]] = {}
    for p in layer.alive_prototypes().nonzero()[:, 0].tolist():
        unit = int(layer.unit_of_prototype[p])
        exhibit = Exhibit(
            names[unit],
            [Tile(tile(layer.sources, p, size), "source")],
            source_in_words(model, p),
            describe_drift(model, p, current),
            weights=spoken_for(weights, unit, model.class_names),
            findings=said.get(names[unit], []),
        )
        hung.setdefault(rooms[unit], []).append(exhibit)
    legend = [(BOX, "highest 5 % of its similarity"), (FIELD, "all that the patch can have seen")]
    ordered = [(room, hung[room]) for room in in_rooms(model, list(hung))]
    return Gallery(title, ordered, credit, pruned_note(model), legend)
