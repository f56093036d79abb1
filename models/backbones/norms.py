"""Normalisation layers of a network: which they are, and how evidence takes the place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from vitrarium.configs.errors import UserError

if TYPE_CHECKING:
    from vitrarium.models.backbones.base import Backbone

LAST_NORM = "last_norm"
"""The cut that stands for the last normalisation on the way to the final map, whatever it is called."""

PLAIN = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation: one of torch's, or of a class called so that holds no other one."""
    if isinstance(module, PLAIN):
        return True
    named = "norm" in type(module).__name__.lower()
    return named and not any(_named(inner) for name, inner in module.named_modules() if name)


def without_norm(norm: nn.Module) -> nn.Module | None:
    """What is left of a norm when its arithmetic is gone: nothing, or the activation of a joint norm-and-activation.

    Returns:
        None for a class that is not known.
    """
    if type(norm).__module__.startswith("torch.") and isinstance(norm, PLAIN):
        return nn.Identity()
    if not type(norm).__module__.startswith("timm."):
        return None
    steps = [step for step in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(step, nn.Module)]
    steps = [step for step in steps if not isinstance(step, nn.Identity)]
    return steps[0] if len(steps) == 1 else nn.Sequential(*steps) if steps else nn.Identity()


def last_norm(backbone: Backbone) -> str:
    """Module path of the last normalisation at which a whole backbone can be cut.

    Raises:
        UserError: there is none.
    """
    from vitrarium.models.backbones.splitting import split

    paths = [name for name, module in backbone.network.named_modules() if name and is_norm(module)]
    problem = ""
    for path in reversed(paths):
        try:
            split(backbone, path)
        except UserError as error:
            problem = problem or f": {error}"
        else:
            return path
    raise UserError(
        f"the backbone cannot be cut at a normalisation ({len(paths)} found{problem})",
        "name a module to cut at: backbone.cut=...; vitrarium list cuts shows some",
    )


def _named(module: nn.Module) -> bool:
    return isinstance(module, (*PLAIN, _BatchNorm)) or "norm" in type(module).__name__.lower()
