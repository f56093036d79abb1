"""From a name in a configuration, or an object in Python, to a :class:`ModuleBackbone`; and what is recorded of it."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrarium.configs.allowed import allowed_by_user, covered, find_named, home_of, is_built_in
from vitrarium.configs.errors import UserError
from vitrarium.configs.registry import check_options
from vitrarium.models.backbones.base import BACKBONES, MODULE, Backbone, finish, first_line
from vitrarium.models.backbones.module_adapter import ModuleBackbone, structure_of
from vitrarium.models.backbones.probing import undisturbed

# What is passed on to ModuleBackbone, and its value where nobody says.
SETTINGS: dict[str, Any] = {"in_channels": 3, "image_size": None, "mean": 0.0, "std": 1.0, "prefix_tokens": None}
# Options by which torchvision and timm fetch weights: a model folder from elsewhere must not make anybody do that.
FETCHING = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


@BACKBONES.register(MODULE)
def build_module(
    module: str,
    options: Mapping[str, Any] | None = None,
    cut: str | None = None,
    weights: str | None = None,
    in_channels: int = 3,
    image_size: int | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    prefix_tokens: int | None = None,
    structure: str | None = None,
) -> Backbone:
    """A network of anybody's, by the dotted path of its class or of a function that makes it.

    Args:
        module: ``package.Name``; the package must be allowed (see :mod:`vitrarium.configs.allowed`).
        options: what the class or function is called with.
        cut: a named cut or any module path; needed where the network does not end in a map.
        weights: a weight source; default those that the class draws.
        in_channels: channels of the images.
        image_size: the only height and width it takes; default: found out.
        mean: subtracted from the pixels in [0, 1]; by default the network sees them as they are.
        std: the pixels are divided by it.
        prefix_tokens: class and register tokens in front of a grid of tokens; default: found out.
        structure: recorded where the network was handed over as an object; such a one cannot be built from its name.

    Raises:
        UserError: a package that is not allowed, an unknown class, options that it does not take, a class that fails or
            makes no network, a network that is no backbone.
    """
    if structure is not None:
        raise UserError(
            f"the backbone '{module}' was handed over as an object, so it cannot be built from its name",
            f"hand one over again, as in vitrarium.load(path, backbone={module.rpartition('.')[2]}(...)); commands can "
            "load models that were trained with backbone.module and backbone.options",
        )
    entry = find_named(module)
    network = _construct(entry, {**_without_fetching(module, entry, options or {}), **(options or {})}, module)
    settings: dict[str, Any] = {
        "in_channels": in_channels, "image_size": image_size, "mean": mean, "std": std, "prefix_tokens": prefix_tokens,
    }  # fmt: skip
    return _finished(network, _record(module, options, settings, cut, weights), settings, cut, weights, handed=False)


def backbone_from(
    module: nn.Module | Callable[..., nn.Module] | str,
    cut: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    in_channels: int = 3,
    image_size: int | None = None,
    prefix_tokens: int | None = None,
) -> Backbone:
    """Any network as a backbone.

    A network is copied: the one that was given stays as it is. A model that is saved records a class and its options,
    and can be loaded from them. Of a network that was built already it records the class and a hash of the structure;
    to load such a model, the network has to be handed over again.

    Args:
        module: a network, a class or function with ``options``, or the dotted path of one.
        cut: a named cut or any module path; needed where the network does not end in a map.
        options: what a class or function is called with.
        weights: a weight source; default the weights it has.
        mean: subtracted from the pixels in [0, 1]; by default the network sees them as they are.
        std: the pixels are divided by it.
        in_channels: channels of the images.
        image_size: the only height and width it takes; default: found out.
        prefix_tokens: class and register tokens in front of a grid of tokens; default: found out.

    Raises:
        UserError: a network that is no backbone, with what to do.
    """
    settings: dict[str, Any] = {
        "in_channels": in_channels, "image_size": image_size, "mean": mean, "std": std, "prefix_tokens": prefix_tokens,
    }  # fmt: skip
    if isinstance(module, str):
        return build_module(module, options, cut, weights, **settings)
    if isinstance(module, nn.Module):
        if options:
            raise UserError(f"options for a {type(module).__name__} that is built already", "give its class instead")
        name, network, handed = dotted(type(module)), _copied(module), True
    else:
        name = dotted(module)
        network, handed = _construct(module, options or {}, name), not _repeatable(name, options)
    backbone = _finished(network, _record(name, options, settings, cut, weights), settings, cut, weights, handed)
    if not backbone.cut:
        # In Python nobody asks for a list of cuts: the refusal has it.
        backbone.channels  # noqa: B018
    return backbone


def taken(given: nn.Module) -> Backbone:
    """A backbone for a new model from what a user hands over: a copy, so that no two models share weights."""
    if not isinstance(given, Backbone):
        return backbone_from(given)
    backbone = _copied(given)
    if not backbone.origin:
        backbone.origin = {"name": MODULE, "module": dotted(type(given)), "structure": structure_of(given)}
    return backbone


def given_again(given: nn.Module, recorded: Mapping[str, Any] | str) -> Backbone:
    """The backbone of a saved model from what a user hands over to load it.

    Args:
        given: the network as it was handed over for training, or a backbone made of it.
        recorded: what the model's folder says.

    Raises:
        UserError: a model that needs none, a network of another structure.
    """
    if isinstance(recorded, str) or recorded.get("name") != MODULE:
        name = recorded if isinstance(recorded, str) else recorded.get("name")
        raise UserError(f"a backbone is given, and the model has its own, '{name}'", "load it without")
    if isinstance(given, Backbone):
        backbone = taken(given)
    else:
        backbone = backbone_from(given, recorded.get("cut"), **{k: recorded[k] for k in SETTINGS if k in recorded})
    ours = backbone.origin
    differ = [key for key in ("cut", "structure") if ours.get(key) != recorded.get(key)]
    if "structure" in differ and not ("structure" in ours and "structure" in recorded):
        # A class with its options on one side: their weights will tell whether they fit.
        differ.remove("structure")
    if differ:
        key = differ[0]
        raise UserError(
            f"the backbone given is not the one of the model: its {key} is {ours.get(key)}, not {recorded.get(key)}",
            f"build {recorded['module']} with the arguments it had when the model was trained",
        )
    return backbone


def dotted(entry: Any) -> str:
    """The path by which a class or function would be imported."""
    return f"{home_of(entry)}.{getattr(entry, '__qualname__', type(entry).__name__)}"


def _record(
    module: str, options: Mapping[str, Any] | None, settings: Mapping[str, Any], cut: str | None, weights: str | None
) -> dict[str, Any]:
    """What a configuration would say, in plain containers, defaults left out."""
    plain = {key: list(v) if isinstance(v, Sequence) else v for key, v in settings.items() if v != SETTINGS[key]}
    chosen = {"options": dict(options or {}) or None, "cut": cut, "weights": weights}
    return {"name": MODULE, "module": module, **{k: v for k, v in chosen.items() if v is not None}, **plain}


def _finished(
    network: nn.Module,
    record: dict[str, Any],
    settings: Mapping[str, Any],
    cut: str | None,
    weights: str | None,
    handed: bool,
) -> Backbone:
    """The network as a backbone, cut, filled and tried."""
    if isinstance(network, Backbone):
        changed = [key for key in SETTINGS if settings[key] != SETTINGS[key]]
        if changed:
            raise UserError(f"{record['module']} is a backbone with its own {changed[0]}", f"leave {changed[0]} out")
        backbone: Backbone = network
    else:
        backbone = ModuleBackbone(network, cut, **settings)
    if handed:
        record = {**{k: v for k, v in record.items() if k != "options"}, "structure": structure_of(backbone)}
    backbone.origin = record
    backbone = finish(backbone, cut, weights)
    backbone.origin = record
    if backbone.cut:
        _try(backbone, record["module"])
    return backbone


@torch.no_grad()
def _try(backbone: Backbone, name: str) -> None:
    """Refuse a network that would train or predict otherwise than a backbone must."""
    if not any(True for _ in backbone.parameters()):
        raise UserError(f"{name} has no parameters up to '{backbone.cut}'", "cut further up")
    side = backbone.image_size or backbone.probe_size
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, backbone.in_channels, side, side, generator=generator).to(backbone.mean)
    with undisturbed(backbone):
        backbone.eval()
        both, again, alone = backbone(pixels).map, backbone(pixels).map, backbone(pixels[:1]).map
        backbone.train()
        try:
            trained = backbone(pixels).map.shape
        except Exception as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name} fails in training mode: {first_line(error)}", "mend it") from error
    if not both.isfinite().all():
        raise UserError(f"{name} gives values that are not finite for noise in [0, 1]", "set backbone.mean and std")
    if not _equal(both, again):
        raise UserError(f"{name} gives another map each time in evaluation mode", "switch what is random off there")
    if not _equal(both[:1], alone):
        raise UserError(
            f"{name}: the map of an image depends on the other images of its batch, in evaluation mode too",
            "use norms with running statistics (track_running_stats=True), or that look at one image",
        )
    if trained != both.shape:
        raise UserError(f"{name} gives {tuple(trained)} in training and {tuple(both.shape)} in evaluation", "mend it")


def _equal(first: Tensor, second: Tensor) -> bool:
    """Up to the rounding of kernels that depend on the number of images."""
    return bool((first - second).abs().max() <= 1e-3 * second.abs().max())


def _construct(entry: Callable[..., Any], options: Mapping[str, Any], name: str) -> nn.Module:
    """Call the user's class or function, and say so if it fails."""
    check_options(entry, options, (), f"module '{name}'")
    try:
        network = entry(**options)
    except Exception as error:
        # Foreign code may fail in any way.
        raise UserError(
            f"module '{name}' could not be built ({type(error).__name__}: {first_line(error)})",
            "check backbone.options",
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"'{name}' makes a {type(network).__name__}, not a torch.nn.Module", "name a class of networks")
    return network


