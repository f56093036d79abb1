"""Refit the readout to evidence that no longer moves, for instance after projection and pruning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.readouts.base import Readout
from vitrarium.models.readouts.refit import RefitProblem
from vitrarium.models.readouts.refit_choice import L1, L2, choose_refit, measure
from vitrarium.train.events.base import EVENTS, Event, Moment
from vitrarium.train.events.vectors import readout_vectors


@EVENTS.register("refit_readout")
class RefitReadout(Event):
    """Solve for the readout, with an L1 penalty where the readout has one and within its bounds.

    ProtoPNet (Chen et al., NeurIPS 2019) trains the last layer alone after each projection, with an L1 penalty on the
    weights between a class and the prototypes of others. That problem is convex: here it is solved once, on the clean
    training split, and its strengths are chosen on validation (:func:`~vitrarium.models.readouts.refit_choice.
    choose_refit`). The readout says what is penalised and bounded (``refit_problem``); weights of pruned units become
    0. ``fit_readout`` is for a first readout without penalty on parts of it; it starts from nothing.

    Logs accuracy and log-loss on validation before and after, the strengths, and the share of penalised weights at 0.

    Args:
        l1: candidates for the L1 strength above 0, on the scale of the mean loss; 0 is always tried.
        l2: candidates for the L2 strength.
        errors: standard errors of validation log-loss that sparsity may cost; 0 takes the smallest log-loss.
        iterations: limit of the solver.

    Raises:
        UserError: strengths below 0, no ``l2``, a readout that is not linear.
    """

    default_when = "end"

    def __init__(
        self, l1: Sequence[float] = L1, l2: Sequence[float] = L2, errors: float = 1.0, iterations: int = 2000
    ) -> None:
        if not l2 or min((*l1, *l2)) < 0 or errors < 0 or iterations < 1:
            raise UserError(
                f"l1={list(l1)}, l2={list(l2)}, errors={errors}, iterations={iterations} of event 'refit_readout'",
                "give strengths of 0 or more, one for l2 at least, and one or more iterations",
            )
        self.l1, self.l2, self.errors, self.iterations = tuple(l1), tuple(l2), errors, iterations

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a readout whose refit would not be convex."""
        problem_of(model.evidence, model.readout)

    def run(self, moment: Moment) -> None:
        """Two passes of the backbone (training and validation split), then the fits."""
        model = moment.model
        problem = problem_of(model.evidence, model.readout)
        train, val = readout_vectors(moment, "train"), readout_vectors(moment, "val")
        before = measure(problem, val)
        choice = choose_refit(train, val, problem, self.l1, self.l2, self.errors, self.iterations)
        model.readout.take_refit(choice.fitted.weight.to(problem.weight), choice.fitted.bias)
        for when, measured in (("before", before), ("after", choice.val)):
            moment.log(f"refit_readout/val_accuracy_{when}", measured.accuracy)
            moment.log(f"refit_readout/val_log_loss_{when}", measured.log_loss)
        moment.log("refit_readout/l1", choice.l1)
        moment.log("refit_readout/l2", choice.l2)
        moment.log("refit_readout/zeros", choice.zeros)


def problem_of(evidence: EvidenceLayer, readout: Readout) -> RefitProblem:
    """The refit of a readout on the CPU, in which entries of pruned units have weight 0.

    Raises:
        UserError: a readout that is not linear.
    """
    problem = readout.refit_problem()
    if problem is None:
        raise UserError(
            f"event 'refit_readout' needs a linear readout, and {type(readout).__name__} is none",
            "set model.readout.name=class_connected or linear, or leave the event out",
        )
    return problem.cpu().without(dead_entries(evidence).cpu())


def dead_entries(evidence: EvidenceLayer) -> Tensor:
    """(E,) bool, entries of the vector that belong to a pruned unit."""
    owner = evidence.unit_of
    return torch.where(owner >= 0, ~evidence.alive[owner.clamp_min(0)], False)
