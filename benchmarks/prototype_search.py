"""The search for nearest patches: projection and pruning statistics, against one loop per prototype.

    python benchmarks/prototype_search.py [--quick] [--json FILE]

300 images, 2,000 prototypes of 200 classes, maps 128 x 7 x 7 of images of 224 pixels, all features cached, no picture
is drawn or written. The peers are the method as it is usually released, written anew from its description: distances of
a batch by convolution with filters of ones, then a Python loop over prototypes that keeps the nearest patch of the
class and, whenever a nearer one turns up, enlarges its map and finds the box around its percentile (projection); and a
loop over images and prototypes with one heap per prototype (pruning: the k nearest images). All see the same tensors.
The row "vectors alone" leaves out the boxes on both sides.
"""

from __future__ import annotations

import argparse
import heapq
import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from common import interleave, median_spread, report
from torch import Tensor
from torch.nn import functional

from vitrarium.data.batch import Batch
from vitrarium.models import build
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.boxes import percentile_boxes
from vitrarium.models.prototypes.nearest import Nearest, Query, allowed_classes, prototype_layer, search
from vitrarium.models.types import Features

NEIGHBOURS, LEAST, SIZE = 6, 3, 224


def make(classes: int, images: int, batch: int = 75) -> tuple[TransparentClassifier, list[Batch]]:
    """A model with 10 prototypes a class, and batches with cached features."""
    spec = {
        "backbone": {"name": "convnet", "widths": (8, 128)},
        "evidence": {"name": "prototypes", "per_class": 10, "similarity": "log_l2", "addon": "none", "picture": 0},
        "readout": "class_connected",
    }
    model = build(spec, tuple(f"class {c}" for c in range(classes)), seed=0)
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(images, 128, 7, 7, generator=generator)
    labels = torch.arange(images) % classes
    index = torch.arange(images)
    batches = [
        Batch(torch.empty(len(rows), 3, 0, 0), labels[rows], index=rows, features=(maps[rows],))
        for rows in index.split(batch)
    ]
    return model, batches


def distances(maps: Tensor, prototypes: Tensor) -> Tensor:
    """Squared distances as released: the squares are convolved with a filter of ones per prototype."""
    squares = functional.conv2d(maps**2, torch.ones_like(prototypes))
    own = (prototypes**2).sum((1, 2, 3))[:, None, None]
    return functional.relu(squares - 2 * functional.conv2d(maps, prototypes) + own)


@torch.no_grad()
def projection_loop(
    prototypes: Tensor, class_of: list[int], boxed: bool, batches: list[Batch]
) -> tuple[Tensor, Tensor]:
    """Projected vectors and boxes: per batch and prototype the least of a copy of its class's distances."""
    best = [float("inf")] * len(prototypes)
    vectors, boxes = prototypes.clone().numpy(), np.zeros((len(prototypes), 4))
    for batch in batches:
        (maps,) = batch.features
        found, latent = distances(maps, prototypes).numpy(), maps.numpy()
        of_class: dict[int, list[int]] = {}
        for row, label in enumerate(batch.label.tolist()):
            of_class.setdefault(label, []).append(row)
        for p, label in enumerate(class_of):
            rows = of_class.get(label)
            if not rows:
                continue
            mine = found[rows][:, p]
            least = mine.min()
            if least < best[p]:
                n, i, j = np.unravel_index(mine.argmin(), mine.shape)
                best[p] = least
                vectors[p] = latent[rows[n], :, i : i + 1, j : j + 1]
                if boxed:
                    boxes[p] = released_box(np.log((mine[n] + 1) / (mine[n] + 1e-4)))
    return torch.from_numpy(vectors), torch.from_numpy(boxes)


