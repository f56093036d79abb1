"""From a plain specification to a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models.backbones import build_backbone
from vitrarium.models.backbones.own_module import taken
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.readouts.base import READOUTS


def build(
    spec: Mapping[str, Any],
    class_names: Sequence[str],
    concepts: ConceptSet | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
) -> TransparentClassifier:
    """Build a classifier from names and options of its three parts.

    Args:
        spec: ``{"backbone": ..., "evidence": ..., "readout": ...}``, each a name or ``{name, **options}``. The backbone
            may also be a network or a :class:`Backbone`: a copy is taken, so that no two models share weights.
        class_names: names of the C >= 2 classes.
        concepts: the concept set of the data, if it has one.
        preprocessing: kept with the model for :meth:`TransparentClassifier.predict`.
        seed: of the initial weights; None takes torch's random state as it is.

    Raises:
        UserError: unknown names or options, parts that do not fit, fewer than two classes.
    """
    if len(class_names) < 2:
        raise UserError(f"a classifier needs at least two classes, got {len(class_names)}", "check the data set")
    with torch.random.fork_rng(enabled=seed is not None, devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        # Weights are drawn part by part from the top of the list, so that presets with the same backbone and seed
        # start from the same backbone.
        given = spec["backbone"]
        backbone = taken(given) if isinstance(given, nn.Module) else build_backbone(given)
        offered = {
            "backbone": backbone,
            "channels": backbone.channels,
            "concepts": concepts,
            "classes": len(class_names),
        }
        refuse_missing_concepts(spec["evidence"], concepts)
        layer = EVIDENCE.build(spec["evidence"], **offered)
        readout = READOUTS.build(spec["readout"], layer=layer, **offered)
    if isinstance(given, nn.Module):
        spec = {**spec, "backbone": dict(backbone.origin)}
    return TransparentClassifier(backbone, layer, readout, tuple(class_names), concepts, preprocessing, spec)


def refuse_missing_concepts(spec: Mapping[str, Any] | str, concepts: ConceptSet | None) -> None:
    """Refuse an evidence layer that needs concepts for data that has none, before it is built."""
    name, _ = EVIDENCE.check(spec, ("backbone", "channels", "concepts", "classes"))
    if "concepts" in getattr(EVIDENCE.get(name), "needs", ()) and (concepts is None or len(concepts) == 0):
        raise UserError(f"evidence '{name}' needs a data set with concepts", "choose a data set that has them")
