"""An explanation as one picture: the image, the answer, the reasons as bars, the maps."""

from __future__ import annotations

from vitrarium.eval.explanations import heat, looks, words
from vitrarium.eval.explanations.bars import AGAINST, FOR, SET, Chart
from vitrarium.eval.explanations.maps import draw_maps, draw_scale, mapped
from vitrarium.eval.explanations.reasons import Explanation
from vitrarium.eval.explanations.sheet import INK, PALE, SOFT, Sheet, short, wrap

# The page in inches.
WIDTH, MARGIN, LEFT, GAP = 12.0, 0.45, 3.1, 0.5
CLASS_ROW, MAPS, BETWEEN = 0.34, 6, 0.18
FULL = WIDTH - 2 * MARGIN
SIDE = (FULL - BETWEEN * (MAPS - 1)) / MAPS
PAIRS, ROWS, BESIDE = 3, 2, 0.38
PAIR = (FULL - BESIDE * (PAIRS - 1)) / PAIRS / 2 - 0.04


def picture(explanation: Explanation, dpi: int = 150) -> bytes:
    """The bytes of a PNG file, 12 inches wide and as high as it needs."""
    e = explanation
    said = wrap(e.sentence(), FULL, 11)
    notes = (words.abstention_words(e), words.correction_words(e), words.units_words(e))
    noted = [x for note in notes for x in wrap(note, FULL, 9.5)]
    pairs = looks.weightiest(e, PAIRS * ROWS)
    maps = [] if pairs else mapped(e, MAPS)
    small = looks.legend_rows(e, FULL) if pairs else wrap(words.map_words(e), FULL, 8)
    classes = list(e.probabilities.items())[:5]
    beside = LEFT + 0.35 + CLASS_ROW * len(classes)
    chart = Chart.of(e, MARGIN + LEFT + GAP, WIDTH - MARGIN, least=beside)
    top = MARGIN + 0.72 + 0.235 * len(said) + (0.1 + 0.205 * len(noted) if noted else 0)
    body = max(beside, chart.height)
    rows = -(-len(pairs) // PAIRS)
    below = (0.95 + SIDE + 0.16 * len(small)) if maps else 0.0
    if pairs:
        below = 0.75 + rows * (looks.height(PAIR) + 0.12) + 0.16 * len(small)
    sheet = Sheet(WIDTH, top + body + below + 0.45)
    _head(sheet, e, said, noted)
    looks.picture(sheet.axes(MARGIN, top, LEFT, LEFT), heat.enlarge(e.image), None, None, bans=e.bans)
    _classes(sheet, e, classes, top + LEFT + 0.22)
    chart.draw(sheet, e, top)
    if maps:
        start = top + body + 0.1
        sheet.text(MARGIN, start, words.map_title(e), size=11, weight="bold")
        draw_scale(sheet, WIDTH - MARGIN, start)
        draw_maps(sheet, e, maps, MARGIN, start + 0.72, SIDE, BETWEEN)
        for place, line in enumerate(small):
            sheet.text(MARGIN, start + 0.82 + SIDE + 0.16 * place, line, size=8, color=SOFT)
    if pairs:
        start = top + body + 0.1
        sheet.text(MARGIN, start, "This looks like that", size=11, weight="bold")
        for place, line in enumerate(small):
            sheet.text(MARGIN, start + 0.23 + 0.16 * place, line, size=8, color=SOFT)
        start += 0.27 + 0.16 * len(small)
        looks.draw_legend(sheet, e, MARGIN, start)
        looks.draw_pairs(sheet, e, pairs, MARGIN, start + 0.34, PAIR, BESIDE, PAIRS)
    sheet.text(MARGIN, sheet.height - 0.27, "Vitrarium · research use, not a medical device", size=7.5, color=SOFT)
    drawn = sheet.png(dpi)
    if e.walk is None:
        return drawn
    from vitrarium.eval.explanations.tree_drawing import path_picture

    return heat.stacked([drawn, path_picture(e.walk, dpi)])


def _head(sheet: Sheet, e: Explanation, said: list[str], noted: list[str]) -> None:
    title = short(f"Why {e.label}, and not {e.rival}?", FULL, 19, "bold")
    sheet.text(MARGIN, MARGIN - 0.05, title, size=19, weight="bold")
    y = MARGIN + 0.46
    for line in said:
        sheet.text(MARGIN, y, line, size=11)
        y += 0.235
    for line in noted:
        sheet.text(MARGIN, y + 0.07, line, size=9.5, color=SET)
        y += 0.205


def _classes(sheet: Sheet, e: Explanation, classes: list[tuple[str, float]], y: float) -> None:
    """The probabilities of the first classes, as thin bars."""
    for label, probability in classes:
        chosen, rival = label == e.label, label == e.rival
        weight = "bold" if chosen else "normal"
        name = short(label, LEFT - 0.8, 9.5, weight)
        sheet.text(MARGIN, y, name, size=9.5, weight=weight, color=INK if chosen or rival else SOFT)
        sheet.text(MARGIN + LEFT, y, words.percent(probability), size=9.5, weight=weight, ha="right")
        axes = sheet.axes(MARGIN, y + 0.18, LEFT, 0.055)
        axes.barh([0], [1], color=PALE, height=1)
        axes.barh([0], [probability], color=FOR if chosen else AGAINST if rival else "#aab4bd", height=1)
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
        y += CLASS_ROW
