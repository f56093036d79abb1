"""Ending a network at one of its modules where torch.fx cannot cut it: it runs until the module has its value."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones.probing import drop_unused


class Reached(BaseException):
    """Ends a run at the cut; no ``except Exception`` on the way catches it."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def stop_at(network: nn.Module, cut: str, pixels: Tensor) -> None:
    """Let ``network`` end at the module ``cut``, for good, and take out the layers that only come after it.

    From then on it is to be run by :func:`until_reached`.

    Args:
        network: changed.
        cut: path of a module that runs once.
        pixels: standardised images to try it with.

    Raises:
        UserError: it does not come to the cut in training mode.
    """
    network.get_submodule(cut).register_forward_hook(_stop)
    drop_unused(network, until_reached, pixels, cut, modes=(True, False))


def until_reached(network: nn.Module, pixels: Tensor) -> Any:
    """What the module gives at which the network stops."""
    try:
        network(pixels)
    except Reached as reached:
        return reached.value
    raise UserError(
        f"{type(network).__name__} did not come to its cut in {'training' if network.training else 'evaluation'} mode",
        "cut at a module that always runs",
    )


def _stop(module: nn.Module, given: Any, value: Any) -> None:
    raise Reached(value)
