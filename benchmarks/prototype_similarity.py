"""The similarity layer: maps, best places and their gradients, against how it is usually computed.

    python benchmarks/prototype_similarity.py --json similarity.json

Features (B, 128, 7, 7) and prototypes to log-L2 similarities of the best places, and the gradients of both. "Filter of
ones" convolves the squares with one filter of ones per prototype (as ProtoPNet was released), "cdist" squares
torch.cdist. Both pool the distances and never make similarity maps; ours makes them too. Where `cabrnet` (LGPL) is
installed its layer is timed as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import interleave, median_spread, report
from torch import Tensor
from torch.nn import functional

from vitrarium.models.prototypes.matching import best_matches
from vitrarium.models.prototypes.similarity import log_l2

Layer = Callable[[Tensor, Tensor], Tensor]


def ours(latent: Tensor, prototypes: Tensor) -> Tensor:
    """(B, P) similarities of the best places, as evidence ``prototypes`` computes them in training."""
    return log_l2(best_matches(latent, prototypes, "log_l2").best)


def filter_of_ones(latent: Tensor, prototypes: Tensor) -> Tensor:
    """The expanded distance with the squares convolved by ones, pooled, then the logarithm."""
    filters = prototypes[:, :, None, None]
    squares = functional.conv2d(latent.square(), torch.ones_like(filters))
    own = prototypes.square().sum(1)[:, None, None]
    distance = functional.relu(squares - 2 * functional.conv2d(latent, filters) + own)
    nearest = -functional.max_pool2d(-distance, distance.shape[-2:])
    return log_l2(nearest.flatten(1))


def by_cdist(latent: Tensor, prototypes: Tensor) -> Tensor:
    """torch.cdist squared, pooled, then the logarithm."""
    distance = torch.cdist(latent.flatten(2).transpose(1, 2), prototypes[None]).square()
    return log_l2(distance.amin(1))


def by_cabrnet() -> Layer | None:
    """The layer of cabrnet, if it is installed."""
    try:
        from cabrnet.core.utils.similarities import ProtoPNetSimilarity
    except ImportError as error:
        print(f"cabrnet is not installed ({error}): its similarity layer is not timed")
        return None
    layer = ProtoPNetSimilarity(stability_factor=1e-4)

    def run(latent: Tensor, prototypes: Tensor) -> Tensor:
        distance = layer.distances(features=latent, prototypes=prototypes[:, :, None, None])
        return layer.distances_to_similarities(distance.flatten(2).amin(2))

    return run


def with_gradients(layer: Layer, latent: Tensor, prototypes: Tensor, weight: Tensor) -> list[Tensor]:
    """Similarities, gradient of the features, gradient of the prototypes."""
    leaves = latent.clone().requires_grad_(), prototypes.clone().requires_grad_()
    similarities = layer(*leaves)
    return [similarities.detach(), *torch.autograd.grad((similarities * weight).sum(), leaves)]


def apart(first: list[Tensor], second: list[Tensor]) -> list[float]:
    """Largest difference of the results and of each gradient, relative to the largest number of each."""
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True)]


def rows(quick: bool) -> list[dict[str, Any]]:
    """The records; ``quick`` compares fewer images and prototypes in fewer rounds."""
    batch, count, rounds = (8, 200, 3) if quick else (80, 2000, 7)
    draw = torch.Generator().manual_seed(0)
    latent, prototypes = torch.rand(batch, 128, 7, 7, generator=draw), torch.rand(count, 128, generator=draw)
    weight = torch.rand(batch, count, generator=draw)
    layers: dict[str, tuple[Layer, float | None]] = {
        "the filter of ones": (filter_of_ones, 1.15),
        "cdist": (by_cdist, 2.0),
    }
    if (peer := by_cabrnet()) is not None:
        layers["cabrnet"] = (peer, None)
    runs: dict[str, Callable[[], list[Tensor]]] = {
        name: (lambda layer=layer: with_gradients(layer, latent, prototypes, weight))  # type: ignore[misc]
        for name, layer in {"ours": ours, **{name: layer for name, (layer, _) in layers.items()}}.items()
    }
    results = {name: run() for name, run in runs.items()}
    times = interleave(runs, rounds, 1)
    mine, spread = median_spread(times["ours"])
    records = []
    for name, (_, target) in layers.items():
        similarity, *gradients = apart(results["ours"], results[name])
        other = median_spread(times[name])[0]
        records.append(
            {
                "name": f"similarity layer against {name}, {batch} images, {count:,} prototypes, forward and backward",
                "ours": mine,
                "theirs": other,
                "ratio": other / mine,
                "target": target,
                "difference": similarity,
                "note": f"seconds; relative difference of similarities; of gradients {max(gradients):.1e}: where two "
                "places are equally near up to rounding each may take another; spread "
                f"{spread * 1e3:.1f} ms; ours makes the similarity maps as well, the others only what is pooled",
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
