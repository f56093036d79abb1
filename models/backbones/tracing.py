"""What torch.fx needs to be told to cut a network: how deep to look, what is alive, which nodes go where."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones.base import Backbone, first_line
from vitrarium.models.modes import modes_kept

BATCH = 2

# Python's in-place operators and their ordinary forms.
ORDINARY: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass
class Trace:
    """A network as a graph, with the values of one run.

    Attributes:
        graph: from standardised pixels to the network's final value.
        cut: the node of the module to cut at.
        values: what each node gave for ``batch`` images of ``size``.
        size: height and width of those images.
        batch: how many they were.
    """

    graph: fx.Graph
    cut: fx.Node
    values: dict[fx.Node, Any]
    size: tuple[int, int]
    batch: int = BATCH


class _Tracer(fx.Tracer):
    """Follows only the modules on the way to ``path``; all others stay whole, with their modes and control flow."""

    def __init__(self, path: str, entry: str) -> None:
        super().__init__()
        steps = path.split(".")
        self.open = {".".join(steps[:n]) for n in range(1, len(steps))}
        self.traced_func_name = entry

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.open

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # Only the pixels are an input; optional arguments (an attention mask, say) keep their defaults.
        def entry(network: nn.Module, pixels: Any) -> Any:
            return root_fn(network, pixels)

        return super().create_args_for_root(entry, is_module, concrete_args)


def trace(backbone: Backbone, path: str) -> Trace:
    """Follow ``backbone.network`` as deep as ``path`` lies, in both modes, and run it once on a gradient.

    Raises:
        UserError: control flow that depends on values, code that differs between training and evaluation, a module
            that is not used or used more than once.
    """
    network = backbone.network
    with modes_kept(backbone), _refusing(network, path):
        graphs = [_Tracer(path, backbone.entry).trace(network.train(mode)) for mode in (True, False)]
        cut = _node_of(graphs[1], path)
        if _said(graphs[0]) != _said(graphs[1]):
            raise UserError(
                f"the code around '{path}' differs between training and evaluation; a cut there would freeze one",
                f"cut at a module further out, such as '{path.rpartition('.')[0]}'",
            )
        values, size = _run(backbone, graphs[1])
    return Trace(graphs[1], cut, values, size)


def live_across(traced: Trace, cut: str) -> list[fx.Node]:
    """The nodes besides the cut whose tensors the rest of the network still needs.

    Sizes and constants are not among them: they are computed again above the cut.
    """
    nodes = list(traced.graph.nodes)
    above = set(nodes[nodes.index(traced.cut) + 1 :])
    needed = _ancestors([nodes[-1]], above)
    if not any(traced.cut in node.all_input_nodes for node in needed):
        raise UserError(f"the final map does not depend on module '{cut}'", "cut at a module on the way to it")
    live: list[fx.Node] = []
    asked = [i for node in nodes if node in needed for i in node.all_input_nodes if i not in above]
    seen: set[fx.Node] = set()
    while asked:
        node = asked.pop(0)
        if node in seen or node is traced.cut:
            continue
        seen.add(node)
        if _recomputed(node, traced):
            asked.extend(node.all_input_nodes)
        elif isinstance(traced.values[node], Tensor):
            live.append(node)
        else:
            raise UserError(
                f"at '{cut}' module '{node.target}' hands on {type(traced.values[node]).__name__}, not one tensor",
                "cut at another module",
            )
    return sorted(live, key=nodes.index)


def assemble(network: nn.Module, traced: Trace, live: list[fx.Node]) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The two halves as modules that share the parameters of ``network``.

    Returns:
        ``stem(pixels) -> (value at the cut, *live)`` and ``tail(value at the cut, *live) -> final value``.
    """
    nodes = list(traced.graph.nodes)
    outputs = [traced.cut, *live]
    below = _ancestors(outputs, set(nodes))
    stem = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in below or node.op == "placeholder":
            env[node] = _copy(stem, node, env)
    stem.output(tuple(env[node] for node in outputs))

    tail, env = fx.Graph(), {}
    for number, node in enumerate(outputs):
        env[node] = tail.placeholder("value" if number == 0 else f"carry_{number - 1}")
    needed = _ancestors([nodes[-1]], set(nodes) - set(outputs))
    for node in nodes:
        if node in needed and node.op != "output":
            env[node] = _copy(tail, node, env)
    tail.output(fx.map_arg(nodes[-1].args[0], lambda n: env[n]))
    return fx.GraphModule(network, stem, "StemGraph"), fx.GraphModule(network, tail, "TailGraph")


