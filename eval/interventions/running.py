"""How one trial of a curve runs: orders to masks, masks to answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.eval.collect import Collected, chunks, respond
from vitrarium.eval.interventions.base import Context, Policy
from vitrarium.eval.interventions.linear import LinearSteps
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating
from vitrarium.models.units import UnitTable


@dataclass
class Session:
    """What all trials of a curve share.

    Attributes:
        model: the classifier.
        collected: cached evidence of N images.
        units: its unit table, on the CPU.
        full: the intervention that corrects all that is known, (N, M).
        known: (N, G) bool, groups whose question has an answer.
        costs: (G,) float64, price of a question.
        budgets: J numbers of groups to ask, ascending.
        chunk: most images at a time.
        corrected: (N, C) logits with everything corrected.
        linear: the closed form of a linear readout, where there is one.
    """

    model: TransparentClassifier
    collected: Collected
    units: UnitTable
    full: Intervention
    known: Tensor
    costs: Tensor
    budgets: list[int]
    chunk: int
    corrected: Tensor
    linear: LinearSteps | None = None

    def context(self, generator: torch.Generator) -> Context:
        """The state before any answer."""
        asked = torch.zeros_like(self.known)
        collected = self.collected
        return Context(self.model, collected.evidence, collected.logits, self.units, asked, self.costs, generator)

    def masked(self, asked: Tensor, rows: slice = slice(None)) -> Intervention:
        """The correction of the units in the groups that were asked: (N, M) bool from (N, M) bool."""
        return Intervention(self.full.mask[rows] & asked, self.full.values[rows])

    def right(self, logits: Tensor, rows: slice = slice(None)) -> Tensor:
        """(N,) bool."""
        return logits.argmax(-1) == self.collected.labels[rows]


@dataclass
class Trial:
    """One trial.

    Attributes:
        right: (N, J) bool.
        cost: (J,) mean price of the questions.
        unanswered: (J,) mean number of questions without an answer.
    """

    right: Tensor
    cost: Tensor
    unanswered: Tensor


def static_trial(session: Session, policy: Policy, generator: torch.Generator) -> Trial:
    """Rank once, then one masked answer per budget: unit m of image i is corrected iff its group's rank is below k."""
    order = policy.rank(session.context(generator))
    # Small integers: these comparisons are a good part of what there is to do.
    unit_position = positions(order, session.known.shape).to(torch.int16)[:, session.units.group_of]
    right = torch.empty(len(order), len(session.budgets), dtype=torch.bool)
    with evaluating(session.model):
        for rows in chunks(len(order), session.chunk):
            answers = _answers(session, order[rows], unit_position[rows], rows)
            right[rows] = torch.stack([session.right(logits, rows) for logits in answers], 1)
    return _account(session, right, order)


def _answers(session: Session, order: Tensor, unit_position: Tensor, rows: slice) -> Iterator[Tensor]:
    """Logits (n, C) of some images at each budget; nothing and everything asked are the same for all orders."""
    start, end = session.collected.logits[rows], session.corrected[rows]
    if session.linear is not None:
        found = session.linear.logits(start, order, session.budgets, rows)
        return (end if k == order.shape[1] else logits for k, logits in zip(session.budgets, found, strict=True))
    evidence = session.collected.evidence[rows]

    def at(budget: int) -> Tensor:
        if budget in (0, order.shape[1]):
            return end if budget else start
        return respond(session.model, evidence, session.masked(unit_position < budget, rows)).logits

    return map(at, session.budgets)


def adaptive_trial(session: Session, policy: Policy, generator: torch.Generator) -> Trial:
    """Score again after each answer; each answer joins those before it, set on the original evidence."""
    right = torch.zeros(len(session.collected), len(session.budgets), dtype=torch.bool)
    orders = []
    with evaluating(session.model):
        for rows in chunks(len(session.collected), session.chunk):
            chunk_right, order = _adaptive_rows(session, policy, generator, rows)
            right[rows] = chunk_right
            orders.append(order)
    return _account(session, right, torch.cat(orders))


def _adaptive_rows(session: Session, policy: Policy, generator: torch.Generator, rows: slice) -> tuple[Tensor, Tensor]:
    """Right answers (n, J) and the order asked (n, largest budget) of some images."""
    original = session.collected[rows]
    evidence, logits = original.evidence, original.logits
    asked = torch.zeros_like(session.known[rows])
    group_of = session.units.group_of
    right = {0: session.right(logits, rows)}
    order = []
    for step in range(1, session.budgets[-1] + 1):
        context = Context(session.model, evidence, logits, session.units, asked, session.costs, generator)
        # A score of NaN or minus infinity must not make an asked group come again.
        scores = policy.score(context).double().nan_to_num(nan=-1e300, neginf=-1e300)
        chosen = scores.masked_fill(asked, float("-inf")).argmax(1)
        order.append(chosen)
        asked = asked.scatter(1, chosen[:, None], True)
        output = respond(session.model, original.evidence, session.masked(asked[:, group_of], rows))
        evidence, logits = output.evidence, output.logits
        right[step] = session.right(logits, rows)
    return torch.stack([right[k] for k in session.budgets], 1), torch.stack(order, 1) if order else asked[:, :0].long()


def _account(session: Session, right: Tensor, order: Tensor) -> Trial:
    """Price and unanswered questions of each budget, from the order (N, at least the largest budget)."""
    start = torch.zeros(len(order), 1, dtype=torch.float64)
    spent = torch.cat([start, session.costs[order].cumsum(1)], 1)
    silent = torch.cat([start, (~session.known.gather(1, order)).double().cumsum(1)], 1)
    return Trial(right, spent[:, session.budgets].mean(0), silent[:, session.budgets].mean(0))


def positions(order: Tensor, shape: torch.Size) -> Tensor:
    """When each group is asked, (N, G), from what is asked when, (N, G).

    A policy from another package must give a permutation of the groups for every image.
    """
    problem = f"a policy must rank all {shape[1]} groups of each of {shape[0]} images, each once"
    if (
        order.shape != shape
        or order.dtype != torch.int64
        or (order.numel() and not 0 <= order.min() <= order.max() < shape[1])
    ):
        raise ValueError(problem)
    found = torch.full_like(order, -1).scatter_(1, order, torch.arange(shape[1]).expand(shape))
    if bool((found < 0).any()):
        raise ValueError(problem)
    return found
