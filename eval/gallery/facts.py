"""What a gallery says of units beside their pictures: which classes they speak for, and in which room they hang."""

from __future__ import annotations

from torch import Tensor

from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.nearest import allowed_classes, prototype_layer
from vitrarium.models.readouts.base import per_unit

SHARED = "shared by all classes"

SPOKEN_FOR = 3
"""Classes that are named of each unit."""


def unit_weights(model: TransparentClassifier) -> Tensor | None:
    """(C, M) the weight of each unit for each class, the sum over its entries; None where a readout has no weights."""
    weight = model.readout.effective_weight
    if weight is None:
        return None
    return per_unit(weight.detach(), model.evidence.unit_of, len(model.evidence.alive))[0]


def spoken_for(weights: Tensor | None, unit: int, class_names: tuple[str, ...]) -> list[tuple[str, float]]:
    """The classes that a unit speaks for or against most, strongest first; those without weight are left out."""
    if weights is None:
        return []
    of_unit = weights[:, unit]
    order = of_unit.abs().argsort(descending=True, stable=True)[:SPOKEN_FOR].tolist()
    return [(class_names[c], float(of_unit[c])) for c in order if float(of_unit[c])]


def rooms_of(model: TransparentClassifier) -> list[str]:
    """(M,) the room of each unit: the one class of a prototype, the group of a concept, else all of a kind together."""
    if "prototypes" in model.evidence.gives and model.evidence.units.truth == "none":
        return class_rooms(model)
    table, rooms = model.evidence.units, []
    first_free = len(table) - table.free
    for group in table.groups:
        for unit in group.members:
            if len(group.members) > 1:
                rooms.append(group.name.replace("_", " "))
            elif table.free and unit >= first_free:
                rooms.append(f"free {table.kinds}")
            else:
                rooms.append("yes or no" if table.truth == "concept" else table.kinds)
    return rooms


def in_rooms(model: TransparentClassifier, rooms: list[str]) -> list[str]:
    """The rooms that there are, in order: classes as the model counts them, then as units come, shared ones last."""
    found = list(dict.fromkeys(rooms))
    known = {name: place for place, name in enumerate(model.class_names)}
    return sorted(found, key=lambda name: (name == SHARED, known.get(name, len(known))))


def pruned_note(model: TransparentClassifier) -> list[str]:
    """How many units were taken out, where any was."""
    pruned = int((~model.evidence.alive).sum())
    return [f"{pruned} of {len(model.evidence.alive)} pruned"] if pruned else []


def class_rooms(model: TransparentClassifier) -> list[str]:
    """(M,) for prototypes the class that each belongs to, or :data:`SHARED`."""
    layer, owners = prototype_layer(model), allowed_classes(model)
    rooms = []
    for unit in range(len(layer.alive)):
        classes = owners[layer.unit_of_prototype == unit].any(0).nonzero()[:, 0].tolist()
        rooms.append(model.class_names[classes[0]] if len(classes) == 1 else SHARED)
    return rooms
