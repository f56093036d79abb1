"""Turning a few axes of an orthogonal matrix towards where they should point, staying orthogonal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrarium.configs.errors import UserError

Matrix = NDArray[np.float64]


HALVES = 0.5 ** np.arange(10.0)[:, None, None]
RESOLUTION = 1e-13
"""Of a slope, relative to the squared gradient: below it there is only rounding."""


class Search(NamedTuple):
    """How far along a curve to go: bisection until the conditions of Armijo and Wolfe hold.

    Attributes:
        first: t to begin with.
        largest: t is not made larger.
        c1: F(t) <= F(0) + c1 t F'(0).
        c2: F'(t) >= c2 F'(0).
        limit: trials.
    """

    first: float
    largest: float
    c1: float
    c2: float
    limit: int


def rotate_towards(
    rotation: Tensor,
    gradient: Tensor,
    rows: Tensor,
    steps: int = 2,
    first: float = 1000.0,
    largest: float = 1e8,
    c1: float = 1e-4,
    c2: float = 0.9,
    limit: int = 500,
) -> Tensor:
    """Lower F(R) = <G, R> over orthogonal R by curvilinear search (Wen & Yin, Mathematical Programming 2013).

    A search goes along Y(t) = (I + t/2 A)^-1 (I - t/2 A) R with A = G R^T - R G^T. Only k rows of G are not 0, so with
    E their k unit vectors and B = R G^T, A = E B^T - B E^T has rank 2k, and eliminating B leaves k equations: with
    K = E^T B and N = B^T B - K^T K, all that the search asks for is made of

        H(t) = (I + t/2 (K^T - K) + t^2/4 N)^-1        (k x k, in float64)

    and the rotation itself is touched once, after all searches.

    Args:
        rotation: (C, C) orthogonal.
        gradient: (k, C) the rows of G that are not 0.
        rows: (k,) int64, which rows they are, each once.
        steps: searches in turn.
        first: t to begin with.
        largest: t is not made larger.
        c1: of Armijo's condition F(Y) <= F(R) + c1 t F'(0).
        c2: of Wolfe's condition F'(t) >= c2 F'(0).
        limit: trials of a search.

    Returns:
        (C, C) the new rotation; the old one where the gradient is 0 or the limit was reached.

    Raises:
        UserError: more rows than channels, or a gradient that is not finite.
    """
    k = len(gradient)
    if k > len(rotation):
        raise UserError(
            f"{k} axes are to be turned, and there are {len(rotation)} channels",
            "choose fewer concepts, or a layer with more channels",
        )
    places, towards = rows.cpu().numpy(), (gradient.to(rotation) @ rotation.T).cpu().double().numpy().T
    own, gram = towards[places], towards.T @ towards
    if not np.isfinite(gram).all():
        raise UserError(
            "the gradient that turns the axes is not finite", "look for NaN in the map: a lower train.lr may help"
        )
    change = _searches(own, gram, steps, Search(first, largest, c1, c2, limit))
    if change is None:
        return rotation
    span = np.zeros((len(rotation), 2 * k))
    span[places, np.arange(k)], span[:, k:] = 1, towards
    left, right = torch.from_numpy(np.stack([span @ change, span])).to(rotation)
    return torch.addmm(rotation, left, right.T @ rotation)


def orthonormal(rotation: Tensor) -> Tensor:
    """An orthogonal matrix (..., c, c) without what rounding has added to it: one step of Newton and Schulz."""
    exact = rotation if rotation.device.type == "mps" else rotation.double()
    return (1.5 * exact - 0.5 * exact @ exact.mT @ exact).to(rotation.dtype)


def _searches(own: Matrix, gram: Matrix, steps: int, search: Search) -> Matrix | None:
    """X with R' = R + [E, B] X [E, B]^T R after some searches, or None if there is nowhere to go.

    With Y + R = 2 M, u = E^T M = H ((I + t/2 K^T) E^T R - t/2 B^T R) and Y - R = E (2 u - t K u - 2 E^T R) + t B u.

    Args:
        own: (k, k) K = E^T B at the start.
        gram: (k, k) B^T B, which no search changes, as B^T R.
        steps: searches.
        search: how to search.
    """
    k = len(own)
    change, unit = np.zeros((2 * k, 2 * k)), np.eye(2 * k)
    # Rows of the rotation by coefficients on [E, B]^T R, and B by coefficients on [E, B], of the start.
    held, towards = unit[:k], unit[:, k:]
    for _ in range(steps):
        t, inverse, along = _step(own, gram, search)
        if t == 0:
            break
        u = inverse @ (held + (t / 2) * (own.T @ held - unit[k:]))
        change[:k] += 2 * (u - held) - t * (own @ u)
        change += t * (towards @ u)
        held = 2 * u - held
        towards = towards + t * (towards @ along)
        towards[:k] -= 2 * (own - along) + t * (own @ along)
        own = 2 * along - own
    return change if change.any() else None


def _step(own: Matrix, gram: Matrix, search: Search) -> tuple[float, Matrix, Matrix]:
    """How far one search goes: t, H(t) and U(t) = H (K - t/2 N).

    t is 0 where F cannot be lowered, or no t was found within the limit.
    F(t) - F(0) = 2 tr(U - K) and F'(t) = -tr(H ((K^T - K) + t N) U) - tr(H N).

    Args:
        own: (k, k) K.
        gram: (k, k) B^T B.
        search: how to search.
    """
    unit, skew, rest = np.eye(len(own)), own.T - own, gram - own.T @ own
    start, begin = own.trace(), np.vdot(own.T, own) - gram.trace()
    if not begin < -RESOLUTION * gram.trace():
        return 0.0, unit, own
    # While t is too long by Armijo's condition and none is known to be too short, bisection halves t: those trials are
    # made together.
    halves = search.first * HALVES[: search.limit]
    inverses = np.linalg.inv(unit + (halves / 2) * skew + (halves**2 / 4) * rest)
    values = 2 * ((inverses * (own - (halves / 2) * rest).swapaxes(1, 2)).sum((1, 2)) - start)
    falls = values <= search.c1 * begin * halves[:, 0, 0]
    found = int(falls.argmax()) if falls.any() else len(falls) - 1
    t, inverse = float(halves[found, 0, 0]), inverses[found]
    low, high = 0.0, 2 * t if found else search.largest
    for _ in range(search.limit - found):
        along = inverse @ (own - (t / 2) * rest)
        if 2 * (along.trace() - start) > search.c1 * begin * t:
            high = t
        elif -np.vdot(inverse.T, (skew + t * rest) @ along) - np.vdot(inverse.T, rest) < search.c2 * begin:
            low = t
        else:
            return t, inverse, along
        t = (low + high) / 2 if high < search.largest else min(2 * low, search.largest)
        inverse = np.linalg.inv(unit + (t / 2) * skew + (t * t / 4) * rest)
    return 0.0, unit, own
