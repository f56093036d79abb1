"""One number over several seeds: its mean, its spread, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom (Student, Biometrika 1908).
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

NAN = float("nan")


@dataclass(frozen=True)
class Cell:
    """A metric of one model over its seeds.

    Attributes:
        mean: over seeds; NaN where the model has no such metric.
        sd: standard deviation over seeds (n - 1), NaN for a single seed.
        low: lower end of the 95 % interval of the mean, NaN if there is none.
        high: upper end.
        seeds: n, how many seeds were averaged.
    """

    mean: float = NAN
    sd: float = NAN
    low: float = NAN
    high: float = NAN
    seeds: int = 0

    @property
    def missing(self) -> bool:
        """Whether there is no number."""
        return not math.isfinite(self.mean)

    @property
    def has_interval(self) -> bool:
        """Whether it is known how sure the number is."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def overlaps(self, other: Cell) -> bool:
        """Whether the two intervals have a point in common; NaN ends never do."""
        return self.low <= other.high and other.low <= self.high


def summarise(
    values: Sequence[float],
    lows: Sequence[float] = (),
    highs: Sequence[float] = (),
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Cell:
    """Mean over seeds with an interval that holds both kinds of luck: of training and of the choice of test images.

    With n values v_i and their bootstrap ends l_i over test images, the lower end is
    mean - sqrt((t s / sqrt(n))^2 + d^2), where s is the standard deviation over seeds, t the 97.5 % point of
    Student's t with n - 1 degrees of freedom and d the mean of v_i - l_i; the upper end likewise. The second part is
    not divided by n: all seeds are judged on the same images. With one seed only the second part is left.

    Args:
        values: one per seed; NaN ones are left out.
        lows: lower bootstrap ends in the same order, NaN or nothing where there are none.
        highs: upper ends.
        bounds: where the metric can lie; the interval is cut there.
    """
    ends = list(zip(lows, highs, strict=True)) if len(lows) else [(NAN, NAN)] * len(values)
    known = [(v, low, high) for v, (low, high) in zip(values, ends, strict=True) if math.isfinite(v)]
    if not known:
        return Cell()
    n, mean = len(known), math.fsum(v for v, _, _ in known) / len(known)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v, _, _ in known) / (n - 1)) if n > 1 else NAN
    training = student(n - 1) * sd / math.sqrt(n) if n > 1 else 0.0
    below = [v - low for v, low, _ in known if math.isfinite(low)]
    above = [high - v for v, _, high in known if math.isfinite(high)]
    if n == 1 and not (below and above):
        return Cell(mean, sd, NAN, NAN, n)
    down, up = (math.hypot(training, math.fsum(d) / len(d) if d else 0.0) for d in (below, above))
    return Cell(mean, sd, max(bounds[0], mean - down), min(bounds[1], mean + up), n)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t; past 30 degrees of freedom by one Cornish-Fisher term."""
    if freedom <= len(T95):
        return T95[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom)
