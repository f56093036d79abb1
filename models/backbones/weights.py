"""Loading weights from elsewhere into a backbone, and saying what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones.base import Backbone, for_channels
from vitrarium.models.backbones.weight_sources import FoundWeights, find_weights

# What frameworks put in front of the names of a network's tensors.
WRAPPERS = ("module", "model", "backbone", "network", "net", "encoder", "_orig_mod")
SHOWN = 3


@dataclass(frozen=True)
class WeightReport:
    """What became of a file of weights.

    Attributes:
        source: where they came from.
        matched: tensors that were loaded.
        missing: tensors of the network that the file does not have; they keep their values.
        unexpected: tensors of the file that the network does not have.
        mismatched: tensors of the same name but another shape; the network keeps its values.
        adapted: those of ``matched`` that were folded from RGB to another number of input channels.
        fraction: share of the network's parameters that were loaded, 0 to 1.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    fraction: float = 1.0

    @property
    def complete(self) -> bool:
        """Whether every parameter of the network was loaded."""
        return not self.missing and not self.mismatched

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, with the report in one line under "said"."""
        return {"said": str(self), **asdict(self)}

    def __str__(self) -> str:
        said = f"weights '{self.source}': {len(self.matched)} tensors loaded, {self.fraction:.1%} of the parameters"
        for what, names in self.unmatched().items():
            said += f"; {len(names)} {what} ({_some(names)})"
        return said

    def unmatched(self) -> dict[str, tuple[str, ...]]:
        """By what became of them, the names that did not simply match."""
        found = {
            "missing": self.missing,
            "not used": self.unexpected,
            "of another shape": self.mismatched,
            "folded to the input channels": self.adapted,
        }
        return {what: names for what, names in found.items() if names}


def load_weights(module: nn.Module, source: str | Path, *, minimum: float = 0.5) -> WeightReport:
    """Load weights into a backbone (or any module), by name and shape.

    Prefixes that wrappers put in front of names (``module.``, ``model.``, ``backbone.`` ...) are taken off. Where
    the first layer is for RGB and the backbone for C other channels, its weights are folded (:func:`fold_input`).
    Weights that bring a standardisation of the pixels set the backbone's.

    Args:
        module: a :class:`Backbone`, whose ``network`` is filled (and its tail, if it was cut), or any module.
        source: a file (``.safetensors``, or a state dict in ``.pt .pth .th .ckpt .bin``), a run or model folder of
            ours, ``package:<name>`` for weights in an installed package, ``hub`` for timm's download.
        minimum: the least share of the module's parameters that must be found, 0 to 1.

    Raises:
        UserError: no such source, a file that is damaged or would execute code, too little that fits.
    """
    found = find_weights(str(source), module)
    layers = _layers(module)
    own = {name: value for part in layers for name, value in part.state_dict().items()}
    prefix = _prefix(found.state, own)
    found = _standardisation(found, prefix)
    given = {name[len(prefix) :]: value for name, value in found.state.items() if name.startswith(prefix)}
    adapted = _fold_inputs(given, own, module)
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    report = _report(str(source), found.state, prefix, given, own, fitting, adapted, layers[0])
    if report.fraction < minimum or not fitting:
        raise UserError(
            f"weights '{source}' fit {report.fraction:.1%} of the parameters; at least {minimum:.0%} must: "
            f"{_misfit(report, found.state, own)}",
            "check that they belong to this backbone",
        )
    for part in layers:
        part.load_state_dict(fitting, strict=False)
    if isinstance(module, Backbone) and found.mean is not None and found.std is not None:
        module.mean.copy_(torch.tensor(for_channels(found.mean, module.in_channels)))
        module.std.copy_(torch.tensor(for_channels(found.std, module.in_channels)))
    return report


def fold_input(weight: Tensor, channels: int) -> Tensor:
    """Weights (O, 3, ...) of a first layer for RGB as weights (O, channels, ...).

    One channel sums the three: grey pixels then give what their RGB copies gave, up to the standardisation, which is
    the mean of the three. Other numbers repeat them in turn and scale by 3 / channels, to keep the size of responses.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // 3)
    return torch.cat([weight] * repeats, 1)[:, :channels] * (3 / channels)


def _layers(module: nn.Module) -> list[nn.Module]:
    """What is to be filled: the network first; the layers above its cut have their names in the same file."""
    if not isinstance(module, Backbone):
        return [module]
    tail = module.__dict__.get("_tail")
    return [module.network] if tail is None else [module.network, tail[0].network]


def _misfit(report: WeightReport, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """Why they do not fit: tensors of another shape, tensors that the file lacks, or names that nobody shares."""
    if not report.matched and not report.mismatched:
        return f"the file has {_some(_of_layers(theirs))}, the network {_some(_of_layers(ours))}"
    said = []
    for what, names in (("of another shape", report.mismatched), ("not in the file", report.missing)):
        if names:
            said.append(f"{len(names)} {what} ({_some(names)})")
    return ", ".join(said)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _of_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Names without the batch counters of norms, which old files lack and nothing depends on."""
    return [name for name in state if not name.endswith("num_batches_tracked")]


def _prefix(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The wrapper prefix without which most tensors of the file fit the network."""
    prefixes = {""}
    for name in given:
        steps = name.split(".")[:-1]
        for number, step in enumerate(steps, 1):
            if step not in WRAPPERS:
                break
            prefixes.add(".".join(steps[:number]) + ".")

    def fits(prefix: str) -> int:
        names = (name[len(prefix) :] for name in given if name.startswith(prefix))
        return sum(name in own for name in names)

    return max(sorted(prefixes, key=len), key=fits)


def _fold_inputs(given: dict[str, Tensor], own: Mapping[str, Tensor], module: nn.Module) -> tuple[str, ...]:
    """Fold, in ``given``, RGB weights of layers that look at the image; their names."""
    channels = module.in_channels if isinstance(module, Backbone) else 3
    if channels == 3:
        return ()
    names = []
    for name, value in own.items():
        theirs = given.get(name)
        if theirs is None or theirs.dim() != 4 or value.dim() != 4:
            continue
        if theirs.shape == (value.shape[0], 3, *value.shape[2:]) and value.shape[1] == channels:
            given[name] = fold_input(theirs, channels)
            names.append(name)
    return tuple(names)


def _report(
    source: str,
    state: Mapping[str, Tensor],
    prefix: str,
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
    adapted: tuple[str, ...],
    network: nn.Module,
) -> WeightReport:
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    loaded = sum(size for name, size in sizes.items() if name in fitting)
    used = {prefix + name for name in own}
    return WeightReport(
        source=source,
        matched=tuple(fitting),
        missing=tuple(name for name in _of_layers(own) if name not in given),
        unexpected=tuple(name for name in state if name not in used),
        mismatched=tuple(n for n in own if n in given and n not in fitting),
        adapted=adapted,
        fraction=loaded / max(1, sum(sizes.values())),
    )


def _standardisation(found: FoundWeights, prefix: str) -> FoundWeights:
    """With the standardisation that a backbone of ours saved beside its network, if it is one and names no other."""
    state, outside = dict(found.state), prefix.removesuffix("network.")
    saved = [state.get(outside + buffer) for buffer in ("mean", "std")] if outside != prefix else [None]
    values = [tuple(tensor.flatten().tolist()) for tensor in saved if tensor is not None]
    if found.mean is not None or len(values) != 2:
        return found
    del state[f"{outside}mean"], state[f"{outside}std"]
    return FoundWeights(state, *values)
