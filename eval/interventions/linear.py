"""A closed form for linear readouts: one more answer adds a few rows of the weight matrix to the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.eval.collect import intervene
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.readouts.linear import Linear
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable


@dataclass
class LinearSteps:
    """What correcting each group adds to the logits of each image.

    With logits = W v + b and a vector v whose entries e change only with their own unit, correcting the groups A of an
    image adds sum_{g in A} sum_{e of g} (v'_e - v_e) W_e, where v' is the vector with everything corrected. So a whole
    curve costs about as much as one answer, instead of one answer per budget.

    Attributes:
        change: (N, E + 1) v' - v, zero where nobody knows the truth; the last column is the padding's.
        rows: (E + 1, C) the columns of W as rows; the last is zero.
        entries: (G, width) the vector entries of each group, E where a group is narrower than the widest.
    """

    change: Tensor
    rows: Tensor
    entries: Tensor

    @staticmethod
    def of(
        model: TransparentClassifier, evidence: Evidence, corrected: Evidence, units: UnitTable, full: Intervention
    ) -> LinearSteps | None:
        """The closed form, or None where it does not hold or does not pay; call it under ``evaluating``.

        Whether entries change only with their own unit is tried out, not assumed: with every other group corrected,
        all vectors must be spliced from v and v' exactly.

        Args:
            model: the classifier.
            evidence: of N images.
            corrected: the same with everything corrected.
            units: the unit table, on the CPU.
            full: the intervention that corrected everything.
        """
        readout = model.readout
        if not isinstance(readout, Linear) or evidence.vector.dim() != 2:
            return None
        owner = model.evidence.unit_of.cpu()
        # Entries of free units change as little as those that are nobody's.
        unit_of = torch.where(owner < len(units), owner, -1)
        entries = _entries(unit_of, units)
        if 4 * entries.shape[1] > len(unit_of):
            return None
        some = (units.group_of[None] + torch.arange(len(evidence))[:, None]) % 2 == 0
        mixed = intervene(model, evidence, Intervention(full.mask & some, full.values))
        owned = some[:, unit_of.clamp_min(0)] & (unit_of >= 0)
        if not torch.equal(mixed.vector, torch.where(owned, corrected.vector, evidence.vector)):
            return None
        change = functional.pad((corrected.vector - evidence.vector).float(), (0, 1))
        weight = readout.linear.weight.detach().float().cpu()
        return LinearSteps(change, torch.cat([weight.T, weight.new_zeros(1, len(weight))]), entries)

    def logits(self, start: Tensor, order: Tensor, budgets: Sequence[int], rows: slice) -> Iterator[Tensor]:
        """Logits (n, C) of some images at each budget; each is the last one changed in place, so use it at once.

        Args:
            start: (n, C) logits before any answer.
            order: (n, G) groups in the order they are asked.
            budgets: numbers of groups asked, ascending.
            rows: which images these are.
        """
        change, logits, asked = self.change[rows], start.clone(), 0
        for budget in budgets:
            if budget > asked:
                entries = self.entries[order[:, asked:budget]].flatten(1)
                weights = change.gather(1, entries)
                logits += functional.embedding_bag(entries, self.rows, mode="sum", per_sample_weights=weights)
                asked = budget
            yield logits


def _entries(unit_of: Tensor, units: UnitTable) -> Tensor:
    """(G, width) the vector entries that belong to the units of each group, padded with E."""
    group_of = torch.where(unit_of >= 0, units.group_of[unit_of.clamp_min(0)], -1)
    each = [(group_of == g).nonzero()[:, 0].tolist() for g in range(len(units.groups))]
    width = max(1, max((len(e) for e in each), default=1))
    return torch.tensor([[*e, *[len(unit_of)] * (width - len(e))] for e in each], dtype=torch.int64)
