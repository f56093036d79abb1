"""What is measured of each unit to judge its health: one pass over clean and noisy images, memory of fixed size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.data.batch import Batch
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating

LEAST_SIDE = 5
"""Maps with fewer rows or columns are nearly all border: there the share of border places says nothing."""


@dataclass
class Measures:
    """What M units do on N images.

    Attributes:
        images: N.
        spread: (M,) largest minus smallest activation.
        correlation: (M, M) of activations; 0 where a unit never changes.
        steadiness: (M,) correlation of the activations of clean and noisy images; NaN where a unit never changes.
        border: (M,) share of the best images in which the best place lies on the border of the map; NaN where the map
            has fewer than ``LEAST_SIDE`` rows or columns.
        border_expected: () the share of places that lie on the border.
        inside: (M,) share of the best images with a mask in which the best place touches the object; NaN where the data
            have no masks.
        area: () mean share of places that touch the object; NaN likewise.
        best: (M, k) position in the split of the images with the largest activation, -1 where there are fewer.
    """

    images: int
    spread: Tensor
    correlation: Tensor
    steadiness: Tensor
    border: Tensor
    border_expected: Tensor
    inside: Tensor
    area: Tensor
    best: Tensor


@torch.no_grad()
def measure_units(
    model: TransparentClassifier, batches: Iterable[Batch], best: int = 10, noise: float = 0.05, seed: int = 0
) -> Measures:
    """Measure the units of a model with maps on clean images.

    Args:
        model: its evidence gives maps.
        batches: clean images, with human maps or part masks if the data have them.
        best: k, how many images with the largest activation count for ``border`` and ``inside``.
        noise: standard deviation of the noise that is added to pixels in [0, 1]; the result is clipped to [0, 1].
        seed: of the noise, which is drawn image by image: another batch size gives the same.
    """
    running: _Running | None = None
    with evaluating(model):
        for batch in batches:
            batch = batch.to(model.evidence.alive.device)
            evidence = model.observe(model.look(batch))
            noisy = model(_noisy(batch, noise, seed)).evidence.activations
            if running is None:
                running = _Running(evidence.activations.shape[1], best, evidence.activations.device)
            assert evidence.maps is not None
            running.take(evidence.activations.float(), noisy.float(), evidence.maps.float(), batch)
    if running is None:
        raise ValueError("no images")
    return running.result()


def _noisy(batch: Batch, noise: float, seed: int) -> Tensor:
    index = torch.arange(len(batch)) if batch.index is None else batch.index
    return (batch.image + noise * noise_of(batch.image, index, seed)).clamp(0, 1)


def noise_of(images: Tensor, index: Tensor, seed: int) -> Tensor:
    """Standard normal noise as large as images (B, C, H, W), which depends on position and seed alone.

    Args:
        images: their shape, precision and device are taken.
        index: (B,) int64, position of each in its split, at least 0.
        seed: at least 0.
    """
    shape = images.shape[1:]
    drawn = [np.random.default_rng([seed, int(i)]).standard_normal(shape, np.float32) for i in index]
    return torch.from_numpy(np.stack(drawn)).to(images)


def object_masks(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Where the object is: (B, 1, H, W) in [0, 1] and (B,) bool whether anybody said; from human maps or part masks."""
    if batch.human_map is not None and batch.has_map is not None:
        return batch.human_map, batch.has_map
    if batch.part_masks is not None:
        return batch.part_masks.any(1, keepdim=True).float(), torch.ones(len(batch), dtype=torch.bool)
    return None


