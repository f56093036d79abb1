"""Explanations as files: picture, page or numbers, by suffix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError
from vitrarium.configs.files import write_bytes
from vitrarium.data.corrections import Box
from vitrarium.eval.explanations import heat
from vitrarium.eval.explanations.patches import Match, Source
from vitrarium.eval.explanations.reasons import Explanation, Reason, Share, Unit
from vitrarium.eval.explanations.tree import Walk

SUFFIXES = (".png", ".html", ".json")


def save(explanation: Explanation, path: Path) -> Path:
    """See :meth:`Explanation.save`."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"an explanation cannot be saved as '{path.name}'", f"end the name in one of: {', '.join(SUFFIXES)}"
        )
    if suffix == ".png":
        from vitrarium.eval.explanations.picture import picture

        content = picture(explanation)
    elif suffix == ".html":
        from vitrarium.eval.explanations.page import page

        content = page(explanation).encode("utf-8")
    else:
        content = (json.dumps(to_dict(explanation), indent=1, ensure_ascii=False) + "\n").encode("utf-8")
    write(path, content)
    return path


def write(path: Path, content: bytes) -> None:
    """The file, whole or not at all."""
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror or error})", "choose another place") from error


def to_dict(e: Explanation) -> dict[str, Any]:
    """Plain containers. ``reasons`` hold the lines, ``ledger`` how they add up, ``units`` everything."""
    return {
        "sentence": e.sentence(),
        "label": e.label,
        "rival": e.rival,
        "asked": e.asked,
        "probabilities": e.probabilities,
        "logit": e.logit.to_dict(),
        "additive": e.additive,
        "kind": e.kind,
        "named": e.named,
        "before": None if e.before is None else {"label": e.before[0], "probability": e.before[1]},
        "abstained": None if e.abstained is None else {"confidence": e.abstained[0], "threshold": e.abstained[1]},
        "ledger": [
            {"what": x.what, **x.share.to_dict(), "running": x.running.label, "running_rival": x.running.rival}
            for x in e.ledger()
        ],
        "reasons": [_reason(r) for r in e.reasons],
        "units": [
            {
                **{k: getattr(u, k) for k in ("name", "activation", "probability", "corrected")},
                **u.share.to_dict(),
            }
            for u in e.units
        ],
        "remainder": e.remainder.to_dict(),
        "bias": e.bias.to_dict(),
        "unexplained": e.unexplained.to_dict(),
        "has_remainder": e.has_remainder,
        "top": e.top,
        "image": heat.data_address(heat.png(e.image)),
        "bans": [list(box) for box in e.bans],
        "walk": None if e.walk is None else e.walk.to_dict(),
    }


def _reason(r: Reason) -> dict[str, Any]:
    """Plain containers of one line."""
    return {
        **{k: getattr(r, k) for k in ("name", "value", "probability", "corrected")},
        **r.share.to_dict(),
        "map": None if r.map is None else np.asarray(r.map, dtype=np.float64).tolist(),
        "bans": [list(box) for box in r.bans],
        "match": None if r.match is None else r.match.to_dict(),
        "source": None if r.source is None else r.source.to_dict(),
    }


def from_dict(data: Mapping[str, Any]) -> Explanation:
    """Inverse of :func:`to_dict`."""

    def share(of: Mapping[str, Any]) -> Share:
        return Share(float(of["label"]), float(of["rival"]))

    def boxes(of: Mapping[str, Any]) -> tuple[Box, ...]:
        return tuple((box[0], box[1], box[2], box[3]) for box in of.get("bans", []))

    # Files of earlier versions say nothing of abstaining, of places, and of what prototypes look like.
    before, withheld = data["before"], data.get("abstained")
    plain = {k: data[k] for k in ("label", "rival", "asked", "additive", "kind", "named", "has_remainder", "top")}
    shares: dict[str, Any] = {k: share(data[k]) for k in ("logit", "remainder", "bias", "unexplained")}
    return Explanation(
        **plain,
        **shares,
        probabilities=dict(data["probabilities"]),
        reasons=[
            Reason(
                **{k: r[k] for k in ("name", "value", "probability", "corrected")},
                share=share(r),
                map=None if r["map"] is None else np.asarray(r["map"], dtype=np.float32),
                bans=boxes(r),
                match=Match.from_dict(r.get("match")),
                source=Source.from_dict(r.get("source")),
            )
            for r in data["reasons"]
        ],
        units=[
            Unit(**{k: u[k] for k in ("name", "activation", "probability", "corrected")}, share=share(u))
            for u in data["units"]
        ],
        before=None if before is None else (before["label"], before["probability"]),
        abstained=None if withheld is None else (withheld["confidence"], withheld["threshold"]),
        image=heat.from_data_address(data["image"]),
        bans=boxes(data),
        walk=Walk.from_dict(data["walk"]) if data.get("walk") else None,
    )


def load(path: Path) -> Explanation:
    """See :meth:`Explanation.load`."""
    if not path.is_file():
        raise UserError(f"'{path}' does not exist or is no file", "check the path")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return from_dict(data)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no explanation ({error})", "give a .json that Explanation.save wrote") from error
