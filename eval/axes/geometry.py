"""How axes lie to each other, and how the images of concepts lie to each other in the space of all axes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitrarium.eval.metrics.layout import known_values

TINY = 1e-9


class Moments:
    """Means and covariances of C channels over all places of all images, in one pass and O(C^2) memory.

    Places are moved by the mean of the first batch, so that large means cost no digits; sums are in float64.
    """

    def __init__(self) -> None:
        self.count, self._shift, self._sum, self._products = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0)

    def update(self, map: Tensor) -> None:
        """Add a batch of maps (B, C, h, w)."""
        rows = map.detach().permute(0, 2, 3, 1).flatten(0, 2).float()
        if not self.count:
            self._shift = rows.mean(0)
            self._sum = rows.new_zeros(rows.shape[1], dtype=torch.float64)
            self._products = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        rows = rows - self._shift
        self._sum += rows.double().sum(0)
        self._products += (rows.T @ rows).double()
        self.count += len(rows)

    def covariance(self) -> Tensor:
        """(C, C) float64 on the CPU."""
        mean = self._sum / max(1, self.count)
        return (self._products / max(1, self.count) - mean[:, None] * mean).cpu()


class Correlation(NamedTuple):
    """How strongly channels go together.

    Attributes:
        matrix: (C, C) |correlation| in [0, 1], diagonal 1; NaN in rows and columns of constant channels.
        mean: of all pairs of different channels that vary; NaN with fewer than two.
        constant: how many channels do not vary.
    """

    matrix: Tensor
    mean: float
    constant: int


def axis_correlation(covariance: Tensor) -> Correlation:
    """|correlation| of all pairs of channels, from their covariance (C, C): whitening makes it 0 off the diagonal."""
    covariance = covariance.double()
    variance = covariance.diagonal().clamp_min(0)
    varies = variance > TINY * max(float(variance.max()), TINY) if len(variance) else variance > 0
    scale = torch.where(varies, variance, torch.full_like(variance, float("nan"))).sqrt()
    matrix = (covariance / (scale[:, None] * scale)).abs().clamp_max(1)
    kept = matrix[varies][:, varies]
    count = len(kept)
    off = float((kept.sum() - kept.diagonal().sum()) / (count * (count - 1))) if count > 1 else float("nan")
    return Correlation(matrix, off, int((~varies).sum()))


def covariance_of(values: Tensor) -> Tensor:
    """(C, C) float64 covariance of the columns of (N, C)."""
    centred = values.double() - values.double().mean(0)
    return centred.T @ centred / max(1, len(values))


class Likeness(NamedTuple):
    """How alike images of concepts are in the space of a layer.

    Attributes:
        cosine: (K, K) mean cosine of pairs of different images, one of each concept; NaN where there is no pair.
        relative: (K, K) S_ij = |cosine_ij| / sqrt(|cosine_ii| |cosine_jj|), diagonal 1; NaN where it is not defined.
        intra: mean of the diagonal of ``cosine`` over the concepts that have it.
        inter: mean of ``relative`` off its diagonal, where it is defined.
    """

    cosine: Tensor
    relative: Tensor
    intra: float
    inter: float


def intra_inter(vectors: Tensor, truth: Tensor) -> Likeness:
    """Similarity within and between concepts (Chen, Bei & Rudin, Nature Machine Intelligence 2020), without bias.

    The vectors are scaled to length 1, u_n; with s_i the sum of u_n over the n_i images of concept i and q_ij the sum
    of |u_n|^2 over the n_ij images that have both, the mean cosine is

        cosine_ij = (s_i . s_j - q_ij) / (n_i n_j - n_ij).

    What is taken away are the pairs of an image with itself. The released code keeps them, which lifts cosine_ii the
    more, the fewer images a concept has. Nothing of size N x N is made.

    Args:
        vectors: (N, C) the spatial mean of each image's map.
        truth: (N, K) in [0, 1], NaN where nobody knows: such an image is none of the concept's.
    """
    present, known = known_values(truth)
    member = (present & known).double()
    length = vectors.double().norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, vectors.double() / length.clamp_min(1e-30), torch.zeros_like(length))
    sums, count = member.T @ unit, member.sum(0)
    own = member.T @ (member * (unit**2).sum(1, keepdim=True))
    pairs = count[:, None] * count - member.T @ member
    nan = torch.full_like(pairs, float("nan"))
    cosine = torch.where(pairs > 0, (sums @ sums.T - own) / pairs.clamp_min(1), nan)
    within = cosine.diagonal().abs()
    within = torch.where(within > TINY, within, torch.full_like(within, float("nan")))
    relative = cosine.abs() / (within[:, None] * within).sqrt()
    off = ~torch.eye(len(relative), dtype=torch.bool) & ~torch.isnan(relative)
    inter = float(relative[off].mean()) if bool(off.any()) else float("nan")
    return Likeness(cosine, relative, float(cosine.diagonal().nanmean()), inter)
