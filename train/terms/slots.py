"""Terms on the slots of a pool of prototypes."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.models.evidence.prototype_pool import PrototypePool
from vitrarium.train.terms.base import TERMS, Step, Term

OF = ("assignment", "choice")


@TERMS.register("slot_orthogonality")
class SlotOrthogonality(Term):
    """The slots of a class shall hold different prototypes (ProtoPool: Rymarczyk et al., ECCV 2022).

    See :func:`slot_overlap`. Its weight in the released code is 1.

    Args:
        source: the data.
        of: "assignment" compares what is in the slots in this step, as the paper says; "choice" the numbers q that
            it is drawn from, as released: these may be negative, and opposite slots of a class are rewarded.

    Raises:
        UserError: an unknown word.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"slots"})

    def __init__(self, source: DataSource, of: Literal["assignment", "choice"] = "assignment") -> None:
        super().__init__(source)
        if of not in OF:
            raise UserError(f"the term 'slot_orthogonality' compares no '{of}'", closest(of, OF))
        self.of = of

    def forward(self, step: Step) -> Tensor:
        """The mean over slots; images play no part."""
        layer = cast(PrototypePool, step.model.evidence)
        if self.of == "choice":
            return slot_overlap(layer.choice)
        drawn = step.output.evidence.state.get("slots")
        return slot_overlap((layer.assignment() if drawn is None else drawn[0]).view_as(layer.choice))


def slot_overlap(slots: Tensor) -> Tensor:
    """How much the slots of a class overlap: 0 = no prototype twice in a class, K - 1 = all slots the same.

        (1 / (C K)) sum over classes c and slots i, j of c of cos(q[c, i], q[c, j])  -  1

    Args:
        slots: (C, K, M).
    """
    unit = functional.normalize(slots, dim=2, eps=1e-12)
    # The sum of all pairs is the squared length of the sum: no K x K matrix is needed.
    return unit.sum(1).square().sum() / (slots.shape[0] * slots.shape[1]) - 1
