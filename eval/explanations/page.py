"""An explanation as one page that needs nothing else: no network, no script."""

from __future__ import annotations

from typing import Any

from vitrarium.eval.explanations import heat, words
from vitrarium.eval.explanations.reasons import Entry, Explanation, Reason


def page(explanation: Explanation) -> str:
    """The text of an HTML file with its pictures inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vitrarium.eval.explanations", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("explanation.html").render(content(explanation))


def content(e: Explanation) -> dict[str, Any]:
    """What the template shows, all numbers already in words."""
    ledger = e.ledger()
    longest = max([abs(x.share.difference) for x in ledger] + [1e-9])
    return {
        "e": e,
        "image": heat.data_address(heat.png(heat.enlarge(e.image))),
        "sentence": e.sentence(),
        "notes": [x for x in (words.abstention_words(e), words.correction_words(e), words.units_words(e)) if x],
        "classes": [
            {
                "name": name,
                "shown": words.percent(p),
                "width": f"{100 * p:.1f}",
                "role": "for" if name == e.label else "against" if name == e.rival else "other",
            }
            for name, p in list(e.probabilities.items())[:8]
        ],
        "lines": [_line(x, longest, first=x is ledger[0]) for x in ledger],
        "margin": words.margin_words(e),
        "logit": words.plain(e.logit.label),
        "logit_rival": words.plain(e.logit.rival),
        "lead": words.signed(e.logit.difference),
        "map_title": words.map_title(e),
        "map_words": words.map_words(e),
        "maps": [_map(e, r) for r in e.shown if r.map is not None],
    }


def _line(entry: Entry, longest: float, first: bool) -> dict[str, Any]:
    """One row of the table."""
    reason, difference = entry.reason, entry.share.difference
    said = reason is not None and not reason.corrected and reason.probability is not None
    return {
        "what": entry.what,
        "value": reason.value if reason else "",
        "probability": words.percent(reason.probability) if said and reason and reason.probability is not None else "",
        "corrected": bool(reason and reason.corrected),
        "sum": reason is None,
        "label": words.plain(entry.share.label) if first else words.signed(entry.share.label),
        "rival": words.plain(entry.share.rival) if first else words.signed(entry.share.rival),
        "difference": words.signed(difference),
        "side": "for" if difference > 0 else "against",
        "width": f"{50 * abs(difference) / longest:.1f}",
        "running": words.plain(entry.running.label),
        "running_rival": words.plain(entry.running.rival),
    }


def _map(e: Explanation, reason: Reason) -> dict[str, Any]:
    """One picture of the row of maps."""
    assert reason.map is not None
    difference = reason.share.difference
    return {
        "title": reason.title,
        "value": reason.value if reason.probability is not None else f"response {reason.value}",
        "corrected": reason.corrected,
        "difference": words.signed(difference),
        "side": "for" if difference > 0 else "against" if difference < 0 else "none",
        "image": heat.data_address(heat.png(heat.overlay(e.image, reason.map, 224))),
    }
