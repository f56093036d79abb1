"""What an explanation holds: one reason per unit or categorical group, and everything that adds up to the logit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.data.corrections import Box
from vitrarium.eval.explanations.patches import Match, Source

if TYPE_CHECKING:
    from vitrarium.eval.explanations.tree import Walk


@dataclass
class Share:
    """How much something speaks for two classes.

    Attributes:
        label: part of the logit of the predicted class.
        rival: part of the logit of the class it is compared with.
    """

    label: float
    rival: float

    @property
    def difference(self) -> float:
        """Above 0 it speaks for the predicted class, below 0 for the other."""
        return self.label - self.rival

    def to_dict(self) -> dict[str, float]:
        """Plain containers; the difference is written along for readers of the JSON."""
        return {"label": self.label, "rival": self.rival, "difference": self.difference}


def total(shares: Iterable[Share]) -> Share:
    """The sum of shares, class by class."""
    pairs = [(s.label, s.rival) for s in shares]
    return Share(math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs))


@dataclass
class Unit:
    """One unit of the evidence.

    Attributes:
        name: as in the unit table ("granule_colour=pink").
        activation: what the readout was given, after corrections.
        probability: of being present, as the model saw it before corrections; None where units have none.
        share: contribution to the two classes.
        corrected: whether a person set it.
    """

    name: str
    activation: float
    probability: float | None
    share: Share
    corrected: bool = False


@dataclass
class Reason:
    """One line of an explanation: a unit, or a categorical group shown with its chosen value.

    Attributes:
        name: of the unit or group ("granule_colour").
        value: its state in one word ("pink", "yes") or, where there is no probability, the activation as a number.
        probability: of that state as the model saw it, None where units have none; of the set state if corrected.
        share: contribution to the two classes; of a group the sum over its members.
        corrected: whether a person set it.
        map: (h, w) where the unit (of a group: its chosen member) responds, at the model's own resolution; or None.
        bans: boxes where a person forbade it to look.
        match: where its prototype was found in the image; None where units are no prototypes, and of lines not shown.
        source: the training patch that this prototype was taken from; None if it was taken from none.
    """

    name: str
    value: str
    probability: float | None
    share: Share
    corrected: bool = False
    map: np.ndarray | None = None
    bans: tuple[Box, ...] = ()
    match: Match | None = None
    source: Source | None = None

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def changed(self) -> bool:
        """Whether a person did anything to it."""
        return self.corrected or bool(self.bans)


@dataclass
class Entry:
    """One line of the ledger that leads from the constants of two classes to their logits.

    Attributes:
        what: in words.
        share: what this line adds.
        running: the sum up to and including this line.
        reason: the reason it stands for, None for sums and constants.
    """

    what: str
    share: Share
    running: Share
    reason: Reason | None = None


@dataclass
class Explanation:
    """Why a classifier chose this class and not that one, for one image.

    Attributes:
        label: the predicted class.
        rival: the class it is compared with: the runner-up, or the one that was asked for.
        asked: True when ``rival`` was asked for.
        probabilities: by class name, most probable first.
        logit: the two logits.
        reasons: every line, largest absolute difference first.
        units: every unit of the evidence, in the order of the unit table.
        remainder: what is no unit's (a side channel, features).
        bias: the constants of the two classes. For a readout whose account is of first order this also holds what the
            account leaves.
        unexplained: logit - (units + remainder + bias); zero up to rounding when ``additive``.
        additive: whether contributions, remainder and bias add up to the logit exactly.
        named: whether the units carry names that mean something to people.
        kind: what a unit is ("concept", "channel", "prototype").
        has_remainder: whether the readout sees anything that is no unit's.
        top: how many lines and maps pictures show at most.
        before: class and its probability before corrections, or None if nothing was corrected.
        image: (H, W, 3) uint8, as the model saw it.
        abstained: its confidence and the threshold below which the model does not answer; None where it answers.
        bans: boxes where a person forbade all units to look.
        walk: the path through the tree, where the readout is one.
    """

    label: str
    rival: str
    asked: bool
    probabilities: dict[str, float]
    logit: Share
    reasons: list[Reason]
    units: list[Unit]
    remainder: Share
    bias: Share
    unexplained: Share
    additive: bool
    named: bool
    kind: str
    has_remainder: bool
    top: int
    image: np.ndarray
    before: tuple[str, float] | None = None
    abstained: tuple[float, float] | None = None
    bans: tuple[Box, ...] = ()
    walk: Walk | None = None

    @property
    def shown(self) -> list[Reason]:
        """The ``top`` reasons, and those that a person changed."""
        return [r for place, r in enumerate(self.reasons) if place < self.top or r.changed]

    @property
    def others(self) -> list[Reason]:
        """The reasons that are not shown one by one."""
        return [r for place, r in enumerate(self.reasons) if place >= self.top and not r.changed]

    def ledger(self) -> list[Entry]:
        """From the constants to the logits, line by line.

        The constants of the classes first, then the reasons shown, the others together, what is no unit's, and for an
        account that is not additive what it leaves open. The last running sums are the two logits.
        """
        lines: list[tuple[str, Share, Reason | None]] = [("starting point (bias)", self.bias, None)]
        lines += [(r.title, r.share, r) for r in self.shown]
        if self.others:
            lines.append((f"{len(self.others)} further {self.kind}s", total(r.share for r in self.others), None))
        if self.has_remainder:
            lines.append((f"not in any {self.kind}", self.remainder, None))
        if not self.additive and abs(self.unexplained.difference) > 1e-4 * (1 + abs(self.logit.difference)):
            lines.append(("left open by this account", self.unexplained, None))
        entries, running = [], Share(0.0, 0.0)
        for what, share, reason in lines:
            running = total((running, share))
            entries.append(Entry(what, share, running, reason))
        return entries

    @property
    def units_take_part(self) -> bool:
        """False where units stand beside the decision (concepts that the readout never sees)."""
        return any(u.share.label or u.share.rival for u in self.units)

    @property
    def looks(self) -> list[Entry]:
        """The lines that say what looked like what."""
        return [x for x in self.ledger() if x.reason is not None and x.reason.match is not None]

    @property
    def corrected(self) -> list[Reason]:
        """The reasons that a person set."""
        return [r for r in self.reasons if r.corrected]

    def sentence(self) -> str:
        """The explanation as one sentence in plain language."""
        from vitrarium.eval.explanations.words import sentence

        return sentence(self)

    def save(self, path: str | Path) -> Path:
        """Write a picture (``.png``), a self-contained page (``.html``) or the numbers (``.json``).

        The file appears whole or not at all. Folders on the way are made.

        Returns:
            The path that was written.

        Raises:
            UserError: another suffix, or a place that cannot be written.
        """
        from vitrarium.eval.explanations.saving import save

        return save(self, Path(path))

    def card(self, top: int = 5) -> bytes:
        """A small picture to set several models side by side, as the bytes of a PNG file.

        Args:
            top: how many reasons it shows.
        """
        from vitrarium.eval.explanations.card import card

        return card(self, top)

    def _repr_png_(self) -> bytes:
        """What a notebook shows of it: its card."""
        from vitrarium.eval.explanations.heat import smaller

        return smaller(self.card(), 800)

    @staticmethod
    def load(path: str | Path) -> Explanation:
        """Read what :meth:`save` wrote as ``.json``."""
        from vitrarium.eval.explanations.saving import load

        return load(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON; the image as a PNG data address."""
        from vitrarium.eval.explanations.saving import to_dict

        return to_dict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Explanation:
        """Inverse of :meth:`to_dict`."""
        from vitrarium.eval.explanations.saving import from_dict

        return from_dict(data)


def pick_rival(names: tuple[str, ...], order: list[int], against: str | None) -> int:
    """Position of the class to compare with: the runner-up, or the one called ``against``.

    Args:
        names: of the classes.
        order: class positions, most probable first.
        against: name of a class other than the predicted one, or None.
    """
    from vitrarium.configs.errors import closest

    if against is None:
        return order[1]
    if against not in names:
        raise UserError(f"unknown class '{against}'", closest(against, names))
    rival = names.index(against)
    if rival == order[0]:
        raise UserError(
            f"'{against}' is the predicted class itself", "compare it with another class, or leave 'against' out"
        )
    return rival
