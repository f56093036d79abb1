"""Prototypes compared with each other: subspaces of classes, and pairs.

    python benchmarks/prototype_statistics.py --json statistics.json

Each is timed against the method as usually released, re-expressed from its formula: subspace separation (forward and
backward) against projectors subtracted in one (C, C, D, D) tensor, the mean distance of all pairs of prototypes against
one (P, P, D) tensor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import interleave, median_spread, peak_memory_mb, report
from torch import Tensor

from vitrarium.models.prototypes.statistics import mean_pair_distance
from vitrarium.train.terms.prototypes import subspace_separation


def released_separation(basis: Tensor) -> Tensor:
    """-(1 / (2 sqrt 2)) sum_ij |P_i - P_j|_F from all differences of projectors at once."""
    projectors = basis.transpose(1, 2) @ basis
    classes = len(basis)
    apart = (projectors[:, None] - projectors[None]).flatten(2)
    different = ~torch.eye(classes, dtype=torch.bool)
    return -apart[different].norm(dim=1).sum() / 8**0.5


def released_pairs(rows: Tensor) -> float:
    """Mean |p_i - p_j| from all differences at once."""
    return float((rows[:, :, None] - rows.T[None]).square().sum(1).sqrt().mean())


def with_gradient(function: Callable[[Tensor], Tensor], basis: Tensor) -> tuple[float, Tensor]:
    """Value and gradient."""
    leaf = basis.clone().requires_grad_()
    value = function(leaf)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def grown(function: Callable[[], Any]) -> float:
    """MB by which one call raises the peak memory of this process; call the smaller one first."""
    before = peak_memory_mb()
    function()
    return peak_memory_mb() - before


def rows(quick: bool) -> list[dict[str, Any]]:
    """The records; ``quick`` compares fewer classes and prototypes in fewer rounds."""
    classes, count, rounds = (60, 600, 3) if quick else (200, 2000, 5)
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(classes, 64, 10, generator=draw)).Q.transpose(1, 2).contiguous()
    prototypes = torch.rand(count, 128, generator=draw)
    records = []
    for name, target, ours, theirs, different in (
        (
            f"subspace separation, {classes} classes, 10 per class, D=64, forward and backward",
            12.0,
            lambda: with_gradient(subspace_separation, basis),
            lambda: with_gradient(released_separation, basis),
            lambda a, b: max(abs(a[0] - b[0]) / abs(b[0]), float((a[1] - b[1]).abs().max() / b[1].abs().max())),
        ),
        (
            f"mean distance of pairs of {count:,} prototypes of 128 channels",
            20.0,
            lambda: mean_pair_distance(prototypes),
            lambda: released_pairs(prototypes),
            lambda a, b: abs(a - b) / b,
        ),
    ):
        memory = grown(ours), grown(theirs)
        difference = different(ours(), theirs())
        times = interleave({"ours": ours, "theirs": theirs}, rounds, 1)
        (mine, spread), (other, _) = median_spread(times["ours"]), median_spread(times["theirs"])
        records.append(
            {
                "name": name,
                "ours": mine,
                "theirs": other,
                "ratio": other / mine,
                "target": target,
                "difference": difference,
                "note": f"seconds; relative difference; spread {spread * 1e3:.1f} ms; peak memory rose by "
                f"{memory[0]:.0f} MB (ours), then by {memory[1]:.0f} MB (theirs)",
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller problems, fewer rounds")
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report(rows(given.quick), given.json)


if __name__ == "__main__":
    main()
