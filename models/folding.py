"""Folding: affine steps of a network moved into the weights of the layer beside them, exactly.

What may be folded is seen, not guessed from the layout of modules: one run on one image shows which operation takes
which tensor. That holds for any network that runs, whether torch.fx can follow it or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from vitrarium.models.backbones.base import Backbone
from vitrarium.models.backbones.norms import without_norm
from vitrarium.models.layers.affine import Affine

if TYPE_CHECKING:
    from vitrarium.models.classifier import TransparentClassifier

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
PADDING = 4
"""Place of the padding among the arguments of the convolution."""


@dataclass(frozen=True)
class Call:
    """One operation of a run.

    Attributes:
        operation: what was called.
        arguments: as given.
        tensors: those among the arguments.
    """

    operation: Any
    arguments: tuple[Any, ...]
    tensors: tuple[Tensor, ...]


class Watch(TorchDispatchMode):
    """Writes down who makes and who takes each tensor while it is active.

    Operations are seen below autograd, so nothing takes a tensor unseen; a tensor is known by its identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self._makers: dict[int, Call] = {}
        self._takers: dict[int, list[Call]] = {}
        self._same: dict[int, int] = {}
        # Nothing may die during the run, or its identity would be given to another tensor.
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        call = Call(func, args, tuple(tensors_in((args, kwargs or {}))))
        made = list(tensors_in(result))
        self._kept.append((call, made))
        if func is torch.ops.aten.t.default:
            # A linear layer multiplies by the transpose of its weight: that is the weight by another name.
            self._same[id(made[0])] = id(call.tensors[0])
            return result
        for tensor in made:
            self._makers[id(tensor)] = call
        for tensor in call.tensors:
            self._takers.setdefault(self._key(tensor), []).append(call)
        return result

    def maker(self, tensor: Tensor) -> Call | None:
        """The operation that made a tensor; None for one that was there before."""
        return self._makers.get(id(tensor))

    def takers(self, tensor: Tensor | None) -> list[Call]:
        """The operations that took a tensor."""
        return [] if tensor is None else self._takers.get(self._key(tensor), [])

    def only_taker(self, tensor: Tensor) -> Call | None:
        """The one operation that took a tensor; None if there were more or none."""
        takers = self.takers(tensor)
        return takers[0] if len(takers) == 1 else None

    def made_by(self, call: Call) -> list[Tensor]:
        """The tensors that a call made."""
        return next(made for kept, made in self._kept if kept is call)

    def takes(self, call: Call, tensor: Tensor) -> bool:
        """Whether a call took a tensor (or its transpose)."""
        return any(self._key(t) == self._key(tensor) for t in call.tensors)

    def _key(self, tensor: Tensor) -> int:
        return self._same.get(id(tensor), id(tensor))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(tuple(vars(value).values()))