def _without_fetching(path: str, entry: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of packages that nobody had to allow, only networks and functions declared to make one, and no fetching.

    Returns:
        Options that keep the function from fetching weights by default.
    """
    if not is_built_in(home_of(entry)) or covered(path, allowed_by_user()):
        return {}
    made = entry if inspect.isclass(entry) else getattr(entry, "__annotations__", {}).get("return")
    if not (inspect.isclass(made) and issubclass(made, nn.Module)) or made is nn.Module:
        raise UserError(f"'{path}' is not declared to make a network", "name a class of networks or a model function")
    for option in FETCHING:
        if options.get(option):
            raise UserError(
                f"module '{path}' with the option '{option}'",
                "weights come by backbone.weights: a file, or hub for those that the library names",
            )
    return {option: None for option in FETCHING if inspect.signature(entry).parameters.get(option) is not None}


def _copied(module: Any) -> Any:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UserError(
            f"a {type(module).__name__} cannot be copied: {first_line(error)}",
            "hand it over before it has been used, or give its class and options",
        ) from error


def _repeatable(name: str, options: Mapping[str, Any] | None) -> bool:
    """Whether a class and its options can be written down and found again."""
    try:
        json.dumps(dict(options or {}))
    except (TypeError, ValueError):
        return False
    return "<" not in name and not name.startswith("__main__.")
