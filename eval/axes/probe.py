"""Logistic regression for all concepts of a layer at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.eval.metrics.layout import known_values

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""L2 penalties that are tried, on the scale of the mean loss; scikit-learn's C is 1 / (strength N)."""


@dataclass
class Standard:
    """Columns to mean 0 and deviation 1, those of the images it was made from; constant columns become 0.

    Attributes:
        mean: (C,).
        scale: (C,) 1 / deviation, 0 for constant columns.
    """

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(values: Tensor) -> Standard:
        """From (N, C)."""
        mean, deviation = values.mean(0), values.std(0, correction=0)
        varies = deviation > 1e-6 * mean.abs().clamp_min(1e-6)
        return Standard(mean, torch.where(varies, 1 / deviation.clamp_min(1e-30), torch.zeros_like(deviation)))

    def __call__(self, values: Tensor) -> Tensor:
        """Columns (N, C) by that measure."""
        return (values - self.mean) * self.scale


@dataclass
class Path:
    """Linear scores of K concepts for each strength.

    Attributes:
        weight: (L, K, C) of the standardised columns.
        bias: (L, K).
        standard: of the columns.
        residual: largest Newton decrement that is left, in units of the mean loss.
    """

    weight: Tensor
    bias: Tensor
    standard: Standard
    residual: float

    def scores(self, values: Tensor, strength: Tensor) -> Tensor:
        """(N, K) scores of (N, C), concept k with the weights of strength number ``strength[k]``."""
        concept = torch.arange(self.weight.shape[1])
        return self.standard(values) @ self.weight[strength, concept].T + self.bias[strength, concept]


@torch.no_grad()
def logistic_path(
    values: Tensor,
    truth: Tensor,
    strengths: tuple[float, ...] = STRENGTHS,
    iterations: int = 300,
    tolerance: float = 1e-7,
) -> Path:
    """The linear scores of all concepts, for every strength of the penalty.

    For every concept k and strength l, over the images on which the concept is known,

        minimise  1/N sum_i log(1 + exp(-t_ik (w_k . x_i + b_k)))  +  l/2 |w_k|^2,      t in {-1, 1}.

    The bias is not penalised. The Hessian of all of them is below X^T X / 4N + l (Boehning and Lindsay, Annals of the
    Institute of Statistical Mathematics 1988), so in the eigenvectors of X^T X one diagonal step serves all concepts
    and strengths; it is accelerated with a restart for each concept (O'Donoghue and Candes, Found. Comput. Math. 2015).
    Strengths are solved from the strongest on, each from the solution before. A concept with one label only gets weight
    0. Deterministic.

    Args:
        values: (N, C), finite.
        truth: (N, K) in [0, 1], NaN where nobody knows.
        strengths: positive.
        iterations: limit for each strength.
        tolerance: of the Newton decrement g^T H^-1 g / 2 under the bound.
    """
    standard = Standard.of(values)
    columns = standard(values)
    energy, basis = torch.linalg.eigh(columns.T.double() @ columns.double() / len(columns))
    kept = energy > 1e-6 * energy.max().clamp_min(1e-30)
    energy, basis = energy[kept].to(values), basis[:, kept].to(values)
    solver = _Solver(columns @ basis, energy, truth)
    order = sorted(range(len(strengths)), key=lambda n: -strengths[n])
    weight = values.new_zeros(len(strengths), truth.shape[1], values.shape[1])
    bias = values.new_zeros(len(strengths), truth.shape[1])
    residual = 0.0
    for n in order:
        residual = max(residual, solver.solve(strengths[n], iterations, tolerance))
        weight[n], bias[n] = solver.weight.T @ basis.T, solver.bias
    return Path(weight, bias, standard, residual)


class _Solver:
    """State of the descent: weights (R, K) in the basis of R eigenvectors, biases (K,)."""

    def __init__(self, columns: Tensor, energy: Tensor, truth: Tensor) -> None:
        present, known = known_values(truth)
        both = (present & known).any(0) & (~present & known).any(0)
        self.columns, self.energy = columns, energy
        self.present, self.known = present.to(columns), (known & both).to(columns)
        self.weight = columns.new_zeros(columns.shape[1], truth.shape[1])
        self.bias = columns.new_zeros(truth.shape[1])

    def solve(self, strength: float, iterations: int, tolerance: float) -> float:
        """Go on from where it is; the largest decrement that is left."""
        step = 1 / (self.energy / 4 + strength)
        ahead, ahead_bias = self.weight, self.bias
        age = torch.ones_like(self.bias)
        decrement = float("inf")
        for _ in range(iterations):
            wrong = (torch.sigmoid(self.columns @ ahead + ahead_bias) - self.present) * self.known / len(self.columns)
            slope, slope_bias = self.columns.T @ wrong + strength * ahead, wrong.sum(0)
            decrement = float(((step[:, None] * slope**2).sum(0) + 4 * slope_bias**2).max()) / 2
            new, new_bias = ahead - step[:, None] * slope, ahead_bias - 4 * slope_bias
            if decrement <= tolerance:
                self.weight, self.bias = new, new_bias
                break
            moved, moved_bias = new - self.weight, new_bias - self.bias
            uphill = (slope * moved).sum(0) + slope_bias * moved_bias > 0
            older = torch.where(uphill, torch.ones_like(age), (1 + (1 + 4 * age**2).sqrt()) / 2)
            push = torch.where(uphill, torch.zeros_like(age), (age - 1) / older)
            ahead, ahead_bias, age = new + push * moved, new_bias + push * moved_bias, older
            self.weight, self.bias = new, new_bias
        return decrement