class _Running:
    """Sums over images, and the k best images of each unit."""

    def __init__(self, units: int, best: int, device: torch.device) -> None:
        zeros = torch.zeros(units, dtype=torch.float64, device=device)
        self.count, self.best = 0, best
        self.low, self.high = zeros + float("inf"), zeros - float("inf")
        # Sums around the first image's activations: variances lose no digits when activations are large and alike.
        self.origin: Tensor | None = None
        self.sums = {name: zeros.clone() for name in ("a", "b", "aa", "bb", "ab")}
        self.products = torch.zeros(units, units, dtype=torch.float64, device=device)
        self.top = torch.full((units, best), float("-inf"), device=device)
        self.marks = torch.full((units, best, 3), float("nan"), device=device)
        self.border_share, self.area, self.masked = float("nan"), 0.0, 0

    def take(self, clean: Tensor, noisy: Tensor, maps: Tensor, batch: Batch) -> None:
        """Add a batch: activations (B, M) clean and noisy, maps (B, M, h, w)."""
        if self.origin is None:
            self.origin = clean[0].double()
        a, b = clean.double() - self.origin, noisy.double() - self.origin
        self.count += len(a)
        self.low, self.high = torch.minimum(self.low, a.amin(0)), torch.maximum(self.high, a.amax(0))
        for name, value in (("a", a), ("b", b), ("aa", a * a), ("bb", b * b), ("ab", a * b)):
            self.sums[name] += value.sum(0)
        self.products += a.T @ a
        self._rank(clean, self._marks(maps, batch))

    def _marks(self, maps: Tensor, batch: Batch) -> Tensor:
        """(B, M, 3): the image's position, whether its best place is on the border, whether it touches the object."""
        height, width = maps.shape[-2:]
        place = maps.flatten(2).argmax(2)
        row, column = place // width, place % width
        index = (torch.arange(len(maps)) if batch.index is None else batch.index).to(maps)
        marks = torch.full((*place.shape, 3), float("nan"), device=maps.device)
        marks[:, :, 0] = index[:, None]
        if min(height, width) >= LEAST_SIDE:
            edge = (row == 0) | (column == 0) | (row == height - 1) | (column == width - 1)
            marks[:, :, 1] = edge.to(maps)
            self.border_share = 1 - (height - 2) * (width - 2) / (height * width)
        masks = object_masks(batch)
        if masks is not None:
            where, known = masks
            # The best place touches the object if any pixel of its cell does.
            cells = functional.adaptive_max_pool2d(where.to(maps), (height, width)).flatten(1) > 0.5
            inside = cells.gather(1, place).to(maps)
            marks[:, :, 2] = inside.masked_fill(~known.to(maps.device)[:, None], float("nan"))
            self.area += float(cells[known.to(cells.device)].float().mean(1).sum())
            self.masked += int(known.sum())
        return marks

    def _rank(self, clean: Tensor, marks: Tensor) -> None:
        values = torch.cat([self.top, clean.T], 1)
        both = torch.cat([self.marks, marks.transpose(0, 1)], 1)
        # Stable: among equals the image that came first stays.
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self.best]
        self.top = values.gather(1, order)
        self.marks = both.gather(1, order[:, :, None].expand(-1, -1, 3))

    def result(self) -> Measures:
        """The measures of all images taken."""
        n, s = max(self.count, 1), self.sums
        variance_a, variance_b = (s[x + x] / n - (s[x] / n) ** 2 for x in ("a", "b"))
        covariance = self.products / n - torch.outer(s["a"] / n, s["a"] / n)
        scale = variance_a.clamp_min(0).sqrt()
        still = scale <= 1e-7 * (self.high - self.low).abs().max().clamp_min(1e-30)
        correlation = (covariance / torch.outer(scale, scale)).masked_fill(still[:, None] | still[None], 0.0)
        steady = (s["ab"] / n - s["a"] * s["b"] / n**2) / (variance_a * variance_b).clamp_min(1e-300).sqrt()
        found = self.top > float("-inf")
        return Measures(
            images=self.count,
            spread=(self.high - self.low).float(),
            correlation=correlation.float(),
            steadiness=steady.masked_fill(still, float("nan")).float(),
            border=self.marks[:, :, 1].nanmean(1),
            border_expected=torch.tensor(self.border_share),
            inside=self.marks[:, :, 2].nanmean(1),
            area=torch.tensor(self.area / self.masked if self.masked else float("nan")),
            best=torch.where(found, self.marks[:, :, 0], torch.full_like(self.top, -1)).long(),
        )