class Folding:
    """What one run of a model in evaluation mode shows, and the folds that follow from it.

    Args:
        model: the model, which is changed by the folds: keep another copy.
        image: (1, C, H, W) pixels to run it on.
    """

    def __init__(self, model: TransparentClassifier, image: Tensor) -> None:
        self.model, self.watch = model, Watch()
        self.standard: Tensor | None = None
        backbone, standardise = model.backbone, model.backbone.standardise

        def noted(x: Tensor) -> Tensor:
            self.standard = standardise(x)
            return self.standard

        backbone.__dict__["standardise"] = noted
        try:
            with torch.no_grad(), self.watch:
                self.output = model(image)
        finally:
            del backbone.__dict__["standardise"]
        # What the model hands out is read by others, so no layer that makes it may change.
        self.escaping = {id(tensor) for tensor in tensors_in(self.output)}
        # With the weights they had in the run: a fold gives a layer new ones, and a second one must still find it.
        self.layers = [
            (layer, layer.weight, layer.bias)
            for layer in model.modules()
            if isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        ]

    def fold_norms(self) -> tuple[list[str], list[str]]:
        """Fold each batch norm into the convolution or linear layer before it, if that feeds nothing else.

        y = gamma (W x + b - mean) / sqrt(var + eps) + beta is a convolution with the weight W s and the bias
        (b - mean) s + beta, where s = gamma / sqrt(var + eps). The activation of a joint norm-and-activation stays.

        Returns:
            Module paths of the norms that are folded, and of those that the model uses and keeps.
        """
        folded, kept = [], []
        modules: list[tuple[str, Any]] = list(self.model.named_modules())
        for path, norm in modules:
            if not isinstance(norm, _BatchNorm) or not self.watch.takers(norm.running_mean):
                continue
            layer, rest = self._layer_before(norm), _rest_of(norm)
            if layer is None or rest is None:
                kept.append(path)
                continue
            variance, centre = _double(norm.running_var), _double(norm.running_mean)
            scale = (variance + norm.eps).rsqrt() * (1 if norm.weight is None else _double(norm.weight))
            bias = (0 if layer.bias is None else _double(layer.bias)) - centre
            shift = 0 if norm.bias is None else _double(norm.bias)
            _set(
                layer, _double(layer.weight) * scale.reshape(-1, *[1] * (layer.weight.dim() - 1)), bias * scale + shift
            )
            self.model.set_submodule(path, rest)
            folded.append(path)
        return folded, kept

    def _layer_before(self, norm: Any) -> Any:
        """The layer whose output goes to this norm alone, each of them used once; None if there is none."""
        layer = self._layer_that_feeds(norm.running_mean, self.escaping)
        return layer if layer is not None and layer.weight.shape[0] == norm.num_features else None

    def _layer_that_feeds(self, of: Tensor, escaping: set[int]) -> Any:
        """The layer whose output goes to the one operation that takes ``of`` and nowhere else; None without one."""
        call = self.watch.only_taker(of)
        if call is None:
            return None
        x = call.tensors[0]
        maker = self.watch.maker(x)
        if maker is None or self.watch.only_taker(x) is not call or id(x) in escaping:
            return None
        layer = self._layer_of(maker)
        return layer if layer is not None and layer.weight.shape[0] == x.shape[1] else None

    def fold_affine(self) -> list[str]:
        """Fold affine steps A x + b over channels (whitening and rotation) into the convolution before them.

        A (W * x + c) + b is a convolution with the weight A W and the bias A c + b. The map at the backbone's cut,
        which the model hands out with its features, is then the one after the step.

        Returns:
            Module paths of the steps that are folded.
        """
        folded = []
        features = self.output.features
        escaping = self.escaping - ({id(features.map)} if features is not None else set())
        steps: list[tuple[str, Any]] = [(p, m) for p, m in self.model.named_modules() if isinstance(m, Affine)]
        for path, step in steps:
            layer = self._layer_that_feeds(step.weight, escaping)
            if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
                continue
            matrix, weight = _double(step.weight)[:, :, 0, 0], _double(layer.weight)
            bias = _double(step.bias) + (0 if layer.bias is None else matrix @ _double(layer.bias))
            _set(layer, torch.einsum("ij,jkuv->ikuv", matrix, weight), bias)
            layer.out_channels = len(matrix)
            self.model.set_submodule(path, nn.Identity())
            folded.append(path)
        return folded

    def _layer_of(self, call: Call) -> Any:
        """The layer that a call is the whole of: it takes the layer's weight as it is, and nobody else does."""
        for layer, weight, bias in self.layers:
            if self.watch.takes(call, weight) and self.watch.only_taker(weight) is call:
                # A convolution of a foreign class might not look at a bias that it did not have.
                minds = _minds_its_bias(layer) if bias is None else self.watch.takes(call, bias)
                return layer if minds else None
        return None

    def fold_standardisation(self) -> tuple[str, ...]:
        """Fold the standardisation of the pixels into the first convolution.

        W (x - mean) / std is (W / std) (x - mean): the division always goes. The mean may only follow, as the bias
        - W mean / std, where nothing is padded: around the image a padded convolution sees zeros, which are the mean.

        Returns:
            What the weights now hold: "std", "mean" and "std", or nothing.
        """
        backbone: Any = self.model.backbone
        if self.standard is None or backbone.folded or type(backbone).standardise is not Backbone.standardise:
            return ()
        value, padded = self.standard, False
        call = self.watch.only_taker(value)
        if call is not None and call.operation is torch.ops.aten.constant_pad_nd.default:
            if len(call.arguments) > 2 and call.arguments[2] != 0:
                return ()
            (value,), padded = self.watch.made_by(call), True
            call = self.watch.only_taker(value)
        layer = None if call is None else self._layer_of(call)
        if call is None or layer is None or not isinstance(layer, CONVOLUTIONS) or call.tensors[0] is not value:
            return ()
        mean, std = (_per_weight(_double(numbers), layer) for numbers in (backbone.mean, backbone.std))
        weight = _double(layer.weight) / std
        if padded or any(call.arguments[PADDING]):
            _set(layer, weight, None if layer.bias is None else _double(layer.bias))
            backbone.folded = ("std",)
        else:
            bias = 0 if layer.bias is None else _double(layer.bias)
            _set(layer, weight, bias - (weight * mean).flatten(1).sum(1))
            backbone.folded = ("mean", "std")
        return tuple(backbone.folded)


def _minds_its_bias(layer: nn.Module) -> bool:
    """Whether a layer without bias would use one that it is given."""
    if type(layer) in (*CONVOLUTIONS, nn.Linear):
        return True
    if not type(layer).__module__.startswith("timm."):
        return False
    from timm.layers import Conv2dSame

    return type(layer) is Conv2dSame


def _rest_of(norm: Any) -> nn.Module | None:
    """What is left of a batch norm whose arithmetic is exactly known; None for other classes."""
    if type(norm) in NORMS:
        return nn.Identity()
    if not type(norm).__module__.startswith("timm."):
        return None
    from timm.layers import BatchNormAct2d

    return without_norm(norm) if type(norm) is BatchNormAct2d else None


def _per_weight(numbers: Tensor, layer: Any) -> Tensor:
    """One number per input channel, as a tensor that multiplies the weight (out, in / groups, ...) of a convolution."""
    by_group = numbers.reshape(layer.groups, -1).repeat_interleave(layer.weight.shape[0] // layer.groups, 0)
    return by_group.reshape(*by_group.shape, *[1] * (layer.weight.dim() - 2))


def _double(tensor: Any) -> Tensor:
    """The numbers in double precision, which not every device has."""
    return tensor.detach().cpu().double()


def _set(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    old = layer.weight
    layer.weight = nn.Parameter(weight.to(old.device, old.dtype), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.to(old.device, old.dtype), requires_grad=False)
