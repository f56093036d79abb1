"""How images move between two concepts from layer to layer, for models that are whitened at different depths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.ink import PARTS
from vitrarium.eval.axes.drawing import plain
from vitrarium.eval.axes.looking import AXES
from vitrarium.eval.explanations.saving import write
from vitrarium.eval.metrics.layout import known_values
from vitrarium.eval.metrics.ranking import middle_ranks
from vitrarium.eval.report.style import INK, SOFT, apart, escape, new_figure, png_of
from vitrarium.models.classifier import TransparentClassifier

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Trajectories:
    """Paths of images in the unit square of two concepts (Chen, Bei & Rudin, Nature Machine Intelligence 2020).

    Attributes:
        concepts: names of both.
        layers: cuts in order of depth.
        images: positions in the split.
        labels: class of each image, by name.
        paths: (I, L, 2) in [0, 1]: at each layer the share of the split's images on which the concept's axis says less.
        pictures: (H, W, 3) uint8 of each image.
        title: heading.
        credit: line of credit of the pictures.
    """

    concepts: tuple[str, str]
    layers: tuple[str, ...]
    images: tuple[int, ...]
    labels: tuple[str, ...]
    paths: Tensor
    pictures: list[np.ndarray]
    title: str = ""
    credit: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """A row per image and layer."""
        return [
            {
                "image": image, "class": label, "layer": layer,
                self.concepts[0]: float(self.paths[i, n, 0]), self.concepts[1]: float(self.paths[i, n, 1]),
            }
            for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True))
            for n, layer in enumerate(self.layers)
        ]  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Draw them as PNG; the file appears whole."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UserError(f"trajectories cannot be saved as '{path.name}'", "end the name in .png")
        write(path, self.picture())
        return path

    def picture(self) -> bytes:
        """The PNG: a path for each image, its first layer a ring, its last one the number of the image beside it."""
        figure, axes = new_figure(8.6, 6.2)
        axes.set_position((0.08, 0.10, 0.60, 0.76))
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axes.set_xlabel(f"{plain(self.concepts[0])}: percentile", fontsize=9.5, color=INK)
        axes.set_ylabel(f"{plain(self.concepts[1])}: percentile", fontsize=9.5, color=INK)
        for i in range(len(self.images)):
            self._path(axes, i)
        self._thumbnails(figure)
        figure.text(0.02, 0.955, escape(self.title), fontsize=12, weight="bold", color=INK, va="center")
        said = f"from {' to '.join((self.layers[0], self.layers[-1]))} ({len(self.layers)} layers): ring = first"
        figure.text(0.02, 0.905, escape(said), fontsize=8.5, color=SOFT, va="center")
        if self.credit:
            figure.text(0.02, 0.015, escape(self.credit), fontsize=6.5, color=SOFT)
        return png_of(figure)

    def _path(self, axes: Axes, i: int) -> None:
        colour = _colour(i)
        points = self.paths[i].numpy()
        axes.plot(points[:, 0], points[:, 1], color=colour, lw=1.2, alpha=0.55)
        for start, end in pairwise(points):
            middle = start + 0.55 * (end - start)
            axes.annotate(
                "", middle, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2, "alpha": 0.8}
            )  # fmt: skip
        axes.plot(*points[0], "o", mfc="white", mec=colour, ms=6, mew=1.4)
        axes.plot(points[1:, 0], points[1:, 1], "o", color=colour, ms=4)
        axes.annotate(
            str(i + 1), points[-1], ha="center", va="center", fontsize=7.5, color="white", weight="bold",
            bbox={"boxstyle": "circle,pad=0.22", "fc": colour, "ec": "white", "lw": 0.8}, zorder=5,
        )  # fmt: skip

    def _thumbnails(self, figure: Any) -> None:
        wanted = np.linspace(0.80, 0.14, max(2, len(self.images)))[: len(self.images)]
        side = min(0.115, 0.70 / len(self.images))
        for i, middle in enumerate(apart(list(-wanted), side * 1.1, -0.84, -0.10)):
            shown = figure.add_axes((0.74, -middle - side / 2, side * 6.2 / 8.6, side))
            shown.imshow(self.pictures[i])
            shown.set(xticks=[], yticks=[])
            for spine in shown.spines.values():
                spine.set(color=_colour(i), linewidth=2)
            said = f"{i + 1}  {self.labels[i].replace('_', ' ')}\nimage {self.images[i]}"
            figure.text(0.745 + side * 6.2 / 8.6, -middle, escape(said), fontsize=8, color=INK, va="center")


def _colour(i: int) -> tuple[float, ...]:
    return tuple(part / 255 for part in PARTS[i % len(PARTS)])


def axis_numbers(model: TransparentClassifier, concepts: Sequence[str], whose: str) -> list[int]:
    """The units that are the axes of two concepts.

    Raises:
        UserError: not two different concepts, a model without axes inside the network, or without one of these.
    """
    if len(concepts) != 2 or concepts[0] == concepts[1]:
        raise UserError(f"a trajectory is drawn between two concepts, got {list(concepts)}", "name two different ones")
    names = list(model.evidence.units.names)
    if AXES not in model.evidence.gives:
        raise UserError(
            f"'{whose}' has no axes inside the network: its units are {model.evidence.units.kind}s",
            "give runs of the preset concept_whitening, with different cuts",
        )
    for concept in concepts:
        if concept not in names:
            raise UserError(f"'{whose}' has no axis for '{concept}'", closest(concept, names))
    return [names.index(concept) for concept in concepts]


def depth_of(model: TransparentClassifier) -> tuple[int, int]:
    """How deep the cut of a backbone lies: numbers learnt and modules below it. They only grow towards the end."""
    network = model.backbone.network
    return sum(p.numel() for p in network.parameters()), sum(1 for _ in network.modules())


def percentiles(said: Tensor) -> Tensor:
    """(N, J) in [0, 1]: the share of images on which a unit says less, equals counted half."""
    return (middle_ranks(said) - 0.5) / max(1, len(said))


def choose_images(truth: Tensor, pair: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Rows of a few images: by chance of those that have the first concept alone, the second alone, both, in turn.

    Raises:
        UserError: nobody has either.
    """
    present, known = known_values(truth[:, list(pair)])
    has = present & known
    generator = torch.Generator().manual_seed(seed)
    pools = []
    for wanted in ((True, False), (False, True), (True, True)):
        rows = (has == torch.tensor(wanted)).all(1).nonzero()[:, 0]
        pools.append(rows[torch.randperm(len(rows), generator=generator)].tolist())
    found: list[int] = []
    while len(found) < count and any(pools):
        found += [pool.pop(0) for pool in pools if pool]
    if not found:
        raise UserError("no image of the split has one of the two concepts", "choose other concepts or images")
    return found[:count]
