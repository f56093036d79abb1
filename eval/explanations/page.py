"""An explanation as one page that needs nothing else: no network, no script."""

from __future__ import annotations

from typing import Any

from vitrarium.data.corrections import Box
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
    from markupsafe import Markup

    from vitrarium.eval.explanations.tree_drawing import path_html

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
        "maps": [] if e.looks else [_map(e, r) for r in e.shown if r.map is not None],
        "looks": [_look(e, x) for x in e.looks],
        "path": "" if e.walk is None else Markup(path_html(e.walk)),
        "bans": [_css(box) for box in e.bans],
        "banned": bool(e.bans or any(r.bans for r in e.shown)),
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


def _look(e: Explanation, entry: Entry) -> dict[str, Any]:
    """One prototype: the place in the image, the training patch, the heat, and what they are worth."""
    reason, difference = entry.reason, entry.share.difference
    assert reason is not None
    assert reason.match is not None
    match, source = reason.match, reason.source
    saw, adds, drift, claim = words.look_words(e, entry)
    known = source is not None and source.picture is not None
    return {
        "title": reason.title,
        "owner": f"of {match.owner}" if match.owner else "shared",
        "corrected": reason.changed,
        "difference": words.signed(difference),
        "side": "for" if difference > 0 else "against" if difference < 0 else "none",
        "saw": saw,
        "adds": adds,
        "drift": drift,
        "stale": source is None or not source.current,
        "claim": claim,
        "fails": match.holds is False,
        "box": _css(match.box),
        "field": _css(match.field),
        "bans": [_css(box) for box in (*e.bans, *reason.bans)],
        "image": heat.data_address(heat.png(heat.enlarge(e.image, 224))),
        "origin": f"image {source.index}, {source.label or 'class unknown'}" if source else "training patch",
        "nothing": "" if known else "no picture kept" if source else "not projected: no picture",
        "picture": heat.data_address(heat.png(heat.enlarge(source.picture, 224))) if known else "",  # type: ignore[union-attr,arg-type]
        "source_box": _css(source.box) if source else "",
        "source_field": _css(source.field) if source else "",
        "heat": "" if reason.map is None else heat.data_address(heat.png(heat.overlay(e.image, reason.map, 224))),
    }


def _css(box: Box | None) -> str:
    """A box as a place on a picture; "" for none."""
    if box is None:
        return ""
    left, top, right, bottom = (100 * edge for edge in box)
    return f"left: {left:.2f}%; top: {top:.2f}%; width: {right - left:.2f}%; height: {bottom - top:.2f}%"


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
