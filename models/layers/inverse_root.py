"""Inverse square roots of covariance matrices, differentiable any number of times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError

logger = logging.getLogger(__name__)

Method = Literal["eigh", "cholesky", "iternorm"]
METHODS = ("eigh", "cholesky", "iternorm")

CONVERGED = 0.05
"""Largest ||W S W - I||_F / sqrt(C) at which Newton's iteration counts as converged."""


class _Sylvester(torch.autograd.Function):
    """X of A X + X A = Q for symmetric positive A = V diag(s) V^T, whose decomposition is at hand.

    Its gradient is again the solution of such an equation, so it can be differentiated without end.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, q: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
        inner = vectors.mT @ q @ vectors
        x = vectors @ (inner / (values[..., :, None] + values[..., None, :])) @ vectors.mT
        ctx.save_for_backward(a, x, vectors, values)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, x, vectors, values = ctx.saved_tensors
        t: Tensor = _Sylvester.apply(a, gradients[0], vectors, values)  # type: ignore[no-untyped-call]
        return -(t @ x.mT + x.mT @ t), t, None, None


class _InverseRoot(torch.autograd.Function):
    """W = S^(-1/2) by eigendecomposition.

    From W W = S^(-1): W dW + dW W = -W W dS W W. In the eigenbasis the gradient is multiplied by
    -1 / (sqrt(li) sqrt(lj) (sqrt(li) + sqrt(lj))), which is bounded where eigenvalues meet; 1 / (li - lj), which
    autograd would take through the eigenvectors, is not.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        vectors, roots = eigh_parts(matrix)
        inverse = roots.reciprocal()
        result = (vectors * inverse[..., None, :]) @ vectors.mT
        ctx.save_for_backward(result, vectors, inverse)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        result, vectors, inverse = ctx.saved_tensors
        gradient = (gradients[0] + gradients[0].mT) / 2
        solved: Tensor = _Sylvester.apply(result, gradient, vectors, inverse)  # type: ignore[no-untyped-call]
        square = result @ result
        return -(square @ solved @ square)


class _InverseFactor(torch.autograd.Function):
    """W = L^(-1) of the Cholesky factor S = L L^T: dW = -low(W dS W^T) W, where low halves the diagonal."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        result, _ = cholesky_parts(matrix)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        inner = (gradients[0] @ result.mT).tril()
        inner = inner + inner.mT
        # tril counts the diagonal once, and so does its mirror: half of each.
        inner = inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1)) / 2
        return -(result.mT @ (inner / 2) @ result)


def inverse_root(matrix: Tensor, method: Method = "eigh", iterations: int = 10) -> Tensor:
    """W with W S W^T = I for symmetric positive definite S (..., c, c).

    Args:
        matrix: S.
        method: "eigh" gives the symmetric root (ZCA), "cholesky" the inverse of the Cholesky factor, "iternorm" the
            symmetric root as far as Newton's iteration brings it (Huang et al., CVPR 2019).
        iterations: of "iternorm".

    Raises:
        UserError: a matrix that is not finite or not positive definite.
    """
    if method == "iternorm":
        return _newton(matrix, iterations)
    function: Any = _InverseRoot if method == "eigh" else _InverseFactor
    root: Tensor = function.apply(matrix)
    return root


def eigh_parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """V (..., c, c) and s (..., c) above 0 of a symmetric positive definite matrix V diag(s^2) V^T.

    Raises:
        UserError: a matrix that is not finite.
    """
    with _decomposing():
        values, vectors = torch.linalg.eigh(matrix)
    # The caller has added eps to the diagonal; rounding may have taken it away again.
    floor = values[..., -1:] * torch.finfo(values.dtype).eps
    return vectors, torch.maximum(values, floor.clamp_min(torch.finfo(values.dtype).tiny)).sqrt()


def cholesky_parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1 and L of a symmetric positive definite matrix L L^T (..., c, c).

    Raises:
        UserError: a matrix that is not finite or not positive definite.
    """
    with _decomposing():
        factor = torch.linalg.cholesky(matrix)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    return torch.linalg.solve_triangular(factor, identity, upper=False), factor


@contextmanager
def _decomposing() -> Iterator[None]:
    """Say what to do about a covariance that has no decomposition."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise _cannot_be_decomposed() from error


def _cannot_be_decomposed() -> UserError:
    return UserError(
        "the covariance of a map cannot be decomposed: it holds NaN or infinity, or is not positive definite",
        "lower train.lr, set train.clip=1, or raise model.evidence.eps",
    )


def _newton(matrix: Tensor, iterations: int) -> Tensor:
    """P <- 1.5 P - 0.5 P^3 S/tr, from P = I; W = P / sqrt(tr).

    P^2 S/tr is kept up as P Y, with Y of its own recursion Y <- Y (1.5 I - 0.5 P Y) from Y = S/tr: the same numbers but
    for rounding. Computed as it is written, rounding grows until P is NaN, after 20 iterations or sooner; this way it
    does not (Higham, Functions of Matrices, SIAM 2008, chapter 6).
    """
    trace = torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scaled = matrix / trace
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    step = 1.5 * identity - 0.5 * scaled
    root, rest = step, scaled @ step
    for _ in range(iterations - 1):
        step = 1.5 * identity - 0.5 * (root @ rest)
        root, rest = step @ root, rest @ step
    if not torch.isfinite(root).all():
        raise _cannot_be_decomposed()
    _warn_unless_converged(root.detach(), scaled.detach(), identity, iterations)
    return root * trace.rsqrt()


_warned: set[int] = set()


def _warn_unless_converged(root: Tensor, scaled: Tensor, identity: Tensor, iterations: int) -> None:
    """One warning for each number of iterations: the same layer would repeat it at every step."""
    if iterations in _warned:
        return
    error = float((root @ scaled @ root - identity).flatten(-2).norm(dim=-1).max()) / len(identity) ** 0.5
    if not error <= CONVERGED:
        _warned.add(iterations)
        logger.warning(
            "whitening by %d Newton iterations has not converged: ||W S W - I|| / sqrt(C) is %.2g; "
            "use method=eigh or cholesky, which are exact and faster, or more iterations",
            iterations,
            error,
        )
