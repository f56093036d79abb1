"""An explanation as a small card, to set several models side by side."""

from __future__ import annotations

from dataclasses import replace

from vitrarium.eval.explanations import heat, looks, words
from vitrarium.eval.explanations.bars import SET, Chart
from vitrarium.eval.explanations.maps import draw_maps, mapped
from vitrarium.eval.explanations.reasons import Explanation
from vitrarium.eval.explanations.sheet import SOFT, Sheet, short, width, wrap

# The card in inches.
WIDTH, MARGIN, IMAGE, MAPS, BETWEEN = 6.4, 0.2, 1.35, 5, 0.12
FULL = WIDTH - 2 * MARGIN
SIDE = (FULL - BETWEEN * (MAPS - 1)) / MAPS


def card(explanation: Explanation, top: int = 5, dpi: int = 150) -> bytes:
    """The bytes of a PNG file, 6.4 inches wide: answer, image, the ``top`` reasons, their maps."""
    e = replace(explanation, top=top)
    left = MARGIN + IMAGE + 0.2
    chart = replace(Chart.of(e, left, WIDTH - MARGIN, least=0.0, size=8.0, percents=False), foot=[])
    noted = wrap(_note(e), FULL, 7.5)
    pairs = looks.weightiest(e, MAPS)
    maps = [] if pairs else mapped(e, MAPS)
    start = 0.72
    body = max(IMAGE + 0.1, chart.height)
    notes = start + body + 0.02
    below = notes + 0.15 * len(noted) + (0.12 if noted else 0.0)
    pictures = 0.5 + SIDE if maps else 0.45 + 2 * SIDE if pairs else 0.0
    sheet = Sheet(WIDTH, below + pictures + MARGIN)
    first = e.probabilities[e.label]
    answer = short(e.label, 0.6 * FULL, 13, "bold")
    sheet.text(MARGIN, 0.12, answer, size=13, weight="bold")
    beside = MARGIN + width(answer, 13, "bold") + 0.1
    sheet.text(beside, 0.15, words.percent(first), size=11, color=SOFT)
    second = f"rather than {e.rival} ({words.percent(e.probabilities[e.rival])})"
    sheet.text(MARGIN, 0.39, short(second, FULL, 8.5), size=8.5, color=SOFT)
    looks.picture(sheet.axes(MARGIN, start, IMAGE, IMAGE), heat.enlarge(e.image), None, None, bans=e.bans)
    chart.draw(sheet, e, start)
    for place, line in enumerate(noted):
        sheet.text(MARGIN, notes + 0.15 * place, line, size=7.5, color=SET)
    draw_maps(sheet, e, maps, MARGIN, below + 0.45, SIDE, BETWEEN, size=7.0)
    looks.draw_columns(sheet, e, pairs, MARGIN, below + 0.2, SIDE, BETWEEN)
    return sheet.png(dpi)


def _note(e: Explanation) -> str:
    """What must not be left out, in few words."""
    said = [words.abstention_words(e)] if e.abstained is not None else []
    if e.before is not None:
        said.append(words.correction_words(e))
    if not e.units_take_part:
        said.append(f"The decision never sees these {e.kind}s: they are not its reasons.")
    elif not e.named and e.looks:
        said.append(f"{words.prototype_words(e)} Below: the place in this image, and the training patch.")
    elif not e.named:
        said.append(f"The {e.kind}s have no names: this says where the model looked, not what it saw.")
    if not e.additive:
        said.append("Approximate: the bars are a first-order account and no exact sum.")
    return " ".join(said)
