"""An explanation in words: numbers as people read them, one sentence, honest captions."""

from __future__ import annotations

from vitrarium.data.corrections import Box
from vitrarium.eval.explanations.reasons import Entry, Explanation, Reason

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign ("+1.20", "−0.35"); what rounds to nothing is a plain zero."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("+" if value > 0 else MINUS) + text


def plain(value: float, digits: int = 2) -> str:
    """A number with a true minus sign where it is negative."""
    return signed(value, digits).removeprefix("+")


def percent(probability: float) -> str:
    """A probability in per cent; what would round to certainty is written as a bound."""
    if probability > 0.999:
        return "> 99.9 %"
    if probability < 0.001:
        return "< 0.1 %"
    return f"{100 * probability:.1f} %" if not 0.1 <= probability <= 0.99 else f"{100 * probability:.0f} %"


def state(reason: Reason) -> str:
    """A reason as a clause: "granule colour is pink", "thorns is absent", "channel 7 responds with 0.83"."""
    if reason.value == "silent":
        clause = f"{reason.title} is silent"
    elif reason.probability is None:
        clause = f"{reason.title} responds with {reason.value}"
    else:
        clause = f"{reason.title} is {({'yes': 'present', 'no': 'absent'}).get(reason.value, reason.value)}"
    return clause + (" (as corrected)" if reason.corrected else "")


def joined(parts: list[str]) -> str:
    """A list as people write it: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(explanation: Explanation, most: int = 3) -> str:
    """The explanation as one sentence: the weightiest reasons for, and the weightiest against.

    Args:
        explanation: to be said.
        most: how many reasons for the class are named at most.
    """
    e, start = explanation, f"{explanation.label} rather than {explanation.rival}"
    if not e.units_take_part:
        return f"{start}, for reasons that this model does not name: its {e.kind}s take no part in the decision."
    # One digit is enough to talk about; a decision by a hair needs two.
    digits = 1 if max(abs(r.share.difference) for r in e.reasons) >= 0.5 else 2
    speak_for = [r for r in e.reasons if r.share.difference > 0]
    against = [r for r in e.reasons if r.share.difference < 0]
    if not e.named:
        shown = _weighty(speak_for, most)
        names = joined([f"{r.title} ({signed(r.share.difference, digits)})" for r in shown] or ["no unit"])
        if against and -against[0].share.difference > 0.1 * max(e.logit.difference, 0.0):
            names += f", although {against[0].title} ({signed(against[0].share.difference, digits)}) speaks against it"
        if any(r.source is not None and r.source.picture is not None for r in shown):
            return f"{start}, carried mostly by {names}; what each of these looks like is shown by its training patch."
        return (
            f"{start}, carried mostly by {names}; the {e.kind}s of this model have no names, so this says where it "
            "looked and how much that weighed, not what it saw."
        )
    for_it = [(r.share.difference, state(r)) for r in _weighty(speak_for, most)]
    for_it += [(d, words) for d, words in _nameless(e) if for_it == [] or d > for_it[-1][0]]
    for_it.sort(key=lambda pair: -pair[0])
    because = joined(
        [f"{words} ({signed(difference, digits)})" for difference, words in for_it[:most]] or ["of no single reason"]
    )
    although = ""
    if against and -against[0].share.difference > 0.1 * max(e.logit.difference, 0.0):
        although = f", although {state(against[0])} ({signed(against[0].share.difference, digits)})"
    return f"{start} because {because}{although}."


def _weighty(reasons: list[Reason], most: int) -> list[Reason]:
    """The first reasons, without those that weigh less than a tenth of the first."""
    return [r for r in reasons[:most] if r.share.difference >= 0.1 * reasons[0].share.difference]


def _nameless(e: Explanation) -> list[tuple[float, str]]:
    """What is no unit's, as reasons, where it speaks for the class."""
    pairs = [(e.remainder.difference, f"something outside its {e.kind}s speaks for it")]
    pairs.append((e.bias.difference, f"the model leans to {e.label} from the start"))
    return [(difference, words) for difference, words in pairs if difference > 0.05]


def margin_words(explanation: Explanation) -> list[str]:
    """What the differences add up to, and whether they do; one statement a line."""
    e = explanation
    logits = f"logit {plain(e.logit.label)} for {e.label}, {plain(e.logit.rival)} for {e.rival}"
    if e.additive:
        return [
            f"The bars add up exactly to the lead of {signed(e.logit.difference)} ({logits}).",
            f"Every +0.69 doubles the odds of {e.label} against {e.rival}.",
        ]
    return [
        f"Approximate: this readout is no plain sum. Lead of {signed(e.logit.difference)} ({logits}).",
        "The bars are a first-order account of it: what holds near this image, not a complete one.",
    ]


