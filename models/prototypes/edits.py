"""Changes that a person makes to the units of a trained model: each is a small recorded operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry
from vitrarium.data.batch import Batch
from vitrarium.data.source import Split
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.naming import refuse_name
from vitrarium.models.prototypes.layer import PrototypeLayer
from vitrarium.models.prototypes.nearest import allowed_classes
from vitrarium.models.readouts.refit import RefitProblem

EDITS = Registry("edit", [__name__, "vitrarium.models.prototypes.re_home"])


@dataclass
class Bench:
    """What an edit works on.

    Attributes:
        model: the classifier; changed in place.
        train: gives clean batches of the training split, for edits that look for patches; None where there are no data.
        split: the training split itself; likewise.
    """

    model: TransparentClassifier
    train: Callable[[], Iterable[Batch]] | None = None
    split: Split | None = None

    def unit(self, name: str) -> int:
        """Position of a living unit.

        Raises:
            UserError: an unknown name, a unit that was removed before.
        """
        # Only these layers are known to leave out what is not alive.
        self.layer("to edit units")
        return self.find(name)

    def find(self, name: str) -> int:
        """As :meth:`unit`, for edits that work on units of any kind."""
        names = self.model.evidence.units.names
        if name not in names:
            raise UserError(f"unknown {self.model.evidence.units.kind} '{name}'", closest(name, names))
        unit = names.index(name)
        if not bool(self.model.evidence.alive[unit]):
            raise UserError(f"'{name}' was removed before", "name another unit, or undo the edit if it was one")
        return unit

    def label(self, name: str) -> int:
        """Position of a class."""
        if name not in self.model.class_names:
            raise UserError(f"unknown class '{name}'", closest(name, self.model.class_names))
        return self.model.class_names.index(name)

    def entries(self, unit: int) -> Tensor:
        """(n,) int64: the entries of the readout's vector that belong to a unit."""
        return (self.model.evidence.unit_of == unit).nonzero()[:, 0]

    def classes_of(self, unit: int) -> list[int]:
        """The classes that a unit belongs to; empty where it is shared by all."""
        layer = self.layer("an edit of owned units")
        owners = allowed_classes(self.model)[layer.unit_of_prototype == unit].any(0)
        return [] if bool(owners.all()) else owners.nonzero()[:, 0].tolist()

    def layer(self, what: str) -> PrototypeLayer:
        """The evidence layer, if its units are looked for in patches."""
        layer = self.model.evidence
        if not isinstance(layer, PrototypeLayer):
            raise UserError(f"{what} needs units that are prototypes, not {layer.units.kind}s", "choose another model")
        return layer

    def problem(self, what: str) -> RefitProblem:
        """Weights and bounds of a linear readout; the weights are to be changed in place."""
        problem = self.model.readout.refit_problem()
        if problem is None:
            raise UserError(
                f"{what} needs a linear readout, which {type(self.model.readout).__name__} is not",
                "remove one of the units instead",
            )
        return problem

    def bounds(self, what: str) -> tuple[Tensor, Tensor]:
        """(C, E) the bounds that the weights of the readout keep to, to be changed in place."""
        lower, upper = (getattr(self.model.readout, name, None) for name in ("lower", "upper"))
        if lower is None or upper is None:
            raise _no_weights(what, self.model)
        return lower, upper


def _no_weights(what: str, model: TransparentClassifier) -> UserError:
    return UserError(
        f"{what} needs a linear readout that keeps bounds on its weights, which {type(model.readout).__name__} is not",
        "choose a preset with the readout 'class_connected', or remove the unit",
    )


