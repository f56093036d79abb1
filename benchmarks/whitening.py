"""Concept whitening: turning axes and whitening maps, against how they were released.

    python benchmarks/whitening.py [--quick] [--json FILE]

Rotation: one update (two curvilinear searches) with 7 concepts. The peer solves with matrices of all channels; "as
released" inverts twice in each trial and once after it, "one inverse a trial" keeps what it has computed. Both are
written anew from the formulas (Wen & Yin, 2013), in single precision as the released code.

Whitening: a training step of the layer, forward and backward, maps (32, C, h, w) in the usual memory order. The peer is
IterNorm (Huang et al., CVPR 2019) with 10 iterations, as concept whitening was released, once by automatic
differentiation and once with its gradient written by hand, all intermediate products kept.

Eigenvalues: of the covariance of the whitened batch, for a batch whose covariance has condition 1e4.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from common import interleave, median_spread, report
from torch import Tensor

from vitrarium.models.layers.rotation import rotate_towards
from vitrarium.models.layers.whitening import Whitening

CONCEPTS, ITERATIONS, EPS = 7, 10, 1e-5
TURNS = {64: 20.0, 256: 40.0, 512: 30.0}
"""Channels, and how many times faster an update is to be."""

MAPS = {(128, 14): None, (256, 7): 2.0, (512, 7): None}
"""Channels and side of the map, and how many times faster a step is to be."""


def search_full(rotation: Tensor, gradient: Tensor, kept: bool, steps: int = 2) -> Tensor:
    """The search of :func:`rotate_towards` with matrices of all channels.

    Args:
        rotation: (C, C).
        gradient: (C, C), all rows.
        kept: whether the inverse of a trial is computed once, not again for the derivative and for the result.
        steps: searches.
    """
    eye = torch.eye(len(rotation), dtype=rotation.dtype)
    for _ in range(steps):
        skew = gradient @ rotation.T - rotation @ gradient.T
        start, slope = float((gradient * rotation).sum()), -0.5 * float(skew.square().sum())
        low, high, t = 0.0, 1e8, 1000.0
        for _ in range(500):
            inverse = torch.linalg.inv(eye + t / 2 * skew)
            turned = inverse @ (eye - t / 2 * skew) @ rotation
            again = inverse if kept else torch.linalg.inv(eye + t / 2 * skew)
            along = -again @ skew @ (rotation + turned) / 2
            if float((gradient * turned).sum()) > start + 1e-4 * t * slope:
                high = t
            elif float((gradient * along).sum()) < 0.9 * slope:
                low = t
            else:
                break
            t = (low + high) / 2
        rotation = turned if kept else torch.linalg.inv(eye + t / 2 * skew) @ (eye - t / 2 * skew) @ rotation
    return rotation


class ByHand(torch.autograd.Function):
    """P of P <- 1.5 P - 0.5 P^3 S from the identity, and its gradient from the kept powers."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor) -> Tensor:
        """P after all iterations; every P and its cube are kept."""
        root, kept = torch.eye(len(scaled)), []
        for _ in range(ITERATIONS):
            cube = root @ root @ root
            kept += [root, cube]
            root = torch.addmm(root, cube, scaled, beta=1.5, alpha=-0.5)
        ctx.save_for_backward(scaled, *kept)
        return root

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """From dP' = 1.5 dP - 0.5 (dP P^2 + P dP P + P^2 dP) S - 0.5 P^3 dS, backwards."""
        scaled, *kept = ctx.saved_tensors
        (back,), found = gradients, torch.zeros_like(scaled)
        for root, cube in zip(kept[-2::-2], kept[::-2], strict=True):
            found.addmm_(cube, back, alpha=-0.5)
            outer = back @ scaled
            right = outer @ root
            inner = torch.addmm(right, root, outer)
            back = torch.addmm(back, right, root, beta=1.5, alpha=-0.5).addmm_(root, inner, alpha=-0.5)
        return found


