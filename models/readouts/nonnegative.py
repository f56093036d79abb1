"""The sparse readout of gates: prototypes can only speak for a class, never against one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.models.readouts.base import READOUTS, Contributions, Readout, per_unit
from vitrarium.models.readouts.refit import RefitProblem
from vitrarium.models.types import Evidence

SCALES = ("log1p", "plain")


@READOUTS.register("nonnegative")
class NonNegative(Readout):
    """logit = log(1 + o^power) with o = relu(W) v, without a bias (PIP-Net: Nauta et al., CVPR 2023).

    The logarithm keeps the scores o, which have no upper end, from making the softmax certain at once; together with
    the event ``shrink`` it makes for few weights above 0. The scale "plain" gives o itself as the logit, as the
    released code does once it no longer trains; the order of the classes is the same.

    The logarithm is shared out among the units in proportion to what they add to the score:

        contribution of m to c = logit_c * sum over entries e of m (relu(W)[c, e] v[e]) / o_c,    0 where o_c = 0

    which sums to the logit exactly, and for "plain" is the usual product of weight and activation.

    An image in which no prototype is found has score 0 for every class: its probabilities are all 1 / C, the lowest
    confidence there is, so any threshold above 1 / C abstains from it (:mod:`vitrarium.models.abstention`). That takes
    the place of the paper's own rules, which abstain where all scores are 0 and find strangers by a threshold per class
    (fitted to the test set in the released code); the one threshold of the house is chosen on validation images.

    Args:
        layer: the evidence layer it reads; its units are gates in [0, 1].
        classes: C.
        power: exponent of the score under the logarithm, at least 1.
        scale: "log1p" or "plain".

    Raises:
        UserError: an unknown scale, a power below 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vector", "gates"})

    def __init__(
        self,
        layer: EvidenceLayer,
        classes: int,
        power: float = 2.0,
        scale: Literal["log1p", "plain"] = "log1p",
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise UserError(f"readout 'nonnegative' has no scale '{scale}'", closest(scale, SCALES))
        if not 1 <= power < float("inf"):
            # Below 1 the logarithm is infinitely steep where a class has no evidence yet.
            raise UserError(f"power={power}", "give a number from 1, such as 2")
        self.power, self.scale = power, scale
        self.weight = nn.Parameter(torch.empty(classes, layer.vector_size).normal_(1.0, 0.1))
        self.read(layer)

    @property
    def effective_weight(self) -> Tensor:
        """(C, E) relu(W), what the scores are made with."""
        return self.weight.relu()

    def score(self, vector: Tensor, evidence: Evidence) -> Tensor:
        """Vector (..., E) to logits (..., C), in single precision at least: o^power leaves half precision soon."""
        vector, weight = at_least_float32(vector, self.effective_weight)
        with torch.autocast(vector.device.type, enabled=False):
            return self.rescale(nn.functional.linear(vector, weight))

    def rescale(self, scores: Tensor) -> Tensor:
        """Scores o to logits; a score below 0, which only a person who sets a unit below 0 can make, counts as 0."""
        return scores if self.scale == "plain" else torch.log1p(scores.clamp_min(0) ** self.power)

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """The logit shared out among the units; exact, except for sampled evidence."""
        sampled = evidence.vector.dim() == 3
        vector = evidence.vector.mean(0) if sampled else evidence.vector
        entries = self.effective_weight[classes] * vector
        score = entries.sum(1)
        logit = self.rescale(score)
        factor = torch.where(logit == 0, 0.0, logit / torch.where(logit == 0, 1.0, score))
        units, remainder = per_unit(entries * factor[:, None], self.unit_of, self.unit_count)
        return Contributions(units, remainder, torch.zeros_like(remainder), additive=not sampled)

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """W <- max(W - amount, 0); a weight at 0 has no gradient and stays there."""
        self.weight.sub_(amount).clamp_min_(0)

    @torch.no_grad()
    def drop_entries(self, entries: Tensor) -> None:
        """Set the weights of some entries of the vector, (E,) bool, to 0."""
        self.weight[:, entries] = 0

    def refit_problem(self) -> RefitProblem | None:
        """Weights from 0 up, for the scale "plain"; the logarithm is not linear."""
        if self.scale != "plain":
            return None
        # No answer changes: relu(W) is W from here on, and who edits the weights in place edits those that count.
        weight = self.weight.detach().clamp_min_(0)
        everywhere = torch.ones_like(weight, dtype=torch.bool)
        return RefitProblem(weight, None, everywhere, torch.zeros_like(weight), torch.full_like(weight, float("inf")))

    @torch.no_grad()
    def take_refit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the weights (C, E); there are no biases."""
        self.weight.copy_(weight)

    def rules(self) -> list[dict[str, Any]]:
        """Per class the weights above 0, largest first."""
        total, _ = per_unit(self.effective_weight.detach().cpu(), self.unit_of.cpu(), self.unit_count)
        found, names = [], self.unit_names
        for c, row in enumerate(total):
            kept = [(float(weight), name) for weight, name in zip(row, names, strict=True) if weight > 0]
            found.append({"class": c, "weights": {name: w for w, name in sorted(kept, key=lambda pair: -pair[0])}})
        return found
