"""Backbones: images to features. Built by name; ``timm/<any>`` names every model of timm."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import check_options
from vitrarium.models.backbones.base import BACKBONES, Backbone

__all__ = ["PREFIXES", "Place", "Prefix", "build_backbone", "describe_backbone", "list_backbones"]


class Prefix(NamedTuple):
    """Where the backbones ``<prefix>/<model>`` come from; imported when one is asked for.

    Attributes:
        module: the module that knows them.
        builder: its function ``(model, **options) -> Backbone``.
        names: its function ``() -> list of models``.
    """

    module: str
    builder: str
    names: str

    def models(self) -> list[str]:
        """The models behind the prefix."""
        return list(getattr(importlib.import_module(self.module), self.names)())


class Place(NamedTuple):
    """A row of :func:`describe_backbone`.

    Attributes:
        cut: the name to cut at.
        channels: D of the map there.
        stride: pixels of the image per step of the map.
    """

    cut: str
    channels: int
    stride: int


PREFIXES: dict[str, Prefix] = {
    "timm": Prefix("vitrarium.models.backbones.timm_adapter", "build_timm", "list_timm"),
}


def build_backbone(spec: Mapping[str, Any] | str) -> Backbone:
    """Build a backbone from a name or ``{name, **options}``.

    All take the options ``cut`` (where to end; default the end of the network), ``weights`` (a weight source, see
    :mod:`vitrarium.models.backbones.weights`; default random) and ``in_channels`` (default 3).

    Example:
        >>> build_backbone("convnet").cut
        'stage4'
        >>> build_backbone({"name": "timm/resnet18", "cut": "layer2"}).channels
        128

    Raises:
        UserError: an unknown name or option, with the closest ones.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(options.get("name", ""))
    prefix, slash, model = name.partition("/")
    if slash:
        if prefix not in PREFIXES:
            raise UserError(f"unknown backbone '{name}'", closest(name, list_backbones()))
        family = PREFIXES[prefix]
        builder = getattr(importlib.import_module(family.module), family.builder)
        del options["name"]
        check_options(builder, options, ["model"], f"backbone '{name}'")
        return builder(model, **options)
    if name and name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}'", _cure(name))
    return BACKBONES.build(options)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of backbones that match a shell pattern: the registered ones, then ``<prefix>/<model>`` of each prefix."""
    fixed = pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]
    names = BACKBONES.list(pattern)
    for prefix, family in PREFIXES.items():
        # Importing a library for names that cannot match would be slow.
        if fixed.startswith(f"{prefix}/") or f"{prefix}/".startswith(fixed):
            names += sorted(n for n in (f"{prefix}/{m}" for m in family.models()) if fnmatch(n, pattern))
    return names


def describe_backbone(spec: Mapping[str, Any] | str) -> list[Place]:
    """Where a backbone can be cut: its named cuts from the image upwards, and the cut of ``spec`` if it is another.

    Weights are not loaded.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    cut = options.pop("cut", None)
    options.pop("weights", None)
    backbone = build_backbone(options)
    rows = [Place(name, *place) for name, place in backbone.cuts.items()]
    if cut is not None and cut not in backbone.cuts:
        rows.append(Place(cut, *backbone.truncate(cut).cuts[cut]))
    return rows


def _cure(name: str) -> str:
    """The closest names, a prefix forgotten in front first."""
    whole = [f"{prefix}/{name}" for prefix, family in PREFIXES.items() if name in family.models()]
    return f"did you mean '{whole[0]}'?" if whole else closest(name, list_backbones())