def by_autograd(scaled: Tensor) -> Tensor:
    """The same, differentiated by autograd."""
    root = torch.eye(len(scaled))
    for _ in range(ITERATIONS):
        root = torch.addmm(root, root @ root @ root, scaled, beta=1.5, alpha=-0.5)
    return root


def iternorm(map: Tensor, root_of: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, C, h, w) whitened by Newton's iteration on the covariance over its trace."""
    batch, channels, height, width = map.shape
    x = map.transpose(0, 1).reshape(channels, -1)
    centred = x - x.mean(1, keepdim=True)
    eye = torch.eye(channels)
    covariance = torch.addmm(eye, centred, centred.T, beta=EPS, alpha=1 / x.shape[1])
    trace = covariance.diagonal().sum()
    whitened = root_of(covariance / trace) * trace.rsqrt() @ centred
    return whitened.reshape(channels, batch, height, width).transpose(0, 1)


def rotations(rounds: int, sizes: dict[int, float]) -> list[dict[str, Any]]:
    """Records of the update."""
    records = []
    for channels, target in sizes.items():
        draw = torch.Generator().manual_seed(channels)
        rotation = torch.linalg.qr(torch.randn(channels, channels, generator=draw, dtype=torch.float64)).Q.float()
        rows = torch.arange(CONCEPTS)
        gradient = torch.randn(CONCEPTS, channels, generator=draw) / channels**0.5
        full = torch.zeros(channels, channels).index_copy(0, rows, gradient)
        runs: dict[str, Callable[[], Tensor]] = {
            "ours": lambda r=rotation, g=gradient, i=rows: rotate_towards(r, g, i),  # type: ignore[misc]
            "as released": lambda r=rotation, g=full: search_full(r, g, kept=False),  # type: ignore[misc]
            "one inverse a trial": lambda r=rotation, g=full: search_full(r, g, kept=True),  # type: ignore[misc]
        }
        with torch.no_grad():
            turned = {name: run() for name, run in runs.items()}
            exact = search_full(rotation.double(), full.double(), kept=True)
            times = interleave(runs, rounds, 1)
        mine, spread = median_spread(times["ours"])
        eye = torch.eye(channels, dtype=torch.float64)
        errors = {name: float((r.double() @ r.double().T - eye).abs().max()) for name, r in turned.items()}
        for name in ("as released", "one inverse a trial"):
            other = median_spread(times[name])[0]
            records.append(
                record(
                    f"rotation update, {CONCEPTS} of {channels} axes, against full matrices, {name}", mine, other,
                    target if name == "as released" else None, float((turned["ours"] - exact).abs().max()),
                    f"seconds; spread {spread * 1e3:.2f} ms; difference: from the peer's method in double precision "
                    f"(of the peer itself {float((turned[name] - exact).abs().max()):.1e}); largest |R R^T - I| "
                    f"{errors['ours']:.1e}, of the peer {errors[name]:.1e}",
                )
            )  # fmt: skip
    return records


def drift(channels: int, updates: int) -> dict[str, Any]:
    """How far from orthogonal many updates lead, each with another gradient."""
    draw = torch.Generator().manual_seed(0)
    rotation, rows = torch.eye(channels), torch.arange(CONCEPTS)
    for _ in range(updates):
        rotation = rotate_towards(rotation, torch.randn(CONCEPTS, channels, generator=draw), rows)
    error = float((rotation.double() @ rotation.double().T - torch.eye(channels)).abs().max())
    return record(
        f"largest |R R^T - I| after {updates:,} updates, {channels} axes", None, None, None, error,
        "difference: at most 1e-5",
    )  # fmt: skip


