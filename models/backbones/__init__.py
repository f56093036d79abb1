"""Backbones: images to features. Built by name; ``timm/<any>`` names every model of timm."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import check_options
from vitrarium.models.backbones.base import BACKBONES, MODULE, Backbone, Place, first_line

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


PREFIXES: dict[str, Prefix] = {
    "timm": Prefix("vitrarium.models.backbones.timm_adapter", "build_timm", "list_timm"),
}


def build_backbone(spec: Mapping[str, Any] | str) -> Backbone:
    """Build a backbone from a name or ``{name, **options}``.

    All take the options ``cut`` (where to end; default the end of the network), ``weights`` (a weight source, see
    :mod:`vitrarium.models.backbones.weights`; default random) and ``in_channels`` (default 3).

    A name with a dot and no slash, or ``{module, **options}`` without a name, is somebody's own network: the dotted
    path of a class or function in an allowed package.

    Example:
        >>> build_backbone("convnet").cut
        'stage4'
        >>> build_backbone({"name": "timm/resnet18", "cut": "layer2"}).channels
        128

    Raises:
        UserError: an unknown name or option, with the closest ones.
    """
    options = _options(spec)
    name = str(options.get("name", ""))
    prefix, slash, model = name.partition("/")
    if slash:
        if prefix not in PREFIXES:
            raise UserError(f"unknown backbone '{name}'", closest(name, list_backbones()))
        family = PREFIXES[prefix]
        builder = getattr(importlib.import_module(family.module), family.builder)
        chosen = {key: value for key, value in options.items() if key != "name"}
        check_options(builder, chosen, ["model"], f"backbone '{name}'")
        backbone = builder(model, **chosen)
    elif name and name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}'", _cure(name))
    else:
        backbone = BACKBONES.build(options)
    backbone.origin = {**backbone.origin, **options}
    return backbone


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of backbones that match a shell pattern: the registered ones, then ``<prefix>/<model>`` of each prefix."""
    fixed = pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]
    names = BACKBONES.list(pattern)
    for prefix, family in PREFIXES.items():
        # Importing a library for names that cannot match would be slow.
        if fixed.startswith(f"{prefix}/") or f"{prefix}/".startswith(fixed):
            names += sorted(n for n in (f"{prefix}/{m}" for m in family.models()) if fnmatch(n, pattern))
    return names


def describe_backbone(spec: Mapping[str, Any] | str, size: int | None = None) -> list[Place]:
    """Where a backbone can be cut: its named cuts from the image upwards, and the cut of ``spec`` if it is another.

    Weights are not loaded.

    Args:
        spec: a name or ``{name, **options}``.
        size: height and width of the images that the sizes of maps are for; default one that the backbone surely takes.

    Raises:
        UserError: an unknown backbone, images that it does not take.
    """
    options = _options(spec)
    cut = options.pop("cut", None)
    options.pop("weights", None)
    whole = build_backbone(options)
    side = size or whole.image_size or whole.probe_size
    pixels = whole.mean.new_zeros(1, whole.in_channels, side, side)
    try:
        rows = whole.places(pixels)
        if cut is not None and cut not in whole.cuts:
            part = whole.truncate(cut)
            rows.append(part.places(pixels)[-1])
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the backbone takes no images of {side} pixels: {first_line(error)}", "choose another"
        ) from error
    return rows


def _options(spec: Mapping[str, Any] | str) -> dict[str, Any]:
    """A specification as ``{name, **options}``."""
    if isinstance(spec, str):
        own = "." in spec and "/" not in spec
        return {"name": MODULE, MODULE: spec} if own else {"name": spec}
    options = dict(spec)
    if MODULE in options and "name" not in options:
        return {"name": MODULE, **options}
    name = str(options.get("name", ""))
    return {**options, **_options(name)} if "." in name and "/" not in name else options


def _cure(name: str) -> str:
    """The closest names, a prefix forgotten in front first."""
    whole = [f"{prefix}/{name}" for prefix, family in PREFIXES.items() if name in family.models()]
    return f"did you mean '{whole[0]}'?" if whole else closest(name, list_backbones())