def units_words(explanation: Explanation) -> str:
    """What a reader must know about the units, or nothing."""
    e = explanation
    if not e.units_take_part:
        return (
            f"The {e.kind}s below are predicted beside the class: the decision never sees them, so they cannot be its "
            "reasons, and correcting them changes nothing."
        )
    if not e.named and e.looks:
        return prototype_words(e)
    if not e.named:
        return (
            f"The units are anonymous {e.kind}s: nobody has given them a meaning. Lines and maps show which of them "
            "weighed most and where they responded, not what they stand for."
        )
    return ""


def prototype_words(explanation: Explanation) -> str:
    """What a reader must know about units that are patches."""
    e = explanation
    reasons = [x.reason for x in e.looks if x.reason is not None]
    missing = sum(r.source is None for r in reasons)
    said = (
        f"{e.kind.capitalize()}s have no names: what one stands for is shown by the training patch it was taken from."
    )
    if missing == len(reasons):
        said = (
            f"The {e.kind}s of this model were not projected: no picture shows what they stand for, "
            "only where they responded."
        )
    elif all(r.source is None or r.source.picture is None for r in reasons):
        said = (
            f"{e.kind.capitalize()}s have no names, and this model keeps no pictures of the training patches they were "
            "taken from: only class and number of the image are told."
        )
    elif missing:
        said += f" {missing} of the {len(reasons)} shown were not projected and have none."
    if any(r.source is not None and not r.source.current for r in reasons):
        said += " Weights changed since the pictures were taken: they may be stale, and drift must be measured anew."
    return said


def look_words(explanation: Explanation, entry: Entry) -> list[str]:
    """What one prototype found, what that adds, and how far picture and box can be believed; one statement a line."""
    reason = entry.reason
    assert reason is not None
    assert reason.match is not None
    match, share, running = reason.match, entry.share, entry.running
    saw = "may look nowhere" if match.similarity is None else f"similarity {plain(match.similarity)}"
    if reason.corrected:
        saw += ", made silent" if reason.value == "silent" else f", set to {reason.value}"
    before, claim = plain(running.label - share.label), match.claim
    if match.holds is None:
        banned = bool(explanation.bans or reason.bans)
        claim += " while a place is banned" if banned else ": an empty image is as similar"
    return [
        saw,
        f"adds {signed(share.label)} to {explanation.label}: {before} → {plain(running.label)}",
        reason.source.state if reason.source else "not projected: no picture",
        claim,
    ]


def box_words(box: Box) -> str:
    """A box as people say it: "across 10-50 %, down 20-60 %"."""
    left, top, right, bottom = (round(100 * edge) for edge in box)
    return f"across {left}\N{EN DASH}{right} %, down {top}\N{EN DASH}{bottom} %"


def map_title(explanation: Explanation) -> str:
    """The heading of the maps."""
    beside = "" if explanation.units_take_part else ", beside the decision"
    return f"Where these {explanation.kind}s responded{beside}"


def map_words(explanation: Explanation) -> str:
    """How far the maps may be trusted, with their true resolution; empty where there are none."""
    maps = [r.map for r in explanation.shown if r.map is not None]
    if not maps:
        return ""
    (h, w), (high, wide) = maps[0].shape, explanation.image.shape[:2]
    words = (
        f"Maps have {h} × {w} cells, stretched smoothly over {high} × {wide} pixels: they say roughly where, not which "
        "pixel. Each is shaded from its own weakest to its own strongest response, so strengths cannot be compared "
        "between maps."
    )
    if any(r.corrected for r in explanation.shown):
        words += " The map of a corrected unit shows what the model saw, not the correction."
    return words


def abstention_words(e: Explanation) -> str:
    """That the model does not answer, and why; "" where it does."""
    if e.abstained is None:
        return ""
    confidence, threshold = e.abstained
    return (
        f"The model does not answer: its confidence of {confidence:.3g} is below the {threshold:.3g} that it needs. "
        f"This is why it would have said {e.label}."
    )


def correction_words(explanation: Explanation) -> str:
    """What was corrected and what the model had said before; empty without a correction."""
    e = explanation
    if e.before is None:
        return ""
    done = [f"{r.title} = {r.value}" for r in e.corrected]
    done += [f"{r.title} may not look at {joined([box_words(b) for b in r.bans])}" for r in e.reasons if r.bans]
    if e.bans:
        done.append(f"no {e.kind} may look at {joined([box_words(box) for box in e.bans])}")
    label, probability = e.before
    same = "the same class" if label == e.label else label
    return f"Corrected by hand: {joined(done)}. Before that the model said {same} ({percent(probability)})."