def layers(rounds: int, sizes: dict[tuple[int, int], float | None]) -> list[dict[str, Any]]:
    """Records of a training step of the layer."""
    records = []
    for (channels, side), target in sizes.items():
        draw = torch.Generator().manual_seed(channels)
        map, weight = (torch.randn(32, channels, side, side, generator=draw) for _ in range(2))
        layer = {method: Whitening(channels, method=method).train() for method in ("eigh", "cholesky")}
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            **layer,
            "IterNorm by autograd": lambda x: iternorm(x, by_autograd),
            "IterNorm by hand": lambda x: iternorm(x, ByHand.apply),  # type: ignore[arg-type]
        }
        runs: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            name: (lambda f=f, x=map, g=weight: step(f, x, g))  # type: ignore[misc]
            for name, f in functions.items()
        }
        results = {name: run() for name, run in runs.items()}
        times = {name: median_spread(t) for name, t in interleave(runs, rounds, 2).items()}
        for method in layer:
            for peer in ("IterNorm by autograd", "IterNorm by hand"):
                (mine, spread), (other, _) = times[method], times[peer]
                pair = results["eigh"], results[peer]
                apart, gradients = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(*pair, strict=True))
                records.append(
                    record(
                        f"whitening by {method} against {peer}, (32, {channels}, {side}, {side})", mine, other,
                        target, apart,
                        f"seconds, forward and backward; spread {spread * 1e3:.2f} ms; difference: of eigh's result, "
                        f"relative to the largest number; of its gradient {gradients:.1e}",
                    )
                )  # fmt: skip
    return records


def step(function: Callable[[Tensor], Tensor], map: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Result and gradient."""
    leaf = map.clone().requires_grad_()
    result = function(leaf)
    (gradient,) = torch.autograd.grad(result, leaf, weight)
    return result.detach(), gradient


def with_condition(channels: int, places: int, variances: Tensor) -> Tensor:
    """(1, C, places, 1) whose covariance has these eigenvalues exactly, up to rounding."""
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(places, channels, generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(wide - wide.mean(0)).Q * places**0.5
    turn = torch.linalg.qr(torch.randn(channels, channels, generator=draw, dtype=torch.float64)).Q
    return (basis * variances.sqrt() @ turn).float().T[None, :, :, None]


def eigenvalues(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Records of how white the result is."""
    records = []
    for channels in sizes:
        spectra = {
            "spread evenly": torch.logspace(-4, 0, channels, dtype=torch.float64),
            "one small": torch.ones(channels, dtype=torch.float64).index_fill(0, torch.tensor(0), 1e-4),
        }
        for name, variances in spectra.items():
            map = with_condition(channels, 32 * 49, variances)
            theirs = furthest(iternorm(map, by_autograd))
            for method in ("eigh", "cholesky"):
                mine = furthest(Whitening(channels, method=method, eps=EPS)(map))  # type: ignore[arg-type]
                records.append(
                    record(
                        f"largest |eigenvalue - 1|, {method}, {channels} channels, condition 1e4, {name}",
                        mine, theirs, None, mine, "difference: at most 0.1; the peer is IterNorm with 10 iterations",
                    )
                )  # fmt: skip
    return records


@torch.no_grad()
def furthest(map: Tensor) -> float:
    """Largest distance from 1 of an eigenvalue of the covariance of a map."""
    rows = map.double().transpose(0, 1).flatten(1)
    return float((torch.linalg.eigvalsh(torch.cov(rows, correction=0)) - 1).abs().max())


def record(
    name: str, ours: float | None, theirs: float | None, target: float | None, difference: float, note: str
) -> dict[str, Any]:
    """One row of the report."""
    ratio = None if ours is None or theirs is None else theirs / ours
    return {
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "target": target,
        "difference": difference,
        "note": note,
    }


def rows(quick: bool) -> list[dict[str, Any]]:
    """All records; ``quick`` compares small problems in few rounds."""
    if quick:
        return [
            *rotations(2, {16: TURNS[64]}),
            drift(16, 20),
            *layers(2, {(16, 7): MAPS[256, 7]}),
            *eigenvalues((16,)),
        ]
    return [*rotations(15, TURNS), drift(256, 2000), *layers(21, MAPS), *eigenvalues((64, 256))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    report(rows(given.quick), given.json)


if __name__ == "__main__":
    main()