def without_inplace(network: nn.Module) -> None:
    """Make activations that write into their input return a new tensor instead; the values are the same."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


@contextmanager
def _refusing(network: nn.Module, path: str) -> Iterator[None]:
    """Anything can go wrong in foreign code that meets a proxy instead of a tensor: say that it did, and where."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"torch.fx cannot follow {type(network).__name__} to '{path}': {first_line(error)}",
            "cut at a module further out, or at one of the backbone's named cuts",
        ) from error


def _node_of(graph: fx.Graph, path: str) -> fx.Node:
    found = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
    if len(found) != 1:
        times = "not used" if not found else f"used {len(found)} times"
        raise UserError(f"module '{path}' is {times} on the way to the final map", "cut at another module")
    return found[0]


def _said(graph: fx.Graph) -> list[str]:
    return [node.format_node() or str(node.args) for node in graph.nodes]


@torch.no_grad()
def _run(backbone: Backbone, graph: fx.Graph) -> tuple[dict[fx.Node, Any], tuple[int, int]]:
    """Values of one run in evaluation mode. Oblong images where the network takes any, to tell rows from channels."""
    side = backbone.image_size or backbone.probe_size
    size = (side, side if backbone.image_size else 2 * side)
    everything = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output":
            env[node] = everything.node_copy(node, lambda n: env[n])
    everything.output(tuple(env.values()))
    shape = (BATCH, backbone.in_channels, *size)
    pixels = torch.linspace(-2, 2, math.prod(shape)).to(backbone.mean).reshape(shape)
    values = dict(zip(env, fx.GraphModule(backbone.network, everything)(pixels), strict=True))
    followed = fx.map_arg(next(iter(reversed(graph.nodes))).args[0], lambda node: values[node])
    final = getattr(backbone.network, backbone.entry)(pixels)
    # Code that asks what kind of object it was given takes another way with a proxy, without a complaint.
    largest = float(final.abs().nan_to_num(posinf=0).max()) if isinstance(final, Tensor) else 1.0
    torch.testing.assert_close(followed, final, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
    return values, size


def _recomputed(node: fx.Node, traced: Trace) -> bool:
    """Whether ``node`` is no tensor of the images: a size, a parameter, a view of several tensors."""
    if node.op == "placeholder":
        return False
    if node.op == "get_attr" or not _ancestors([node]).intersection(traced.graph.find_nodes(op="placeholder")):
        return True
    return node.op != "call_module" and not isinstance(traced.values[node], Tensor)


def _ancestors(nodes: Iterable[fx.Node], among: set[fx.Node] | None = None) -> set[fx.Node]:
    """The nodes and all that they are computed from, not looking beyond ``among``."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found and (among is None or node in among):
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _copy(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node]) -> fx.Node:
    """``node`` in another graph, in its ordinary form if it was in-place."""
    copied = graph.node_copy(node, lambda n: env[n])
    if copied.op == "call_function":
        copied.target = ORDINARY.get(copied.target, copied.target)
        if copied.kwargs.get("inplace") is True:
            copied.kwargs = {**copied.kwargs, "inplace": False}
    elif copied.op == "call_method" and _is_inplace(str(copied.target)) and node.users:
        copied.target = str(copied.target)[:-1]
    return copied


def _is_inplace(method: str) -> bool:
    return method.endswith("_") and not method.endswith("__")
