"""How far a number could have come out otherwise with other images of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.eval.metrics.base import SumMetric

_FLOATS_AT_ONCE = 16_000_000

EACH_LABEL = "images of each label"
"""What a stratified resampling is over, for records."""


class Interval(NamedTuple):
    """A 95 % interval; NaN ends where there is none."""

    low: float
    high: float


NO_INTERVAL = Interval(float("nan"), float("nan"))


class Bootstrap:
    """Percentile intervals over images, or over whatever else is averaged (Efron, The Annals of Statistics 1979).

    A resample of N images with replacement is the vector of how often each image was drawn. These counts are drawn once
    and used for every metric, so differences between metrics are paired; and a metric that is a function of sums over
    images needs only counts @ parts, one matrix product for all resamples.

    Args:
        images: N.
        samples: S resamples; 0 gives no intervals.
        seed: of the resamples.
        level: share of the resamples inside the interval.
        over: what the N are, for records.

    Note:
        The percentile interval of a biased statistic (a calibration error is never negative) is shifted as the
        statistic is, and need not contain the value.
    """

    def __init__(
        self, images: int, samples: int = 1000, seed: int = 0, level: float = 0.95, over: str = "images"
    ) -> None:
        if samples < 0 or not 0 < level < 1:
            raise UserError(f"bootstrap with samples={samples}, level={level}", "samples >= 0 and 0 < level < 1")
        self.images, self.samples, self.seed, self.level, self.over = images, samples, seed, level, over
        # 16 bits: an image can be drawn at most N times, and for large N practically never more than 20 times.
        self._counts = self._draw()

    def _draw(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        counts = torch.zeros(self.samples, self.images, dtype=torch.int16)
        for sample in range(self.samples if self.images else 0):
            drawn = torch.randint(self.images, (self.images,), generator=generator)
            counts[sample] = torch.bincount(drawn, minlength=self.images)
        return counts

    @property
    def choices(self) -> dict[str, Any]:
        """How intervals are made, for records."""
        return described(self.over, self.samples, self.level)

    def counts(self) -> Iterator[Tensor]:
        """The counts (s, N) as float32, a few resamples at a time so that memory stays bounded."""
        step = max(1, _FLOATS_AT_ONCE // max(1, self.images))
        for start in range(0, self.samples, step):
            yield self._counts[start : start + step].float()

    def sums(self, parts: Tensor) -> Tensor:
        """Resampled sums (S, J) float32 of what each image adds (N, J)."""
        if len(parts) != self.images:
            raise ValueError(f"{len(parts)} rows of parts for a bootstrap over {self.images} images")
        parts = parts.float()
        drawn = [counts @ parts for counts in self.counts()]
        return torch.cat(drawn) if drawn else parts.new_zeros(0, parts.shape[1])

    def interval(self, draws: Tensor) -> Interval:
        """The interval of a statistic drawn S times; undefined draws (NaN) are left out."""
        low, high = self.intervals(draws[:, None])
        return Interval(float(low[0]), float(high[0]))

    def intervals(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends (J,) for J statistics (S, J)."""
        if self.samples == 0 or self.images == 0:
            nothing = torch.full(draws.shape[1:], float("nan"), dtype=torch.float64)
            return nothing, nothing.clone()
        tail = (1 - self.level) / 2
        ends = torch.nanquantile(draws.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
        return ends[0], ends[1]

    def of_mean(self, values: Tensor) -> Interval:
        """The interval of the mean of values (N,)."""
        low, high = self.of_means(values[:, None])
        return Interval(float(low[0]), float(high[0]))

    def of_means(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends (J,) for the means of the columns of (N, J)."""
        return self.intervals(self.sums(values) / max(1, self.images))

    def of_metric(self, metric: SumMetric, parts: Tensor) -> Interval:
        """The interval of a metric that is a function of sums, from what each image adds (N, J)."""
        return self.interval(metric.finish(self.sums(parts)))

    def draws(self, statistic: Callable[[Tensor], Tensor]) -> Tensor:
        """Any statistic of the counts: ``statistic`` maps (s, N) counts to (s, ...) values."""
        return torch.cat([statistic(counts) for counts in self.counts()])


def described(over: str, samples: int, level: float = 0.95) -> dict[str, Any]:
    """How intervals are made, for records, without making any."""
    return {"interval": f"{100 * level:g} % percentile bootstrap over {over}, {samples} resamples"}


class StratifiedBootstrap(Bootstrap):
    """Resamples in which each stratum keeps its size: of a concept, images that have it and images that have not.

    An AUC is a mean over pairs of one of each; whoever draws them apart never loses the few positives of a rare
    concept, and asks how it would come out with other images of both kinds.

    Args:
        strata: (N,) int or bool, the stratum of each image.
        samples: S resamples; 0 gives no intervals.
        seed: of the resamples.
        level: share of the resamples inside the interval.
    """

    def __init__(self, strata: Tensor, samples: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        self.strata = strata
        super().__init__(len(strata), samples, seed, level, EACH_LABEL)

    def _draw(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        counts = torch.zeros(self.samples, self.images, dtype=torch.int16)
        for stratum in self.strata.unique():
            members = (self.strata == stratum).nonzero()[:, 0]
            drawn = members[torch.randint(len(members), (self.samples, len(members)), generator=generator)]
            counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.int16))
        return counts


def bootstrap(
    values: Tensor | Callable[[Tensor], Tensor],
    images: int | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of a mean, or of any statistic of resample counts.

    Args:
        values: (N,) one value per image, whose mean is the statistic; or a function from counts (s, N), how often each
            image was drawn in each of s resamples, to the statistic (s,).
        images: N, needed when ``values`` is a function.
        samples: number of resamples.
        seed: of the resamples.
        level: share of the resamples inside the interval.

    Example:
        >>> low, high = bootstrap(torch.tensor([0.0, 1.0, 1.0, 1.0]))
        >>> low <= 0.75 <= high
        True
    """
    if callable(values):
        if images is None:
            raise UserError("a bootstrap of a function needs the number of images", "give images=N")
        boot = Bootstrap(images, samples, seed, level)
        return boot.interval(boot.draws(values)) if samples and images else NO_INTERVAL
    boot = Bootstrap(len(values), samples, seed, level)
    return boot.of_mean(values)