def released_box(map: np.ndarray) -> list[float]:
    """One map: enlarged, marked above the percentile, and searched from all sides."""
    large = cv2.resize(map, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    marked = np.ones(large.shape)
    marked[large < np.percentile(large, 95)] = 0

    def first(lines: np.ndarray) -> int:
        return next((i for i in range(len(lines)) if np.amax(lines[i]) > 0.5), 0)

    edges = first(marked.T), first(marked), SIZE - first(marked.T[::-1]), SIZE - first(marked[::-1])
    return [edge / SIZE for edge in edges]


@torch.no_grad()
def neighbours_loop(prototypes: Tensor, batches: list[Batch]) -> list[list[int]]:
    """Labels of the k nearest images of each prototype, by a heap each, over images and prototypes."""
    heaps: list[list[tuple[float, int, int]]] = [[] for _ in prototypes]
    seen = 0
    for batch in batches:
        (maps,) = batch.features
        found = distances(maps, prototypes)
        for row, label in enumerate(batch.label.tolist()):
            for p, heap in enumerate(heaps):
                closest = float(found[row, p].min())
                entry = (-closest, -seen, label)
                if len(heap) < NEIGHBOURS:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
            seen += 1
    return [[label for *_, label in sorted(heap, reverse=True)] for heap in heaps]


@torch.no_grad()
def project(model: TransparentClassifier, batches: list[Batch], query: Query) -> tuple[Nearest, Tensor]:
    """Nearest patches and their boxes, on cached features."""
    nearest = search(model, batches, [query])[0]
    layer, maps = prototype_layer(model), torch.cat([batch.features[0] for batch in batches])
    boxes = []
    for which in torch.arange(len(layer.class_of)).split(32):
        images, own = nearest.index[which, 0].unique(return_inverse=True)
        shown = layer.similarity_of(layer.embed(Features(maps[images])), which)[own, torch.arange(len(which))]
        boxes.append(percentile_boxes(shown, (SIZE, SIZE)))
    return nearest, torch.cat(boxes)


def rows(quick: bool) -> list[dict[str, Any]]:
    """The records of both comparisons."""
    classes, images, rounds = (40, 120, 2) if quick else (200, 300, 5)
    model, batches = make(classes, images)
    layer = prototype_layer(model)
    assert layer.vectors is not None
    prototypes = layer.vectors.detach()
    with torch.no_grad():
        prototypes.copy_(torch.rand(prototypes.shape, generator=torch.Generator().manual_seed(1)))
    owner, allowed = layer.class_of.tolist(), allowed_classes(model)
    own, around = Query(1, allowed, True), Query(NEIGHBOURS)
    answers: dict[str, Any] = {}
    functions: dict[str, Callable[[], Any]] = {
        "project": lambda: project(model, batches, own),
        "project loop": lambda: projection_loop(prototypes, owner, True, batches),
        "search": lambda: search(model, batches, [own])[0],
        "search loop": lambda: projection_loop(prototypes, owner, False, batches),
        "prune": lambda: search(model, batches, [around])[0],
        "prune loop": lambda: neighbours_loop(prototypes, batches),
        "both": lambda: search(model, batches, [own, around]),
    }

    def kept(name: str) -> Callable[[], None]:
        return lambda: answers.update({name: functions[name]()})

    times = interleave({name: kept(name) for name in functions}, rounds, 1)
    seconds = {name: median_spread(t)[0] for name, t in times.items()}
    nearest, boxes = answers["project"]
    vectors, released_boxes = answers["project loop"]
    labels, found = torch.tensor(answers["prune loop"]), answers["prune"]
    stays = [(lists == layer.class_of[:, None]).sum(1) >= LEAST for lists in (labels, found.label)]
    size = f"{images} images, {len(prototypes):,} prototypes"
    note = "medians in seconds; features cached"
    off = int(((boxes - released_boxes).abs() > 1.5 / SIZE).any(1).sum())
    return [
        record(
            f"projection, {size}", seconds["project"], seconds["project loop"], 3.5,
            float((nearest.patch - vectors).abs().max()), f"{note}; {off} boxes differ by more than 1 pixel",
        ),
        record(
            "the same, vectors alone", seconds["search"], seconds["search loop"], None,
            float((answers["search"].patch - answers["search loop"][0]).abs().max()), f"{note}; no boxes",
        ),
        record(
            f"{NEIGHBOURS} nearest for pruning, {size}", seconds["prune"], seconds["prune loop"], 4.0,
            float((found.label != labels).sum() + (stays[0] != stays[1]).sum()), f"{note}; difference: labels",
        ),
        record(
            "vectors and neighbours in one pass", seconds["both"], seconds["search loop"] + seconds["prune loop"], None,
            float((answers["both"][1].index != found.index).sum()), f"{note}; difference: images",
        ),
    ]  # fmt: skip


def record(name: str, ours: float, theirs: float, target: float | None, difference: float, note: str) -> dict[str, Any]:
    """One row of the report."""
    return {
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "ratio": theirs / ours,
        "target": target,
        "difference": difference,
        "note": note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    report(rows(given.quick), given.json)


if __name__ == "__main__":
    main()
