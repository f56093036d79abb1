"""Everything there is to say of how well a model's units stand for concepts, beside what their layer could say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.axes.baselines import Baseline, filter_baseline, probe_baseline, strongest
from vitrarium.eval.axes.geometry import Correlation, Likeness, axis_correlation, covariance_of, intra_inter
from vitrarium.eval.axes.importance import Importance, permutation_importance
from vitrarium.eval.axes.looking import Layer, Seen, look_at_layer, look_at_units
from vitrarium.eval.axes.measures import (
    LEAST,
    Mean,
    Rating,
    enough,
    gain,
    label_counts,
    mean_auc,
    rate,
    share_closed,
)
from vitrarium.eval.axes.records import unit_scores
from vitrarium.eval.metrics.resampling import Bootstrap
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.layers.reduction import REDUCTIONS

Batches = Callable[[str], Iterable[Batch]]
"""The batches of a split, in order, each image once."""

AXIS, MASKED, FILTER, PROBE, STRONG = "axis", "masked_axis", "best_filter", "linear_probe", "_strongest"
"""Names of ratings; a baseline whose reduction validation chose has the last one behind its own."""


@dataclass
class Space:
    """How a layer's channels and the images of concepts lie in it.

    Attributes:
        name: of the layer.
        places: correlation of the channels over all places of all images; None where a layer has no places.
        images: correlation of what the channels say of images.
        likeness: within and between concepts.
    """

    name: str
    places: Correlation | None
    images: Correlation
    likeness: Likeness


@dataclass
class Judgement:
    """What :func:`judge` has found.

    Attributes:
        concepts: the K concepts.
        classes: names of the C classes.
        split: which split was judged.
        seen: what the model's units and their layer say of it.
        ratings: AUC by name; no axes where units are no annotated concepts.
        baselines: by name.
        spaces: of the model's layer, then of the layer it is held against where that is another one.
        importance: of the concept units, or None.
        boot: the resamples of the images.
        notes: what could not be judged, and why.
    """

    concepts: ConceptSet
    classes: tuple[str, ...]
    split: str
    seen: Seen
    ratings: dict[str, Rating]
    baselines: dict[str, Baseline]
    spaces: list[Space]
    importance: Importance | None
    boot: Bootstrap
    notes: list[str] = field(default_factory=list)

    @property
    def has_axes(self) -> bool:
        """Whether units are annotated concepts."""
        return AXIS in self.ratings

    @cached_property
    def chosen(self) -> Tensor:
        """(K,) bool: concepts that count in means."""
        return enough(self.seen.truth)

    def means(self) -> dict[str, Mean]:
        """Means over concepts, gains over the best filter, and the share of the gap to the probe that is closed."""
        found = {f"{name}_auc": mean_auc(rating, self.chosen, self.boot) for name, rating in self.ratings.items()}
        if self.has_axes:
            for way in ("", STRONG):
                axis, floor, ceiling = (self.ratings[name] for name in (AXIS, FILTER + way, PROBE + way))
                found[f"gain_over_best_filter{way}"] = gain(axis, floor, self.chosen, self.boot)
                found[f"share_of_gap_closed{way}"] = share_closed(axis, floor, ceiling, self.chosen, self.boot)
        return found


def judge(
    model: TransparentClassifier,
    batches: Batches,
    concepts: ConceptSet,
    rival: Layer,
    *,
    split: str = "test",
    reduction: str | None = None,
    resamples: int = 1000,
    importance: bool = True,
    seed: int = 0,
) -> Judgement:
    """Judge the units of a model.

    Args:
        model: any classifier; where its units are annotated concepts, they are rated.
        batches: of the splits "train", "val" and ``split``.
        concepts: of the data.
        rival: the layer that gives best filter and linear probe: of another model or of this one.
        split: which split is judged; the baselines are chosen on the two others.
        reduction: of the rival's maps; None = that of the units, "mean" where they have none. What does best on
            validation images is reported beside it.
        resamples: of all intervals; 0 = none.
        importance: also shuffle the concept units.
        seed: of shuffling and resamples.

    Raises:
        UserError: an unknown reduction, a split that baselines are chosen on, data without concepts.
    """
    how = str(reduction or getattr(model.evidence, "reduction", "mean"))
    if how not in REDUCTIONS:
        raise UserError(f"a layer cannot be read by reduction '{how}'", closest(how, REDUCTIONS))
    if split == "train":
        raise UserError("baselines are fitted to the training split", "judge the test or validation split")
    seen = look_at_units(model, batches(split))
    boot = Bootstrap(len(seen.truth), resamples, seed)
    notes = _notes(seen, concepts)
    if not bool(enough(seen.truth, 1).any()):
        raise UserError(
            f"no concept has images with and without it in the {split} split", "choose data in which concepts vary"
        )
    if split == "val":
        notes.append("the baselines were chosen on this very split, which favours them a little")
    named = model.evidence.units.truth == "concept"
    if not named:
        notes.append("the units of this model are no annotated concepts: only its layer is judged")
    found, there = _baselines(rival, batches, split, how)
    assert seen.said is not None
    own = unit_scores(model, seen.said) if named else {}
    scores = {name.removesuffix("_auc"): values for name, values in own.items()}
    # What validation chose is often the wanted reduction: it is rated once.
    same = {name + STRONG: name for name in (FILTER, PROBE) if found[name + STRONG] is found[name]}
    scores |= {name: baseline.scores for name, baseline in found.items() if name not in same}
    ratings = rate(scores, seen.truth, boot, seed)
    ratings |= {name: replace(ratings[plain], name=name) for name, plain in same.items()}
    if MASKED in ratings and bool(torch.isnan(ratings[MASKED].auc).all()):
        # Every subspace is one axis.
        del ratings[MASKED]
    spaces = [_space(seen, plural(model.evidence.units.kind), seen.said)]
    if rival.model is not model:
        spaces.append(_space(there, rival.name, there.reduced[how]))
    lost = None
    if importance and named:
        shuffled = range(len(model.evidence.units.judged))
        lost = permutation_importance(model, lambda: batches(split), _in_place(seen), shuffled, boot, seed)
    return Judgement(concepts, model.class_names, split, seen, ratings, found, spaces, lost, boot, notes)


def _baselines(rival: Layer, batches: Batches, split: str, how: str) -> tuple[dict[str, Baseline], Seen]:
    """Both baselines by the wanted reduction and by the strongest, and what the layer says of the judged split."""
    train, val = look_at_layer(rival, batches("train")), look_at_layer(rival, batches("val"))
    test = look_at_layer(rival, batches(split), moments=True)
    found: dict[str, Baseline] = {}
    for name, make in ((FILTER, filter_baseline), (PROBE, probe_baseline)):
        ways = {way: make(train, val, test, way) for way in (how, *(w for w in REDUCTIONS if w != how))}
        found[name], found[name + STRONG] = ways[how], strongest(ways)
    return found, test


def plural(kind: str) -> str:
    """A kind of units in the plural."""
    return "axes" if kind == "axis" else f"{kind}s"


def _in_place(seen: Seen) -> Tensor:
    """Activations by position in the split."""
    assert seen.said is not None
    return seen.said[seen.index.argsort()]


def _space(seen: Seen, name: str, said: Tensor) -> Space:
    assert seen.moments is not None
    places = axis_correlation(seen.moments.covariance()) if seen.moments.count > len(said) else None
    return Space(
        name, places, axis_correlation(covariance_of(said)), intra_inter(seen.reduced["mean"], seen.truth)
    )  # fmt: skip


def _notes(seen: Seen, concepts: ConceptSet) -> list[str]:
    positive, negative = label_counts(seen.truth)
    few = [
        f"{name} ({p} with it, {n} without)"
        for name, p, n in zip(concepts.names, positive.tolist(), negative.tolist(), strict=True)
        if min(p, n) < LEAST
    ]
    return [f"in no mean, for fewer than {LEAST} images of both labels: {', '.join(few)}"] if few else []
