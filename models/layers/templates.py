"""Position templates of a map: where a filter that stands for one part may respond (Zhang, Wu & Zhu, CVPR 2018).

A map has n = h w places. The template of place mu, and the one that says "nowhere", are

    T_mu[i] = tau max(1 - beta d(i, mu), -1),        T_none[i] = -tau
    d(i, mu) = |row(i) - row(mu)| / h + |column(i) - column(mu)| / w

On square maps that is the paper's distance. ``beta`` is how steeply a template falls; the code released with the paper
counts coordinates from -1 to 1, so its numbers are half of these.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest

PLACES = ("argmax", "centre_of_mass")
"""How the place of a map is found: its strongest place, or its rounded centre of mass."""

TINY = 1e-12


def refuse_small(height: int, width: int, cut: str) -> None:
    """Refuse maps without two places either way: there, no template differs from place to place.

    Args:
        height: h.
        width: w.
        cut: of the backbone, for the message.

    Raises:
        UserError: h or w below 2.
    """
    if min(height, width) < 2:
        raise UserError(
            f"the map at the cut '{cut}' is {height} x {width}, and position templates need 2 x 2 places at least",
            "cut the backbone earlier (vitrarium list cuts), or take larger images: data.size=...",
        )


def apart(places: Tensor, size: int) -> Tensor:
    """(..., size) how far each of ``size`` rows (or columns) is from some, as a share of their number."""
    steps = torch.arange(size, device=places.device, dtype=torch.float32)
    return (steps - places[..., None]).abs() / size


def find_places(maps: Tensor, how: str) -> Tensor:
    """The place of each map, as ``row * w + column``; the first among equals, 0 for a map of zeros.

    Args:
        maps: (B, M, h, w), 0 or more.
        how: one of :data:`PLACES`. Halves are rounded to the even row and column.

    Returns:
        (B, M) int64, without graph.

    Raises:
        UserError: an unknown way.
    """
    maps = maps.detach()
    if how == "argmax":
        return maps.flatten(2).argmax(2)
    if how != "centre_of_mass":
        raise UserError(f"the place of a map cannot be found by '{how}'", closest(how, PLACES))
    row, column = centres_of_mass(maps)
    return row.round().long() * maps.shape[3] + column.round().long()


def centres_of_mass(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column (B, M) float32 of the centres of mass of maps (B, M, h, w) >= 0; 0 for a map of zeros."""
    maps = maps.float()
    mass = maps.sum((2, 3)).clamp_min(TINY)
    rows, columns = (torch.arange(n, device=maps.device, dtype=torch.float32) for n in maps.shape[2:])
    return (maps.sum(3) @ rows) / mass, (maps.sum(2) @ columns) / mass


def spreads(maps: Tensor) -> Tensor:
    """(B, M) standard deviation of maps (B, M, h, w) around their centre of mass, where h and w both span -1 to 1."""
    height, width = maps.shape[2:]
    maps = maps.float()
    mass = maps.sum((2, 3)).clamp_min(TINY)
    row, column = centres_of_mass(maps)
    # A step is 2 / n long where n places span a length of 2.
    down = (2 * apart(row, height)).square()
    across = (2 * apart(column, width)).square()
    return (((maps.sum(3) * down).sum(2) + (maps.sum(2) * across).sum(2)) / mass).sqrt()


def masks(places: Tensor, beta: float | Tensor, size: tuple[int, int]) -> Tensor:
    """The positive parts of the templates at some places, with a peak of 1: max(1 - beta d(., mu), 0).

    Args:
        places: (B, M) int64, as from :func:`find_places`.
        beta: a number, or (M,).
        size: (h, w).

    Returns:
        (B, M, h, w) in [0, 1].
    """
    height, width = size
    rows = torch.div(places, width, rounding_mode="floor")
    down, across = apart(rows, height), apart(places - rows * width, width)
    steep = beta if isinstance(beta, float) else beta[:, None, None]
    return (1 - steep * (down[..., :, None] + across[..., None, :])).clamp_min(0)


@lru_cache(maxsize=16)
def distances(height: int, width: int, device: torch.device) -> Tensor:
    """(n, n) d(i, mu), symmetric."""
    places = torch.arange(height * width, device=device)
    rows = places // width
    down, across = apart(rows, height), apart(places % width, width)
    return (down[:, :, None] + across[:, None, :]).flatten(1)


def templates(height: int, width: int, beta: float | Tensor, tau: float, device: torch.device) -> Tensor:
    """The template of each place, and last the one that says "nowhere".

    Args:
        height: h.
        width: w.
        beta: a number, or (M,) one for each filter.
        tau: the largest value.
        device: where.

    Returns:
        (n + 1, n) float32 templates of all filters, or (M, n + 1, n) of each.
    """
    apart_by = distances(height, width, device)
    steep = beta if isinstance(beta, float) else beta[:, None, None]
    positive = tau * (1 - steep * apart_by).clamp_min(-1)
    return torch.cat([positive, torch.full_like(positive[..., :1, :], -tau)], -2)


def traces(maps: Tensor, bank: Tensor) -> Tensor:
    """tr(x T) of all maps and templates: (B, M, h, w) and a bank of :func:`templates` to (B, M, n + 1)."""
    rows = maps.flatten(2)
    if bank.dim() == 2:
        return rows @ bank.T
    return torch.einsum("bmp,mtp->bmt", rows, bank)


def log_priors(places: int, positive: float | None, device: torch.device) -> Tensor:
    """(n + 1,) log p(T): ``positive`` / n for each place, 1 - ``positive`` for "nowhere".

    Args:
        places: n.
        positive: the paper's alpha, in (0, 1); None = n / (n + 1), its default, under which all are equal.
        device: where.
    """
    share = places / (places + 1) if positive is None else positive
    prior = torch.full((places + 1,), share / places, device=device)
    prior[-1] = 1 - share
    return prior.log()
