"""How much classes and concepts count in a loss: by their frequency, by name, by what an error costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest, named_numbers
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.costs import error_costs, positions
from vitrarium.data.source import DataSource

CLASS_WEIGHTS, IMBALANCE = ("none", "balanced", "effective"), ("none", "weight", "pos_weight")


def class_weights(source: DataSource, rule: str | Mapping[str, float], beta: float) -> Tensor:
    """(C,) weight of each class, from the N training images, n_c of class c.

    - "none": 1;
    - "balanced": N / (C n_c), so that every class counts as much as any other;
    - "effective": proportional to (1 - beta) / (1 - beta^n_c), with mean 1: the inverse of the effective number of
      images (Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019). beta = 0 is "none";
      beta towards 1 is "balanced" up to a factor;
    - a mapping: the weight of each class by its name, 1 for those that are not named.

    A class without training images counts as one with a single image.

    Raises:
        UserError: an unknown rule or class, a weight below 0, beta outside [0, 1).
    """
    names = source.class_names
    if not 0 <= beta < 1:
        raise UserError(f"beta={beta}", "give a number from 0 to below 1, for instance 0.999")
    if not isinstance(rule, str):
        given = named_numbers("class_weight", rule, names, zero=True)
        return torch.tensor([given.get(name, 1.0) for name in names], dtype=torch.float64)
    if rule not in CLASS_WEIGHTS:
        raise UserError(
            f"class_weight={rule}",
            f"{closest(rule, CLASS_WEIGHTS)}; or give {{class: weight}} with the names of classes",
        )
    counts = torch.bincount(torch.as_tensor(source.splits["train"].labels), minlength=len(names)).double().clamp_min(1)
    if rule == "none":
        return torch.ones_like(counts)
    if rule == "balanced":
        return len(source.splits["train"]) / (len(names) * counts)
    # 1 - beta^n without cancellation where beta is close to 1; beta = 0 has the limit 1.
    inverse = (1 - beta) / -torch.expm1(counts * np.log(beta)) if beta > 0 else torch.ones_like(counts)
    return inverse / inverse.mean()


class ConceptFactors(NamedTuple):
    """What the two sides of each concept's loss are multiplied by, and how much each concept counts.

    Attributes:
        present: (K,) factor where concept k is true.
        absent: (K,) factor where a yes/no concept is not true; not used for the values of a categorical group.
        importance: (K,) how much a concept counts in the mean; the same for all values of a categorical group.
    """

    present: Tensor
    absent: Tensor
    importance: Tensor


def concept_factors(
    source: DataSource, imbalance: str, weights: Mapping[str, float], costs: Mapping[str, Any]
) -> ConceptFactors:
    """Factors of the concept loss; the formulas are those of :class:`~vitrarium.train.terms.concepts.ConceptLoss`.

    Args:
        source: the data; frequencies are counted on its training split, over known truth.
        imbalance: "none", "weight" or "pos_weight".
        weights: importance of concepts or groups by name.
        costs: costs of errors, see :func:`~vitrarium.data.costs.error_costs`.

    Raises:
        UserError: an unknown name or word, a weight below 0, a cost that is not above 0.
    """
    if imbalance not in IMBALANCE:
        raise UserError(f"term 'concepts' has no imbalance '{imbalance}'", closest(imbalance, IMBALANCE))
    concepts, truth = source.concepts, source.splits["train"].truth
    assert concepts is not None
    missed, false_alarm = error_costs(concepts, costs)
    present, absent = missed.copy(), false_alarm.copy()
    if imbalance != "none":
        assert truth is not None
        for group in concepts.groups:
            members = list(group.members)
            both, yes = _by_frequency(group, np.asarray(truth[:, members], np.float64))
            present[members] *= both if imbalance == "weight" else yes
            absent[members] *= both if imbalance == "weight" else 1.0
    return ConceptFactors(*map(torch.from_numpy, (present, absent, _importance(concepts, weights))))


def _by_frequency(group: ConceptGroup, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (M,) of the members of a group under "weight" and under "pos_weight", from their truth (N, M)."""
    if not group.categorical:
        present = np.nansum(truth, axis=0)
        known = (~np.isnan(truth)).sum(axis=0)
        ratio = np.where(present > 0, (known - present) / np.maximum(present, 1e-12), 1.0)
        return ratio, ratio
    counts = truth[~np.isnan(truth).any(axis=1)].sum(axis=0)
    shown = counts > 0
    total, kinds = counts.sum(), int(shown.sum())
    if kinds < 2:
        return np.ones(len(counts)), np.ones(len(counts))
    inverse = total / np.where(shown, counts, 1.0)
    whole = (inverse[shown] - 1).mean() / (kinds - 1)
    return np.full(len(counts), whole), np.where(shown, inverse / kinds, 1.0)


def _importance(concepts: ConceptSet, weights: Mapping[str, float]) -> np.ndarray:
    """(K,) from ``{name: weight}``; a concept named by itself and by its group takes its own."""
    members, importance = positions(concepts), np.ones(len(concepts))
    given = named_numbers("weights", weights, members, zero=True)
    for name in sorted(given, key=lambda name: -len(members[name])):
        importance[members[name]] = given[name]
    if not importance.any():
        raise UserError("weights is 0 for every concept", "leave the term out of the recipe instead")
    return importance
