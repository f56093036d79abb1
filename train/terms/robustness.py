"""Relevances that hold in the neighbourhood of an image."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.readouts.base import Readout
from vitrarium.models.types import Features
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term

WITH_RESPECT_TO = ("pixels", "features")


@TERMS.register("robustness")
class Robustness(Term):
    """The readout shall change with the units, not with their relevances (Alvarez-Melis & Jaakkola, NeurIPS 2018).

    With logits f_c = theta_c(x)^T h(x) + b_c and J_h the Jacobian of the units, the paper's penalty for every class is
    the norm of

        g_c = grad_x f_c(x) - J_h(x)^T theta_c(x) = J_theta_c(x)^T h(x),

    which is 0 where the relevances are constant around x. The right-hand side needs no Jacobian of the units: it is the
    vector-Jacobian product of theta_c with h as the vector, so one batched backward pass gives g_c for all classes (the
    released code makes a graph for each class and each unit), and the vector keeps its own graph: the penalty teaches
    h as well as theta. It is the mean over images of

        R = sum over classes of |g_c|^2.

    ``projections`` = n replaces it by the mean over n draws of |sum_c v_c g_c|^2 with v_c = +-1 drawn independently
    for every image and class: E[v_c v_d] = 0 for c != d, so the expectation is R and the cost does not depend on the
    number of classes. Under batch norm the gradient of an image holds what it changes in the answers to the others.

    Args:
        source: the data.
        wrt: "pixels", or "features" for the gradient with respect to the backbone's map: cheaper, because the backbone
            is passed backwards only once, and what the backbone itself does to x is not counted.
        projections: n; 0 = all classes, exactly.
        squared: False takes the root of R for each image, the norm as the paper writes it; only with projections=0,
            because the root of an estimate is biased.

    Raises:
        UserError: an unknown word, a number below 0, the root of an estimate.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        source: DataSource,
        wrt: Literal["pixels", "features"] = "pixels",
        projections: int = 1,
        squared: bool = True,
    ) -> None:
        super().__init__(source)
        if wrt not in WITH_RESPECT_TO:
            raise UserError(f"term 'robustness' has no gradient wrt '{wrt}'", closest(wrt, WITH_RESPECT_TO))
        if projections < 0 or (projections and not squared):
            raise UserError(
                f"robustness with projections={projections}, squared={squared}",
                "give 0 (exact) or more projections; squared=false needs projections=0",
            )
        self.wrt, self.projections, self.squared = wrt, projections, squared
        if wrt == "pixels":
            self.__dict__["needs"] = frozenset({"input_gradient"})

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a readout whose relevances do not depend on the image: there is nothing to hold still."""
        if type(model.readout).relevances is Readout.relevances:
            raise UserError(
                f"term 'robustness' needs relevances that depend on the image, and those of "
                f"{type(model.readout).__name__} do not",
                "choose model.readout.name=input_dependent, or leave the term out",
            )

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch of all processes."""
        penalty = relevance_change(*self._around(step), self.projections)
        if not self.squared:
            # The root has an infinite slope at 0, where linear relevances are.
            penalty = (penalty + torch.finfo(penalty.dtype).eps).sqrt()
        return shared_mean(penalty.sum(), penalty.new_tensor(float(len(penalty))))

    def _around(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Relevances (B, C, M), units (B, M), and what the gradient is taken at."""
        evidence, at = step.output.evidence, step.batch.image
        if self.wrt == "features":
            features = step.output.features
            assert features is not None
            at = features.map
            if not at.requires_grad:
                # A frozen backbone: its map begins the graph.
                at = at.detach().requires_grad_()
                evidence = step.model.observe(Features(at, features.carry))
        relevances = step.model.readout.relevances(evidence)
        assert relevances is not None
        return relevances, evidence.activations, at


def relevance_change(relevances: Tensor, units: Tensor, at: Tensor, projections: int) -> Tensor:
    """(B,) sum over classes c of |J_c^T h|^2, J_c the Jacobian of relevances to c, or an unbiased estimate of it.

    Args:
        relevances: (B, C, M), each row a function of the same row of ``at``.
        units: (B, M) h.
        at: (B, ...).
        projections: how many random signs for each image; 0 = every class on its own, exactly.
    """
    batch, classes, _ = relevances.shape
    if projections:
        draws = torch.randint(2, (projections, batch, classes), device=at.device)
        signs = draws.to(relevances) * 2 - 1
    else:
        signs = torch.eye(classes, device=at.device, dtype=relevances.dtype)[:, None].expand(-1, batch, -1)
    # Of a product of relevances and units only the relevances are differentiated: the units are the vector.
    vectors = signs[..., None] * units.to(relevances)[:, None]
    if len(vectors) == 1:
        (gradient,) = torch.autograd.grad(relevances, at, vectors[0], create_graph=True)
        gradients = gradient[None]
    else:
        (gradients,) = torch.autograd.grad(relevances, at, vectors, create_graph=True, is_grads_batched=True)
    if gradients.dtype in (torch.float16, torch.bfloat16):
        gradients = gradients.float()
    squares = gradients.flatten(2).square().sum(2)
    return squares.mean(0) if projections else squares.sum(0)
