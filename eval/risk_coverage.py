"""What is gained by not answering: records, curve and picture of a model that withholds its least sure answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrarium.configs.files import whole_file
from vitrarium.eval.collect import Collected
from vitrarium.eval.interventions.plot import COLOURS, DASHES, MARKERS
from vitrarium.eval.metrics.resampling import Bootstrap, Interval
from vitrarium.eval.metrics.selective import RankedMetric, risk_at_coverage
from vitrarium.eval.scorecard import Scorecard
from vitrarium.models.abstention import Ranked, confidence_of

RANKED = ("aurc", "excess_aurc", "risk_at_coverage", "coverage_at_risk")
FIXED = ("coverage_at_threshold", "risk_at_threshold")
COLUMNS = (
    "run", "preset", "family", "data", "split", "scope", "seed", "coverage", "answered", "threshold", "risk", "low",
    "high",
)  # fmt: skip
# Points of the curve: every hundredth of the images.
GRID = torch.arange(1, 101, dtype=torch.float64) / 100
_NUMBERS_AT_ONCE = 2_000_000


@dataclass
class RiskCurve:
    """Error among the answered against the share that is answered, at every hundredth of coverage.

    Attributes:
        scope: which images.
        images: how many.
        coverage: (K,) share that was asked for.
        answered: (K,) share that is answered: more where images of equal confidence stand at the border.
        threshold: (K,) confidence from which on images are answered.
        risk: (K,) error among the answered.
        low: (K,) lower end of the 95 % interval at this share; NaN without one.
        high: (K,) upper end.
        at: (coverage, risk) of the model's own threshold, or None.
    """

    scope: str
    images: int
    coverage: Tensor
    answered: Tensor
    threshold: Tensor
    risk: Tensor
    low: Tensor
    high: Tensor
    at: tuple[float, float] | None = None

    def rows(self) -> list[dict[str, float]]:
        """One mapping per point."""
        names = ("coverage", "answered", "threshold", "risk", "low", "high")
        columns = [getattr(self, name).tolist() for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def selective_records(card: Scorecard, scope: str, collected: Collected, boot: Bootstrap) -> RiskCurve:
    """File the area under the risk-coverage curve and what the model's threshold does; give the curve.

    The order is that of the model's own score, or of the probability where it has no threshold.
    """
    abstention = card.model.abstention
    score = "probability" if abstention is None else abstention.score
    metrics = {name: card.metric(name, score=score) for name in RANKED}
    wrong = collected.logits.argmax(-1) != collected.labels
    ranked = Ranked(confidence_of(collected.logits, score), wrong)
    steps = ranked.steps()
    drawn = _draws(ranked, list(metrics.values()), boot)
    low, high = boot.intervals(drawn)
    for place, (name, metric) in enumerate(metrics.items()):
        interval = Interval(float(low[place]), float(high[place]))
        card.add(name, scope, metric.of(*steps), interval, {**metric.choices, **boot.choices})
    at = None
    if abstention is not None:
        card.add_sums(
            FIXED, scope, collected.logits, collected.labels, boot, threshold=abstention.threshold, score=score
        )
        at = (card.records[-2].value, card.records[-1].value)
    risk, answered = risk_at_coverage(*steps, GRID)
    # The confidence at the border: of the last image that is answered.
    border = torch.searchsorted(steps[0], (answered * len(ranked)).round())
    curve = (low[len(metrics) :], high[len(metrics) :])
    return RiskCurve(scope, len(ranked), GRID, answered, ranked.thresholds[border], risk, *curve, at)


def _draws(ranked: Ranked, metrics: Sequence[RankedMetric], boot: Bootstrap) -> Tensor:
    """Resampled metrics, then the resampled risk at each point of the curve: (S, metrics + K)."""
    if not boot.samples:
        return torch.zeros(0, len(metrics) + len(GRID), dtype=torch.float64)

    def statistic(counts: Tensor) -> Tensor:
        found = []
        for part in counts.split(max(1, _NUMBERS_AT_ONCE // len(ranked))):
            steps = ranked.steps(part)
            risks = risk_at_coverage(*steps, GRID.expand(len(part), -1))[0]
            found.append(torch.cat([torch.stack([metric.of(*steps) for metric in metrics], 1), risks], 1))
        return torch.cat(found)

    return boot.draws(statistic)


def curve_rows(card: Scorecard, curves: Sequence[RiskCurve]) -> list[dict[str, Any]]:
    """Rows of ``risk_coverage.csv``."""
    return [{**card.row(curve.scope), **row} for curve in curves for row in curve.rows()]


def plot_risk_coverage(curves: Sequence[RiskCurve], path: str | Path, title: str = "") -> Path:
    """Draw curves as PNG, one line per scope, with a 95 % band and a large mark where the model's threshold lies."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, curve in enumerate(curves):
        colour, dashes = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
        x = curve.answered.numpy()
        axes.plot(
            x, curve.risk.numpy(), color=colour, linestyle=dashes, linewidth=1.6,
            label=f"{curve.scope} ({curve.images:,} images)",
        )  # fmt: skip
        axes.fill_between(x, curve.low.numpy(), curve.high.numpy(), color=colour, alpha=0.13, lw=0)
        if curve.at is not None and curve.at[0] > 0:
            axes.plot(*curve.at, MARKERS[place % len(MARKERS)], color=colour, markersize=8, markeredgecolor="white")
    axes.set(xlabel="share of the images that is answered", ylabel="error among the answered", xlim=(0, 1.01))
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    marks = "mark: the threshold saved with the model; " if any(c.at is not None for c in curves) else ""
    figure.suptitle("\n".join(filter(None, [title, f"{marks}bands: 95 % bootstrap over images"])), fontsize=9, x=0.01,
                    ha="left")  # fmt: skip
    path = Path(path)
    with whole_file(path) as beside:
        figure.savefig(beside, format="png")
    return path