class Edit(ABC):
    """One change; built as ``EDITS.build({name, unit, **options})``.

    Attributes:
        name: registered name.
        options: what it was built with, plain containers, for the journal.
        needs_data: whether it looks at training images.
        changes_answers: whether the model may answer otherwise after it.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    changes_answers: ClassVar[bool] = True
    options: dict[str, Any]

    @abstractmethod
    def apply(self, bench: Bench) -> None:
        """Do it, or refuse it before anything is changed."""

    def words(self) -> str:
        """The edit as people say it: "remove prototype_3"."""
        rest = [f"{key}={value}" for key, value in self.options.items() if key != "unit" and value is not None]
        return " ".join([self.name.replace("_", "-"), str(self.options["unit"]), *rest])


@EDITS.register("remove")
class Remove(Edit):
    """Take a unit out: it is masked, and its weights count no more.

    Args:
        unit: its name.

    Raises:
        UserError: unknown, removed twice, or the last living unit of its class.
    """

    name = "remove"

    def __init__(self, unit: str) -> None:
        self.options = {"unit": unit}

    @torch.no_grad()
    def apply(self, bench: Bench) -> None:
        """Mask it."""
        unit = bench.unit(self.options["unit"])
        refuse_emptying(bench, unit)
        _silence(bench, unit)


@EDITS.register("merge")
class Merge(Edit):
    """Let one unit stand for two: ``into`` takes over the weights of ``unit``, as far as its bounds allow.

    Args:
        unit: the one that goes.
        into: the one that stays.
    """

    name = "merge"

    def __init__(self, unit: str, into: str) -> None:
        self.options = {"unit": unit, "into": into}

    @torch.no_grad()
    def apply(self, bench: Bench) -> None:
        """Add the weights entry by entry, then mask the unit."""
        unit, into = bench.unit(self.options["unit"]), bench.unit(self.options["into"])
        problem = bench.problem("to merge units")
        if unit == into:
            raise UserError(f"'{self.options['unit']}' cannot be merged into itself", "name two units")
        refuse_emptying(bench, unit)
        gone, kept = bench.entries(unit), bench.entries(into)
        if bool((problem.lower[:, gone] > 0).any()):
            raise UserError(f"'{self.options['unit']}' is required", "merge the other one into it, or undo that edit")
        if len(gone) != len(kept):
            raise UserError(
                f"'{self.options['unit']}' has {len(gone)} entries in the readout and '{self.options['into']}' has "
                f"{len(kept)}",
                "remove one of them instead",
            )
        both = problem.weight[:, kept] + problem.weight[:, gone]
        problem.weight[:, kept] = torch.minimum(torch.maximum(both, problem.lower[:, kept]), problem.upper[:, kept])
        _silence(bench, unit)


def _silence(bench: Bench, unit: int) -> None:
    """Mask a unit, and forget the weights that nothing multiplies now."""
    bench.model.evidence.alive[unit] = False
    bench.model.readout.drop_entries(bench.model.evidence.unit_of == unit)


class _Bounded(Edit):
    """An edit that bounds weights of the readout, for one class or several."""

    def _entries(self, bench: Bench, label: str | None, own: bool) -> tuple[Tensor, list[int]]:
        unit = bench.unit(self.options["unit"])
        classes = list(range(len(bench.model.class_names)))
        if label is not None:
            classes = [bench.label(label)]
        elif own:
            classes = bench.classes_of(unit)
            if not classes:
                raise UserError(f"'{self.options['unit']}' belongs to no class", "say for which: label=NAME")
        return bench.entries(unit), classes


@EDITS.register("forbid")
class Forbid(_Bounded):
    """A unit may not speak for or against a class: its weight is 0 and stays 0 when the readout is fitted again.

    Args:
        unit: its name.
        label: name of the class; None = all classes. Its activation is still shown.
    """

    name = "forbid"

    def __init__(self, unit: str, label: str | None = None) -> None:
        self.options = {"unit": unit, "label": label}

    @torch.no_grad()
    def apply(self, bench: Bench) -> None:
        """Bounds and weights become 0."""
        entries, classes = self._entries(bench, self.options["label"], own=False)
        weight = bench.problem("to forbid a unit").weight
        for matrix in (*bench.bounds("to forbid a unit"), weight):
            for label in classes:
                matrix[label, entries] = 0.0


@EDITS.register("require")
class Require(_Bounded):
    """A unit must speak for a class: its weight is at least ``least``, also when the readout is fitted again.

    Args:
        unit: its name.
        label: name of the class; None = the class that owns it.
        least: smallest weight, above 0.
    """

    name = "require"

    def __init__(self, unit: str, label: str | None = None, least: float = 1.0) -> None:
        if not least > 0:
            raise UserError(f"least={least}", "give a weight above 0; to silence a unit, forbid it")
        self.options = {"unit": unit, "label": label, "least": least}

    @torch.no_grad()
    def apply(self, bench: Bench) -> None:
        """Raise bound and weight."""
        entries, classes = self._entries(bench, self.options["label"], own=True)
        weight, (lower, upper) = bench.problem("to require a unit").weight, bench.bounds("to require a unit")
        least = float(self.options["least"])
        if bool((upper[classes][:, entries] < least).any()):
            raise UserError(f"'{self.options['unit']}' is forbidden there", "undo that edit first")
        for label in classes:
            lower[label, entries] = least
            weight[label, entries] = weight[label, entries].clamp_min(least)


@EDITS.register("name")
class Name(Edit):
    """Give a unit that nobody has named a name, on any evidence; answers stay as they are.

    Args:
        unit: what it is called now.
        to: what it is to be called.

    Raises:
        UserError: see :func:`~vitrarium.models.naming.refuse_name`.
    """

    name = "name"
    changes_answers = False

    def __init__(self, unit: str, to: str) -> None:
        self.options = {"unit": unit, "to": to}

    def apply(self, bench: Bench) -> None:
        """It has this name from here on: in corrections, explanations, rules, galleries, exported files."""
        layer, to = bench.model.evidence, self.options["to"]
        unit, table = bench.find(self.options["unit"]), layer.units
        refuse_name(table, unit, to)
        layer.call_units([to if m == unit else name for m, name in enumerate(table.names)])


def refuse_emptying(bench: Bench, unit: int) -> None:
    """Refuse to take the last living unit of a class, or of the whole model."""
    alive = bench.model.evidence.alive.clone()
    alive[unit] = False
    name = bench.model.evidence.units.names[unit]
    if not bool(alive.any()):
        raise UserError(f"'{name}' is the last living unit", "a model needs at least one")
    layer = bench.model.evidence
    if not isinstance(layer, PrototypeLayer):
        return
    for label in bench.classes_of(unit):
        left = alive[layer.unit_of_prototype] & allowed_classes(bench.model)[:, label]
        if not bool(left.any()):
            raise UserError(
                f"'{name}' is the last prototype of class '{bench.model.class_names[label]}'",
                "a class without prototypes can only be named by what speaks against the others; keep one",
            )


def build_edit(spec: Mapping[str, Any]) -> Edit:
    """An edit from ``{name, unit, **options}``."""
    return EDITS.build(spec)  # type: ignore[no-any-return]
