"""The unit table: what the units of an evidence layer are called, and how they may be read and set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.corrections import Corrections, read_corrections

Truth = Literal["concept", "keypoint", "none"]
Probability = Literal["native", "calibrated", "none"]


@dataclass
class UnitTable:
    """Names and meaning of M units.

    Attributes:
        kind: what a unit is ("concept", "channel", "prototype", "axis").
        groups: the units in groups that are asked for together; members partition 0 .. M-1 in order.
        truth: what a unit can be corrected by: an annotated concept (unit m is concept m), a keypoint, nothing.
        probability: whether units have a probability of being present.
        alive: (M,) bool; a pruned unit is masked, shapes change only when the model folder is written.
        absent: (M,) the activation that stands for "absent"; NaN until calibrated for unbounded units.
        present: (M,) the activation that stands for "present".
        free: how many units at the end have no truth although the others have one (axes that nobody has named).
    """

    kind: str
    groups: tuple[ConceptGroup, ...]
    truth: Truth
    probability: Probability
    alive: Tensor
    absent: Tensor
    present: Tensor
    free: int = 0

    @staticmethod
    def of_concepts(concepts: ConceptSet) -> UnitTable:
        """One unit per concept, with native probabilities; absent = 0, present = 1."""
        size = len(concepts)
        return UnitTable(
            "concept", concepts.groups, "concept", "native",
            torch.ones(size, dtype=torch.bool), torch.zeros(size), torch.ones(size),
        )  # fmt: skip

    @staticmethod
    def anonymous(kind: str, size: int) -> UnitTable:
        """``size`` units that nobody has named: "channel 0" ..., no truth, no probability, no calibrated values."""
        groups = tuple(ConceptGroup(f"{kind}_{m}", (m,), ("yes",), False) for m in range(size))
        nan = torch.full((size,), float("nan"))
        return UnitTable(kind, groups, "none", "none", torch.ones(size, dtype=torch.bool), nan, nan.clone())

    @staticmethod
    def with_free(concepts: ConceptSet, kind: str, size: int) -> UnitTable:
        """One unit per concept, then free ones up to ``size``; no probability, values unknown until calibrated.

        Raises:
            UserError: more concepts than units.
        """
        judged = len(concepts)
        if size < judged:
            raise UserError(
                f"{judged} concepts do not fit on {size} units",
                "choose fewer concepts or a wider layer: one unit for each concept is needed",
            )
        free = tuple(ConceptGroup(f"{kind}_{m}", (m,), ("yes",), False) for m in range(judged, size))
        nan = torch.full((size,), float("nan"))
        return UnitTable(
            kind, (*concepts.groups, *free), "concept", "none", torch.ones(size, dtype=torch.bool), nan, nan.clone(),
            size - judged,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.alive.shape[0]

    @property
    def judged(self) -> UnitTable:
        """The table of the units that have a truth: all but the free ones, which are the last.

        An intervention on these alone is one on the whole table (:meth:`Intervention.widened`).
        """
        if not self.free:
            return self
        count = len(self) - self.free
        groups = tuple(group for group in self.groups if group.members[-1] < count)
        return UnitTable(
            self.kind, groups, self.truth, self.probability, self.alive[:count], self.absent[:count],
            self.present[:count],
        )  # fmt: skip

    @property
    def named(self) -> bool:
        """Whether the units carry names that mean something to people, and not just numbers."""
        return any(group.name != f"{self.kind}_{m}" for m, group in enumerate(self.groups))

    @property
    def kinds(self) -> str:
        """The kind in the plural: "channels", "axes"."""
        return f"{self.kind.removesuffix('is')}es" if self.kind.endswith("is") else f"{self.kind}s"

    @property
    def concepts(self) -> ConceptSet:
        """The units seen as a concept set (for names, groups and costs)."""
        return ConceptSet(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the M units."""
        return self.concepts.names

    @property
    def group_of(self) -> Tensor:
        """(M,) int64: the group of each unit."""
        return torch.from_numpy(self.concepts.group_of)

    def read(self, do: Mapping[str, Any], gates: bool = False) -> Corrections:
        """Corrections by name ("granularity": "yes", "prototype_3": "silent"), understood and checked.

        See :func:`~vitrarium.data.corrections.read_corrections` for what can be said, and for ``gates``.

        Raises:
            UserError: an unknown unit, an impossible value, a unit that was pruned, or units whose "absent" or
                "present" is needed and not known.
        """
        found = read_corrections(self.concepts, do, self.kind, self.alive.tolist(), gates)
        values = found.values
        self.require_values([m for m, v in values.items() if v != 1], "absent")
        self.require_values([m for m, v in values.items() if v != 0], "present")
        return found

    def require_values(self, units: list[int] | None = None, *ends: str) -> None:
        """Refuse to set units for which nobody knows which activation means "absent" or "present".

        Args:
            units: their positions; None = all.
            ends: which of the two is needed; none given = both.
        """
        chosen = torch.arange(len(self)) if units is None else torch.tensor(units, dtype=torch.int64)
        ends = ends or ("absent", "present")
        missing = torch.stack([torch.isnan(getattr(self, end)[chosen.to(self.absent.device)]) for end in ends])
        unknown = chosen[missing.any(0).cpu()]
        if len(unknown):
            raise UserError(
                f"{self.kind} '{self.names[int(unknown[0])]}' has no activation that stands for {' and '.join(ends)}",
                "units need concepts as truth, or the event 'calibrate' in the recipe; "
                "a plain number can be set as score:NUMBER",
            )

    def require(self, **wanted: str) -> None:
        """Refuse units that lack a truth or a probability which a policy or metric needs.

        Example:
            >>> UnitTable.anonymous("channel", 2).require(truth="concept")
            Traceback (most recent call last):
            ...
            vitrarium.configs.errors.UserError: channel units have no concept as truth: nobody can say ...
        """
        for what, value in wanted.items():
            if what == "truth" and self.truth != value:
                raise UserError(
                    f"{self.kind} units have no {value} as truth: nobody can say what they should have been",
                    "choose a model whose units are annotated concepts, or change units by hand: "
                    f"--do {self.names[0]}=silent",
                )
            if what == "probability" and self.probability == "none":
                raise UserError(f"{self.kind} units have no probability", "choose another policy, such as 'random'")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for ``config.json``; tensors live in ``model.safetensors``."""
        return {
            "kind": self.kind,
            "truth": self.truth,
            "probability": self.probability,
            "free": self.free,
            "names": list(self.names),
            **ConceptSet(self.groups).to_dict(),
        }
