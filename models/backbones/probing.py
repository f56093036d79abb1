"""Running a network once, to learn about it, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitrarium.models.modes import modes_kept

T = TypeVar("T")


@dataclass
class Run:
    """What a run of a network in both modes gave.

    Attributes:
        end: what the network returned in evaluation mode; None if it failed.
        failure: why it failed, in whatever mode, or None.
        values: what each watched module gave in evaluation mode, in the order in which they finished.
        calls: how often each watched module ran there.
        trained: the watched modules that ran in training mode.
    """

    end: Any = None
    failure: Exception | None = None
    values: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)

    def reached(self, path: str | None) -> bool:
        """Whether the module ran in both modes, or nothing failed at all."""
        return self.failure is None or (path in self.values and path in self.trained)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Afterwards modes, buffers (running statistics) and torch's random state are what they were before."""
    modules = list(network.modules())
    buffers = [(m, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    with modes_kept(network), torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    buffer.copy_(value)
                    module._buffers[name] = buffer


@torch.no_grad()
def evaluate(network: nn.Module, run: Callable[[Any, Tensor], T], pixels: Tensor) -> T:
    """``run(network, pixels)`` in evaluation mode; everything is left as it was."""
    with undisturbed(network):
        return run(network.eval(), pixels)


@torch.no_grad()
def watch(network: nn.Module, pixels: Tensor, paths: Collection[str]) -> Run:
    """Run a network in both modes and note what the modules at ``paths`` give, even if it fails on the way."""
    seen = Run()

    def note(path: str, value: Any) -> None:
        if network.training:
            seen.trained.add(path)
            return
        seen.values.pop(path, None)
        seen.values[path] = value
        seen.calls[path] = seen.calls.get(path, 0) + 1

    hooks = [
        network.get_submodule(path).register_forward_hook(lambda _m, _, value, path=path: note(path, value))
        for path in paths
    ]
    try:
        for training in (True, False):
            try:
                with undisturbed(network):
                    seen.end = network.train(training)(pixels)
            except Exception as error:
                # Foreign code: it may refuse these images in any way it likes.
                seen.end, seen.failure = None, error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def all_learning(network: nn.Module) -> Iterator[None]:
    """In evaluation mode, with gradients for every parameter; afterwards all is as before."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        with undisturbed(network), torch.enable_grad():
            for parameter in frozen:
                parameter.requires_grad_(True)
            network.eval()
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def values_at(network: nn.Module, pixels: Tensor, paths: Iterable[str]) -> dict[str, tuple[Tensor, Any]]:
    """By path what a module gives, and the node of its gradient."""
    found: dict[str, tuple[Tensor, Any]] = {}

    def note(path: str, value: Any) -> None:
        # At once: whatever is written into the value later has a node of its own.
        found[path] = (value.detach(), value.grad_fn)

    hooks = [
        network.get_submodule(path).register_forward_hook(lambda _m, _, value, path=path: note(path, value))
        for path in paths
    ]
    try:
        network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def numbers_behind(node: Any) -> int:
    """How many numbers have a gradient through a node: the parameters at the ends of its graph."""
    seen, waiting, leaves = {node}, [node], set()
    while waiting:
        step = waiting.pop()
        if hasattr(step, "variable"):
            leaves.add(step.variable)
        for following, _ in getattr(step, "next_functions", ()):
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return sum(leaf.numel() for leaf in leaves)


@torch.no_grad()
def drop_unused(
    network: nn.Module,
    run: Callable[[Any, Tensor], Tensor],
    pixels: Tensor,
    way: str = "",
    modes: Sequence[bool] = (False,),
) -> None:
    """Take out the layers that ``run`` does not call; if one of them is needed after all, none.

    They belong to a head: vgg's ``pre_logits`` holds 120 of its 129 million parameters.

    Args:
        network: changed.
        run: what is done with it.
        pixels: images to try it with.
        way: a module path; modules on it are looked into, those beside it go or stay as a whole.
        modes: whether to try it in training mode (True) and in evaluation mode (False, the last).
    """
    called: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda m, _: called.add(m)) for module in network.modules()]
    try:
        for training in modes:
            with undisturbed(network):
                before = run(network.train(training), pixels)
    finally:
        for hook in hooks:
            hook.remove()
    dropped = list(_uncalled(network, way, called))
    for parent, name, _ in dropped:
        setattr(parent, name, nn.Identity())
    try:
        same = not dropped or torch.equal(evaluate(network, run, pixels), before)
    except Exception:
        # A layer whose weights others read.
        same = False
    if not same:
        for parent, name, child in dropped:
            setattr(parent, name, child)


def _uncalled(network: nn.Module, way: str, called: set[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and module of what did not run and has parameters, among the neighbours of the way."""
    steps = way.split(".")
    for depth in range(len(steps)):
        parent = network.get_submodule(".".join(steps[:depth]))
        for name, child in list(parent.named_children()):
            if (
                name != steps[depth]
                and not called.intersection(child.modules())
                and any(True for _ in child.parameters())
            ):
                yield parent, name, child
