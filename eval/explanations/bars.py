"""The bar chart of reasons: names, values, differences, one row per entry of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitrarium.eval.explanations import words
from vitrarium.eval.explanations.reasons import Entry, Explanation
from vitrarium.eval.explanations.sheet import INK, SOFT, Sheet, short, width, wrap

FOR, AGAINST, SET = "#2f7f79", "#c4573a", "#8a6d00"


@dataclass
class Chart:
    """Where the columns of a chart stand, in inches, and how high its rows are.

    Attributes:
        entries: one row each, reasons first, constants last.
        foot: lines under the chart.
        left: edge of the names.
        values: edge of the values.
        bars: left edge of the bars.
        right: right edge of the bars.
        row: height of a row.
        size: of the letters, in points.
        percents: whether probabilities stand beside the values.
    """

    entries: list[Entry]
    foot: list[str]
    left: float
    values: float
    bars: float
    right: float
    row: float
    size: float
    percents: bool

    @staticmethod
    def of(e: Explanation, left: float, right: float, least: float, size: float = 9.5, percents: bool = True) -> Chart:
        """Columns as wide as their longest words, rows that fill a height of ``least`` where they can."""
        start, *rest = e.ledger()
        entries, scale = [*rest, start], size / 9.5
        names = max(width(x.what, size) for x in entries)
        values = max([width(x.reason.value, size, "bold") for x in entries if x.reason] + [0.6 * scale])
        beside = (0.95 if percents or any(r.corrected for r in e.shown) else 0.1) * scale
        names, values = min(names, 0.34 * (right - left)), min(values, 0.28 * (right - left))
        bars = left + names + 0.15 + values + beside
        foot = [x for said in words.margin_words(e) for x in wrap(said, right - left, size - 1)]
        row = min(0.4, max(0.29 * scale, (least - 0.5 - 0.17 * len(foot)) / len(entries)))
        return Chart(entries, foot, left, left + names + 0.15, bars, right, row, size, percents)

    @property
    def height(self) -> float:
        """Of heading, rows and foot."""
        return 0.26 + self.row * len(self.entries) + 0.15 + 0.17 * len(self.foot)

    def draw(self, sheet: Sheet, e: Explanation, top: float) -> None:
        """Draw the chart with its heading at height ``top``."""
        small, room = self.size - 1, (self.right - self.bars) / 2 - 0.05
        sheet.text(self.values - 0.15, top, e.kind, size=small, color=SOFT, ha="right")
        saw = "response" if not e.named else "what the model saw" if self.percents else "seen"
        sheet.text(self.values, top, saw, size=small, color=SOFT)
        sheet.text(self.bars, top, short(f"◂ for {e.rival}", room, small), size=small, color=AGAINST)
        sheet.text(self.right, top, short(f"for {e.label} ▸", room, small), size=small, color=FOR, ha="right")
        self._bars(sheet, top + 0.26)
        foot = top + 0.26 + self.row * len(self.entries) + 0.12
        for place, line in enumerate(self.foot):
            colour = SOFT if e.additive else SET
            sheet.text(self.right, foot + 0.17 * place, line, size=small, color=colour, ha="right")

    def _bars(self, sheet: Sheet, start: float) -> None:
        """The rows, from height ``start`` down."""
        count = len(self.entries)
        axes = sheet.axes(self.bars, start, self.right - self.bars, self.row * count)
        values = [x.share.difference for x in self.entries]
        # Room for the number beside the longest bar.
        beside = 2 * width("+00.00", self.size - 1) / (self.right - self.bars)
        reach = max([abs(v) for v in values] + [1e-6]) / max(0.3, 0.92 - beside)
        axes.set(xlim=(-reach, reach), ylim=(count - 0.5, -0.5))
        axes.axvline(0, color=SOFT, linewidth=0.8)
        for place, (entry, value) in enumerate(zip(self.entries, values, strict=True)):
            self._words(sheet, entry, start + self.row * (place + 0.5))
            soft, side = entry.reason is None, 1 if value >= 0 else -1
            axes.barh(place, value, height=0.6, color=FOR if value > 0 else AGAINST, alpha=0.4 if soft else 1.0)
            style: dict[str, Any] = {
                "va": "center",
                "ha": "left" if value >= 0 else "right",
                "color": SOFT if soft else INK,
            }
            axes.text(value + 0.025 * side * reach, place, words.signed(value), size=self.size - 1, **style)

    def _words(self, sheet: Sheet, entry: Entry, y: float) -> None:
        """Name and value of one row, centred at height ``y``."""
        reason, edge, size = entry.reason, self.values - 0.15, self.size
        name = {"size": size, "ha": "right", "va": "center"}
        what = short(entry.what, edge - self.left + 0.02, size)
        if reason is None:
            sheet.text(edge, y, what, color=SOFT, style="italic", **name)
            return
        sheet.text(edge, y, what, **name)
        beside_it = 0.93 * size / 9.5 if self.percents or reason.corrected else 0.08
        value = short(reason.value, self.bars - self.values - beside_it, size, "bold")
        colour = SET if reason.corrected else INK
        sheet.text(self.values, y, value, size=size, weight="bold", color=colour, va="center")
        beside = {"size": size - 1, "ha": "right", "va": "center"}
        if reason.corrected:
            sheet.text(self.bars - 0.16, y, "corrected", color=SET, style="italic", **beside)
        elif self.percents and reason.probability is not None:
            sheet.text(self.bars - 0.16, y, words.percent(reason.probability), color=SOFT, **beside)
