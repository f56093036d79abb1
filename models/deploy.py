"""A model made ready to be used and not to be trained: everything folded that can be folded exactly."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from vitrarium.models.folding import Folding
from vitrarium.models.prototypes.drift import carry_state

if TYPE_CHECKING:
    from vitrarium.models.classifier import TransparentClassifier


@dataclass(frozen=True)
class DeployReport:
    """What :func:`deploy` made simpler.

    Attributes:
        norms: module paths of the batch norms that the layer before them now holds.
        norms_left: module paths of those that stay (no layer feeds them alone).
        standardisation: what of the pixels' standardisation the first convolution holds: "std", "mean" and "std".
        plain: module paths of what took a plain form: by its method ``deployed``, or by a parametrisation that was
            computed once and for all.
        parameters: how many numbers the model held before and after, running statistics included.
        affine: module paths of affine steps (whitening and rotation) that the convolution before them now holds.
    """

    norms: tuple[str, ...] = ()
    norms_left: tuple[str, ...] = ()
    standardisation: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    affine: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [f"{_count(len(self.norms), 'batch norm')} folded"]
        if self.norms_left:
            said[0] += f" ({len(self.norms_left)} stay, {self.norms_left[0]} among them)"
        if self.standardisation:
            said.append(f"the pixels' {' and '.join(self.standardisation)} folded into the first convolution")
        if self.affine:
            said.append("whitening and rotation folded into the convolution before them")
        if self.plain:
            said.append(f"{_count(len(self.plain), 'module')} in a plain form")
        before, after = self.parameters
        return ", ".join(said) + f"; {before:,} numbers are now {after:,}"


def deploy(model: TransparentClassifier, fold: bool = True) -> TransparentClassifier:
    """A copy of a model for inference: evaluation mode, no gradients, fewer steps, the same answers.

    - Every module with a method ``deployed()`` is replaced by what that returns, from the leaves upwards: layers that
      are constrained while they learn (orthogonal, whitened, reparametrised) return plain ones, of the same type and
      on the same device. Parametrisations of ``torch.nn.utils.parametrize`` are computed once and for all.
    - Batch norms go into the layer before them where that feeds nothing else; the division of the standardisation
      into the first convolution, and the mean too where that has no padding.
    - Weights lie in memory in the order of the maps.
    - Units, their names and their door for corrections stay. Train-only auxiliary modules are left out.

    Args:
        model: the model, which stays as it is.
        fold: False keeps norms and standardisation.

    Returns:
        The copy; ``.deploy_report`` says what became of it. It cannot be saved as a model folder: save the original.
    """
    copy = deepcopy(model).eval()
    before = _numbers(copy)
    for name in copy.train_only & set(copy.auxiliary):
        del copy.auxiliary[name]
    copy.train_only = set()
    with torch.no_grad():
        plain = _make_plain(copy)
    copy.readout.read(copy.evidence)
    copy.eval().requires_grad_(False)
    norms: list[str] = []
    kept: list[str] = []
    standardisation: tuple[str, ...] = ()
    affine: list[str] = []
    if fold:
        folding = Folding(copy, _any_image(copy))
        standardisation = folding.fold_standardisation()
        norms, kept = folding.fold_norms()
        affine = folding.fold_affine()
    if copy.backbone.channels_last:
        # Weights in the memory order of the maps: otherwise the convolution turns them round at every call.
        copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # What folding has put in the place of norms is new, and so in training mode.
    copy.eval()
    # Folding changes weights, but not what they see: pictures that were current still are.
    carry_state(model, copy)
    copy.deploy_report = DeployReport(
        tuple(norms), tuple(kept), standardisation, tuple(plain), (before, _numbers(copy)), tuple(affine)
    )
    return copy


def _make_plain(model: nn.Module) -> list[str]:
    """Replace modules by their plain forms, from the leaves upwards; the paths of those that changed."""
    forms: dict[nn.Module, nn.Module] = {}
    changed: list[str] = []

    def plain_form(module: Any, path: str) -> Any:
        if module in forms:
            return forms[module]
        if parametrize.is_parametrized(module):
            _compute_parametrisations(module)
            changed.append(path)
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = plain_form(child, f"{path}.{name}" if path else name)
        size = len(list(module.modules()))
        form = module.deployed() if callable(getattr(module, "deployed", None)) else module
        if form is not module or len(list(form.modules())) != size:
            changed.append(path)
        forms[module] = form
        return form

    plain_form(model, "")
    return changed


def _compute_parametrisations(module: Any) -> None:
    """Replace parametrised tensors by what they are now.

    Not by ``remove_parametrizations``: that changes the class of the module, which the original shares.
    """
    tensors = {name: getattr(module, name) for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, tensor in tensors.items():
        setattr(module, name, nn.Parameter(tensor.detach().clone(), requires_grad=False))


def _any_image(model: TransparentClassifier) -> torch.Tensor:
    """(1, C, H, W) pixels of a size that the model takes."""
    backbone = model.backbone
    size = backbone.image_size or (model.preprocessing.size if model.preprocessing else backbone.probe_size)
    return torch.rand(1, backbone.in_channels, size, size, generator=torch.Generator().manual_seed(0)).to(backbone.mean)


def _numbers(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
