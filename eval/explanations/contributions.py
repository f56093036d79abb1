"""Why this class and not the runner-up: contributions of the units, through the anatomy that all models share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptGroup
from vitrarium.data.corrections import Corrections
from vitrarium.eval.explanations.base import EXPLAINERS
from vitrarium.eval.explanations.prototypes import looks_of
from vitrarium.eval.explanations.reasons import Explanation, Reason, Share, Unit, pick_rival, total
from vitrarium.eval.explanations.tree import walk_of
from vitrarium.models.abstention import confidence_of
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.intervention import Intervention
from vitrarium.models.modes import evaluating
from vitrarium.models.prediction import to_pixels
from vitrarium.models.readouts.base import Contributions
from vitrarium.models.regions import Places
from vitrarium.models.types import Evidence, Features, Output
from vitrarium.models.units import UnitTable


@EXPLAINERS.register("contributions")
def explain(
    model: TransparentClassifier,
    image: Any,
    do: Mapping[str, Any] | None = None,
    against: str | None = None,
    top: int = 12,
) -> Explanation:
    """Explain one decision of any model of the zoo.

    The margin between two logits is split over the units: z_a - z_b = sum_m (c_ma - c_mb) + (r_a - r_b) + (b_a - b_b),
    with contributions c of the readout, remainder r (what is no unit's) and bias b. A categorical group is one line:
    its chosen value with the sum over its members.

    Args:
        model: any classifier; its preprocessing is used for the image.
        image: a path, a PIL image, or an array (H, W, 3) uint8 or float in [0, 1].
        do: corrections by name, as :meth:`TransparentClassifier.predict` takes them; the decision after them is
            explained.
        against: the class to compare with; default: the runner-up.
        top: how many lines pictures and pages show one by one (at least 1); the JSON holds all.

    Raises:
        UserError: an unreadable image, an unknown unit, value or class, ``top`` below 1.
    """
    if top < 1:
        raise UserError(f"top={top} lines would explain nothing", "ask for at least 1")
    pixels = to_pixels(model, image)
    given = model.evidence.read_corrections(do) if do else Corrections()
    with evaluating(model):
        features = model.backbone(pixels)
        seen = model.answer(model.observe(features), None, features)
        made = model.intervention(do, 1, Places.of(seen.evidence, features)) if do else None
        output = seen if made is None else model.answer(seen.evidence, made, features)
        order = output.logits[0].argsort(descending=True).tolist()
        rival = pick_rival(model.class_names, order, against)
        shares = [_of_class(model, output.evidence, c) for c in (order[0], rival)]
        units = _units(model.evidence.units, output.evidence, shares, given)
        lines = _reasons(model.evidence.units, units, output.evidence.maps, given)
        if "prototypes" in model.evidence.gives:
            _look(model, pixels, features, lines, made, top)
        walk = walk_of(model, pixels, features, output.evidence, made)
    asked = against is not None
    found = _assemble(model, pixels, seen, output, (order, rival), shares, units, lines, given, asked=asked, top=top)
    return replace(found, walk=walk)


def _look(
    model: TransparentClassifier,
    pixels: Tensor,
    features: Features,
    lines: list[tuple[Reason, int]],
    do: Intervention | None,
    top: int,
) -> None:
    """Let the reasons that weigh and will be shown say what they found, and what that looks like."""
    shown = [
        (r, unit)
        for place, (r, unit) in enumerate(lines)
        if r.changed or (place < top and (r.share.label or r.share.rival))
    ]
    looks = looks_of(model, pixels, features, [unit for _, unit in shown], do)
    for reason, unit in shown:
        if unit in looks:
            reason.match, reason.source = looks[unit]


def _of_class(model: TransparentClassifier, evidence: Evidence, label: int) -> Contributions:
    """Contributions to one class, without a graph."""
    classes = torch.tensor([label], device=evidence.activations.device)
    given = model.contributions(evidence, classes)
    return Contributions(given.units.detach(), given.remainder.detach(), given.bias.detach(), given.additive)


def _assemble(
    model: TransparentClassifier,
    pixels: Tensor,
    seen: Output,
    output: Output,
    ranked: tuple[list[int], int],
    shares: list[Contributions],
    units: list[Unit],
    lines: list[tuple[Reason, int]],
    given: Corrections,
    *,
    asked: bool,
    top: int,
) -> Explanation:
    """All numbers of an explanation from what the model gave."""
    (order, rival), names, table = ranked, model.class_names, model.evidence.units
    logits, chosen = output.logits[0].double(), model.abstention
    sure = float(confidence_of(output.logits, "probability" if chosen is None else chosen.score)[0])
    probabilities, before = logits.softmax(-1), seen.logits[0].softmax(-1)
    logit = Share(float(logits[order[0]]), float(logits[rival]))
    bias, remainder = (Share(float(getattr(shares[0], w)), float(getattr(shares[1], w))) for w in ("bias", "remainder"))
    told = total([u.share for u in units] + [bias, remainder])
    return Explanation(
        label=names[order[0]],
        rival=names[rival],
        asked=asked,
        probabilities={names[c]: float(probabilities[c]) for c in order},
        logit=logit,
        reasons=[reason for reason, _ in lines],
        units=units,
        remainder=remainder,
        bias=bias,
        unexplained=Share(logit.label - told.label, logit.rival - told.rival),
        additive=all(s.additive for s in shares),
        named=table.named,
        kind=table.kind,
        has_remainder=bool((model.evidence.unit_of < 0).any()) or bool(remainder.label or remainder.rival),
        top=top,
        image=(pixels[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy(),
        before=(names[int(before.argmax())], float(before.max())) if given.units or given.everywhere else None,
        abstained=None if chosen is None or sure >= chosen.threshold else (sure, chosen.threshold),
        bans=tuple(given.everywhere),
    )


def _units(table: UnitTable, evidence: Evidence, shares: list[Contributions], given: Corrections) -> list[Unit]:
    """Every unit with its share."""
    activations, set_units = evidence.activations[0].tolist(), given.set_units
    probabilities = None if evidence.probabilities is None else evidence.probabilities[0].tolist()
    label, rival = (s.units[0].tolist() for s in shares)
    return [
        Unit(
            name=name,
            activation=activations[m],
            probability=None if probabilities is None else probabilities[m],
            share=Share(label[m], rival[m]),
            corrected=m in set_units,
        )
        for m, name in enumerate(table.names)
    ]


def _reasons(table: UnitTable, units: list[Unit], maps: Tensor | None, given: Corrections) -> list[tuple[Reason, int]]:
    """One line per categorical group or single unit with the unit that it shows, largest absolute difference first."""
    arrays = None if maps is None else maps[0].detach().float().cpu().numpy()
    alive, lines = table.alive.tolist(), []
    for group in table.groups:
        for members in [group.members] if group.categorical else [(m,) for m in group.members]:
            share = total(units[m].share for m in members)
            if any(alive[m] for m in members) or share.label or share.rival:
                lines.append(_line(table, group, members, units, share, arrays, given))
    return sorted(lines, key=lambda line: -abs(line[0].share.difference))


def _line(
    table: UnitTable,
    group: ConceptGroup,
    members: tuple[int, ...],
    units: list[Unit],
    share: Share,
    maps: np.ndarray | None,
    given: Corrections,
) -> tuple[Reason, int]:
    """The state of a unit or group in one word, and where it was seen."""
    truth = given.values

    def believed(m: int) -> float | None:
        if units[m].probability is None:
            return None
        if m in given.scores:
            absent, present = float(table.absent[m]), float(table.present[m])
            return min(1.0, max(0.0, (given.scores[m] - absent) / (present - absent)))
        return truth.get(m, units[m].probability)

    chosen, probability = members[0], believed(members[0])
    if group.categorical:
        # Without probabilities the strongest member is the choice.
        chosen = max(members, key=lambda m: units[m].activation if believed(m) is None else believed(m))  # type: ignore[arg-type,return-value]
        value, probability = group.values[members.index(chosen)], believed(chosen)
    elif probability is None:
        value = f"{units[chosen].activation:.2f}".replace("-", "\N{MINUS SIGN}")
    else:
        present = probability > 0.5
        value, probability = ("yes", probability) if present else ("no", 1 - probability)
    if given.silent.issuperset(members):
        value, probability = "silent", None
    reason = Reason(
        name=group.name if group.categorical else units[chosen].name,
        value=value,
        probability=probability,
        share=share,
        corrected=any(m in given.set_units for m in members),
        map=None if maps is None else maps[chosen],
        bans=tuple(box for m in members for box in given.bans.get(m, ())),
    )
    return reason, chosen
