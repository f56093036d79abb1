"""The health report: which units of a model deserve a look, why, and what could be done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from shlex import quote

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.drift import pictures_are_current
from vitrarium.models.prototypes.edits import Bench, refuse_emptying
from vitrarium.models.prototypes.measures import Measures, measure_units
from vitrarium.models.prototypes.nearest import Nearest, allowed_classes, nearest_patches, prototype_layer

KINDS = {
    "dead": "says nothing: its activation hardly changes, or no class listens to it",
    "duplicate": "says the same as another unit",
    "background": "looks beside the object",
    "class leak": "its nearest patches come from other classes than its own",
    "border": "looks at the border of the image",
    "noise": "changes under noise that a person does not see",
    "stale": "its picture is not what it looks for now",
}
"""Kinds of findings, in words."""


@dataclass(frozen=True)
class Limits:
    """Where a finding begins.

    Attributes:
        spread: a unit whose activation changes by less than this share of the median unit's is dead.
        weight: a unit whose largest weight is less than this share of the largest of all is dead.
        correlation: units of the same classes whose activations correlate above this are duplicates.
        inside: largest share of best images in which a unit that looks beside the object touches it.
        own: a unit with a smaller share of its own classes among its nearest images leaks.
        border: smallest share of best images for "border", as far as less than half of it were expected by chance.
        steadiness: smallest correlation of clean and noisy activations.
        drift: largest distance |p - x| / |p| between a prototype and the patch in its picture.
    """

    spread: float = 0.02
    weight: float = 1e-3
    correlation: float = 0.98
    inside: float = 0.2
    own: float = 0.5
    border: float = 0.9
    steadiness: float = 0.7
    drift: float = 0.05


@dataclass
class Finding:
    """Something about one unit that deserves a look.

    Attributes:
        unit: name of the unit.
        kind: one of :data:`KINDS`.
        severity: "error" where an explanation would mislead (a leak, a stale picture), else "warning".
        message: what was seen, with numbers.
        edit: what could be done, in the words of ``vitrarium edit`` ("remove prototype_3"); empty where no edit helps.
        prototypes: positions of the prototypes concerned, for pictures.
    """

    unit: str
    kind: str
    severity: str
    message: str
    edit: str
    prototypes: list[int] = field(default_factory=list)


@dataclass
class Health:
    """The health of a model's units.

    Attributes:
        findings: errors first, then in the order of the units.
        measures: what was measured of each unit.
        nearest: (P, k) nearest training patches, or None if no unit belongs to a class.
        purity: (P,) share of own classes among the nearest images; NaN for shared prototypes.
        notes: what could not be measured, and why.
        living: number of living units.
    """

    findings: list[Finding]
    measures: Measures
    nearest: Nearest | None
    purity: Tensor
    notes: list[str]
    living: int

    def counts(self) -> dict[str, int]:
        """How many findings of each kind."""
        return {kind: sum(f.kind == kind for f in self.findings) for kind in KINDS}


def check_health(
    model: TransparentClassifier,
    train: Iterable[Batch],
    val: Iterable[Batch],
    limits: Limits | None = None,
    neighbours: int = 10,
    seed: int = 0,
) -> Health:
    """Look at every living unit: one pass over the training images, one clean and one noisy over the validation images.

    Args:
        model: its units are prototypes.
        train: clean training images, for the nearest patches.
        val: clean validation images.
        limits: where a finding begins; None = the defaults.
        neighbours: nearest images that are looked at.
        seed: of the noise.

    Raises:
        UserError: a model without prototypes, or without a living one.
    """
    limits = limits or Limits()
    layer = prototype_layer(model)
    if not bool(layer.alive.any()):
        raise UserError(
            "all prototypes are pruned", "undo some edits: vitrarium edit RUN undo; or prune less and train"
        )
    measures = measure_units(model, val, neighbours, seed=seed)
    owners, notes = allowed_classes(model), []
    owned = ~owners.all(1)
    nearest, purity = None, torch.full((len(owners),), float("nan"))
    if bool(owned.any()):
        nearest = nearest_patches(model, train, neighbours, patches=False)
        purity = nearest.share_of(owners).masked_fill(~owned, float("nan"))
    else:
        notes.append("class leaks were not looked for: the prototypes belong to all classes")
    if bool(measures.area.isnan()):
        notes.append("background was not looked for: the data say nowhere where the object is")
    if bool(measures.border_expected.isnan()):
        notes.append("the border was not looked at: the map has too few places")
    found = [f for look in _LOOKS for f in look(model, measures, purity, limits)]
    order = {name: place for place, name in enumerate(layer.units.names)}
    found.sort(key=lambda f: (f.severity != "error", order[f.unit]))
    return Health(found, measures, nearest, purity, notes, int(layer.alive.sum()))


def _living(model: TransparentClassifier) -> list[int]:
    return [int(m) for m in model.evidence.alive.nonzero()[:, 0]]


def _of_unit(model: TransparentClassifier, unit: int) -> list[int]:
    return [int(p) for p in (prototype_layer(model).unit_of_prototype == unit).nonzero()[:, 0]]


def _finding(
    model: TransparentClassifier, unit: int, kind: str, severity: str, message: str, edit: str = "", *others: int
) -> Finding:
    shown = [p for m in (unit, *others) for p in _of_unit(model, m)]
    return Finding(model.evidence.units.names[unit], kind, severity, message, edit, shown)


def _dead(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    living = _living(model)
    usual = float(measures.spread[living].median())
    weight = model.readout.effective_weight
    heard = None
    if weight is not None:
        most = weight.detach().abs().amax(0)
        heard = {m: float(most[model.evidence.unit_of == m].sum()) / max(float(most.max()), 1e-30) for m in living}
    found = []
    for m in living:
        spread = float(measures.spread[m])
        if spread < limits.spread * usual or spread == 0:
            said = f"its activation changes by {spread:.2g} over {measures.images} images (others by {usual:.2g})"
        elif heard is not None and heard[m] < limits.weight:
            said = "no class gives it weight"
        else:
            continue
        found.append(_finding(model, m, "dead", "warning", said, _out(model, m)))
    return found


def _duplicates(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    layer, names, living = prototype_layer(model), model.evidence.units.names, _living(model)
    sources = layer.sources
    patch = {
        m: tuple((int(sources.digest[p]), *sources.place[p].tolist()) for p in _of_unit(model, m))
        for m in living
        if bool(sources.known[_of_unit(model, m)].all())
    }
    owners = allowed_classes(model)
    speaks = {m: tuple(owners[_of_unit(model, m)].any(0).tolist()) for m in living}
    found, gone = [], set()
    for place, m in enumerate(living):
        for other in living[place + 1 :]:
            if other in gone or m in gone or speaks[m] != speaks[other]:
                continue
            alike = float(measures.correlation[m, other])
            if patch.get(m) is not None and patch.get(m) == patch.get(other):
                said = f"comes from the same patch as {names[m]}"
            elif alike > limits.correlation:
                said = f"correlates {alike:.3f} with {names[m]}"
            else:
                continue
            gone.add(other)
            # Where there are no weights to take over, one of the two goes.
            linear = model.readout.refit_problem() is not None
            edit = f"merge {quote(names[other])} into={quote(names[m])}" if linear else f"remove {quote(names[other])}"
            found.append(_finding(model, other, "duplicate", "warning", said, edit, m))
    return found


def _out(model: TransparentClassifier, unit: int) -> str:
    """The edit that takes a unit out; the last one of a class has to stay, and can only look for something else."""
    try:
        refuse_emptying(Bench(model), unit)
    except UserError:
        return "" if prototype_layer(model).vectors is None else _elsewhere(model, unit)
    return f"remove {quote(model.evidence.units.names[unit])}"


def _elsewhere(model: TransparentClassifier, unit: int) -> str:
    """The edit that takes a prototype from another image; where units are channels it can only go."""
    channels = prototype_layer(model).vectors is None
    return _out(model, unit) if channels else f"re-home {quote(model.evidence.units.names[unit])} rank=2"


def _background(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    # Where the object fills the image there is no background to look at.
    limit = min(limits.inside, 0.5 * float(measures.area))
    return [
        _finding(
            model, m, "background", "warning",
            f"touches the object in {float(measures.inside[m]):.0%} of its best images "
            f"({float(measures.area):.0%} of all places do)",
            _elsewhere(model, m),
        )
        for m in _living(model)
        if float(measures.inside[m]) <= limit
    ]  # fmt: skip


def _leaks(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    found = []
    for m in _living(model):
        shares = [float(purity[p]) for p in _of_unit(model, m)]
        if min(shares) < limits.own:
            said = f"only {min(shares):.0%} of its nearest images are of a class that owns it"
            found.append(_finding(model, m, "class leak", "error", said, _out(model, m)))
    return found


def _border(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    expected = float(measures.border_expected)
    if not expected < limits.border / 2 + 0.05:
        return []
    return [
        _finding(
            model, m, "border", "warning",
            f"its best place lies on the border in {float(measures.border[m]):.0%} of its best images "
            f"({expected:.0%} of the places do)",
            _elsewhere(model, m),
        )
        for m in _living(model)
        if float(measures.border[m]) >= limits.border
    ]  # fmt: skip


def _noise(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    return [
        _finding(
            model, m, "noise", "warning",
            f"its activations on clean and noisy images correlate {float(measures.steadiness[m]):.2f}",
            _out(model, m),
        )
        for m in _living(model)
        if float(measures.steadiness[m]) < limits.steadiness
    ]  # fmt: skip


def _stale(model: TransparentClassifier, measures: Measures, purity: Tensor, limits: Limits) -> list[Finding]:
    layer, found = prototype_layer(model), []
    current = pictures_are_current(model)
    for m in _living(model):
        mine = [p for p in _of_unit(model, m) if bool(layer.sources.known[p])]
        if not mine:
            continue
        drift = max(float(layer.sources.drift[p]) for p in mine)
        if not current:
            said = "weights have changed since its picture was taken"
        elif drift > limits.drift:
            said = f"it has moved {drift:.0%} of its length away from the patch in its picture"
        else:
            continue
        found.append(_finding(model, m, "stale", "error", said))
    return found


_LOOKS: Sequence[Callable[[TransparentClassifier, Measures, Tensor, Limits], list[Finding]]] = (
    _dead, _duplicates, _background, _leaks, _border, _noise, _stale,
)  # fmt: skip
