"""Any ``nn.Module`` as a backbone: its map, its cuts, and where it stops."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.backbones.base import FINAL, Backbone, Cut, first_line
from vitrarium.models.backbones.layouts import Layout, detect, grid
from vitrarium.models.backbones.probing import Run, drop_unused, values_at, watch
from vitrarium.models.backbones.splitting import split
from vitrarium.models.backbones.stopping import stop_at, until_reached
from vitrarium.models.backbones.tracing import without_inplace
from vitrarium.models.types import Features

BATCH = 2
# Heights that are tried until the network takes one: small ones first, then those that networks are made for.
SIZES = (64, 128, 32, 28, 224, 256, 299, 384)
# Class and register tokens that are looked for in front of a grid of tokens.
MOST_PREFIX_TOKENS = 8
SHOWN = 8


class ModuleBackbone(Backbone):
    """A network of anybody's as a backbone.

    It runs once on noise, in evaluation mode, to see which of its modules, down to the second level, give a map: these
    are the named cuts. A network whose output is a map itself, (B, D, h, w), (B, h, w, D) or tokens (B, N, D), can also
    be used whole, up to ``final``; one that ends in anything else must be cut.

    A cut is made by torch.fx. Where torch.fx cannot follow, the network itself runs and stops as soon as the cut has
    its value; the map is the same, but nothing above the cut can be a readout, and the model cannot be exported.
    ``note`` says when it is so.

    Args:
        network: takes one tensor (B, in_channels, H, W); changed (nothing stays in place, layers above a cut go).
        cut: the cut that is going to be made; what fails above it does not matter.
        in_channels: channels of the images.
        image_size: the only height and width it takes; None finds out.
        mean: subtracted from the pixels in [0, 1], one number or one per channel.
        std: the pixels are divided by it, likewise.
        prefix_tokens: class and register tokens in front of the grid; None finds out.

    Raises:
        UserError: nothing to learn in it, images that it does not take.
    """

    network: nn.Module
    cuts: dict[str, Cut]

    def __init__(
        self,
        network: nn.Module,
        cut: str | None = None,
        in_channels: int = 3,
        image_size: int | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        prefix_tokens: int | None = None,
    ) -> None:
        super().__init__()
        first = _first_parameter(network)
        self.standardise_by(per_channel("mean", mean, in_channels), per_channel("std", std, in_channels))
        if not self.std.gt(0).all():
            raise UserError(f"backbone.std={std}", "give numbers above 0")
        self.to(first.device, first.dtype)
        without_inplace(network)
        self.network, self.image_size, self.prefix_tokens = network, image_size, prefix_tokens
        self.stopped, self.ends_in_map = False, False
        self._explore(cut)

    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) pixels in [0, 1] to the map (B, D, h, w) at the cut; of tokens only those that have a place."""
        self._refuse_end()
        if self.stopped and torch.compiler.is_exporting():
            # An exception ends a run, and torch.export loses its place when there is one.
            raise UserError(
                f"{self._name} {self.note}, and torch.export cannot follow it either",
                "cut where torch.fx can cut: at a module whose surroundings do not look at values or sizes",
            )
        pixels = self.standardise(x)
        value = until_reached(self.network, pixels) if self.stopped else self.network(pixels)
        return Features(self.layout.read(value, pixels.shape[-2:])[0])

    @property
    def channels(self) -> int:
        """D of the map at the cut."""
        self._refuse_end()
        return super().channels

    @property
    def stride(self) -> int:
        """Pixels of the image per step of the map."""
        self._refuse_end()
        return super().stride

    def split(self, cut: str) -> tuple[Backbone, nn.Module]:
        """See :meth:`Backbone.split`; only a network that ends in a map can be split."""
        if not self.ends_in_map:
            raise UserError(
                f"{self._name} {f'stops at {self.cut!r}' if self.stopped else f'ends in {self._end}'}: "
                "there is no map above a cut",
                "only a network whose output is a map can be split",
            )
        return super().split(cut)

    def truncate(self, cut: str) -> Backbone:
        """Up to ``cut``: by torch.fx, or by stopping there where torch.fx cannot follow."""
        if cut == self.cut:
            if self.ends_in_map:
                drop_unused(self.network, lambda network, x: network(x), self._noise(self._size), modes=(True, False))
            return self
        if self.stopped:
            raise UserError(f"{self._name} already ends at '{self.cut}'", "build it again with another cut")
        layout = self._layout_at(cut)
        whole = self.layout
        if not self.ends_in_map:
            # Where shapes leave a choice, those of the final map decide; here there is none.
            self.layout = layout
        try:
            stem, rest = split(self, cut)
        except UserError as refused:
            self.layout = whole
            return self._stop_at(cut, layout, refused)
        if self.ends_in_map:
            stem.__dict__["_tail"] = (rest, self.channels)
        return stem

    def tail(self) -> tuple[nn.Module, int]:
        """See :meth:`Backbone.tail`; there is none where the network stops by itself."""
        if self.stopped:
            raise UserError(
                f"{self._name} {self.note}: nothing above it can be a readout", "cut at a module further out"
            )
        return super().tail()

    def maps(self, pixels: Tensor) -> dict[str, tuple[Tensor, Any]]:
        """See :meth:`Backbone.maps`; of one that stops, the map there."""
        if self.stopped:
            map = self(pixels).map
            return {self.cut: (map, map.grad_fn)}
        # The end is the output of the root.
        paths = {cut: "" if cut == self.cut else cut for cut in self.cuts}
        values = values_at(self.network, self.standardise(pixels), paths.values())
        read = {cut: self.layout if cut == self.cut else self._layouts[cut] for cut in paths}
        size = pixels.shape[-2:]
        return {cut: (read[cut].read(values[path][0], size)[0], values[path][1]) for cut, path in paths.items()}

    @property
    def _name(self) -> str:
        return type(self.network).__name__

    def _explore(self, cut: str | None) -> None:
        """Find a size of image that the network takes, its named cuts, and whether it ends in a map."""
        modules = [path for path, _ in self.network.named_modules() if path]
        paths = [path for path in modules if path.count(".") < 2 or path == cut]
        run, self._size = self._first_run(paths, cut)
        size = self._size
        self.cuts, self._layouts = {}, {}
        for path, value in run.values.items():
            layout = self._arrangement(value, size)
            if layout is not None and run.calls[path] == 1:
                self._layouts[path], self.cuts[path] = layout, _place(layout, value, size)
        layout = self._arrangement(run.end, size)
        self.cut, self._end = "", _said(run.end)
        if layout is not None:
            self.layout, self.ends_in_map = layout, True
            self.cut = FINAL if FINAL not in modules else "output"
            self.cuts[self.cut] = _place(layout, run.end, size)

    def _first_run(self, paths: list[str], cut: str | None) -> tuple[Run, tuple[int, int]]:
        """The first run that does not fail before ``cut``, and the size of its images, oblong if it takes them."""
        sides = SIZES if self.image_size is None else (self.image_size,)
        for side in sides:
            for size in ((side, 2 * side), (side, side)) if self.image_size is None else ((side, side),):
                run = watch(self.network, self._noise(size), paths)
                if run.reached(cut):
                    self.probe_size = side
                    # Tells rows from channels, and a network with a size of its own from one that takes any.
                    self.image_size = side if size[1] == side else None
                    return run, size
        failure: Any = run.failure
        tried = f"{min(sides)} to {max(sides)}" if len(sides) > 1 else str(sides[0])
        raise UserError(
            f"{self._name} takes no images (B, {self.in_channels}, H, W) of {tried} pixels: {first_line(failure)}",
            "set backbone.image_size and backbone.in_channels to what it takes; it is called with one tensor",
        ) from failure

    def _noise(self, size: tuple[int, int]) -> Tensor:
        """Standardised pixels of two images."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(BATCH, self.in_channels, *size, generator=generator).to(self.mean)

    def _arrangement(self, value: Any, size: tuple[int, int]) -> Layout | None:
        """How a value holds a map; None if it holds none."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != (BATCH,):
            return None
        if value.dim() != 3:
            # Pooled to one place: no map, and its channels would be everything there is.
            return detect(value.shape, size, Layout()) if value.shape[-2:] != (1, 1) else None
        known = self.prefix_tokens
        for prefix in range(MOST_PREFIX_TOKENS + 1) if known is None else (known,):
            places = grid(value.shape[1] - prefix, size)
            # Patches have a whole number of pixels: a grid of another kind is a coincidence.
            if places is not None and places != (1, 1) and (known is not None or size[0] % places[0] == 0):
                return Layout("tokens", prefix)
        return None

    def _layout_at(self, cut: str) -> Layout:
        """How the value at ``cut`` holds its map; refuses what cannot be cut at."""
        modules = [path for path, _ in self.network.named_modules() if path]
        if cut not in modules:
            raise UserError(f"{self._name} has no module '{cut}' to cut at", closest(cut, [*self.cuts, *modules]))
        if cut not in self.cuts:
            run = watch(self.network, self._noise(self._size), [cut])
            calls = run.calls.get(cut, 0)
            if calls != 1:
                raise UserError(
                    f"module '{cut}' of {self._name} runs {calls} times for one image", "cut where it runs once"
                )
            layout = self._arrangement(run.values[cut], self._size)
            if layout is None:
                raise UserError(f"module '{cut}' of {self._name} gives {_said(run.values[cut])}: no map", self._cure())
            self._layouts[cut], self.cuts[cut] = layout, _place(layout, run.values[cut], self._size)
        return self._layouts[cut]

    def _stop_at(self, cut: str, layout: Layout, refused: UserError) -> Backbone:
        """Let the network stop at ``cut``, and take out what only comes after it."""
        why = first_line(refused.__cause__) if refused.__cause__ is not None else refused.problem
        names = list(self.cuts)
        self.cuts = {name: self.cuts[name] for name in names[: names.index(cut) + 1]}
        self.cut, self.layout, self.stopped, self.ends_in_map = cut, layout, True, False
        self.note = f"stops at '{cut}', for torch.fx cannot cut there ({why})"
        stop_at(self.network, cut, self._noise(self._size))
        return self

    def _refuse_end(self) -> None:
        if not self.cut:
            raise UserError(f"{self._name} ends in {self._end}, which is no map", self._cure())

    def _cure(self) -> str:
        """Where it can be cut: whole stages before their parts, the last first."""
        places = sorted(reversed(list(self.cuts)), key=lambda path: path.count("."))
        if not places:
            return "no module of it gives a map (B, D, h, w) or a grid of tokens (B, N, D)"
        shown = [f"{name} ({self.cuts[name].channels} channels, stride {self.cuts[name].stride})" for name in places]
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        return f"set backbone.cut to one of: {', '.join(shown[:SHOWN])}{more}"


def per_channel(what: str, values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """One number, or one for each channel, as (channels,)."""
    if channels < 1:
        raise UserError(f"in_channels={channels}", "an image has at least one channel")
    given = (float(values),) * channels if isinstance(values, int | float) else tuple(float(v) for v in values)
    if len(given) != channels:
        raise UserError(
            f"backbone.{what} has {len(given)} numbers, the images {channels} channels", "give one for each"
        )
    return given


def structure_of(backbone: Backbone) -> str:
    """A hash of what it is made of: names and kinds of modules, shapes of tensors, channels and strides of cuts."""
    lines = [f"{path} {type(module).__name__}" for path, module in backbone.named_modules()]
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    lines += [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors]
    lines += [f"{name} {tuple(place)}" for name, place in backbone.cuts.items()] + [backbone.cut]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _first_parameter(network: nn.Module) -> Tensor:
    """A parameter, for place and type; refuses networks that cannot be used as they are."""
    name, parameters = type(network).__name__, list(network.parameters())
    if not parameters:
        raise UserError(f"{name} has no parameters: nothing in it can learn", "give a network with layers")
    if any(nn.parameter.is_lazy(p) for p in parameters):
        raise UserError(f"{name} has lazy layers that do not know their size yet", "run it once on an image first")
    if parameters[0].dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"{name} computes in {parameters[0].dtype}", "give it in float32; train.precision does the rest"
        )
    return parameters[0]


def _place(layout: Layout, value: Tensor, size: tuple[int, int]) -> Cut:
    map, _ = layout.read(value, size)
    return Cut(map.shape[1], max(1, round(size[0] / map.shape[2])))


def _said(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of shape (B{''.join(f', {n}' for n in value.shape[1:])})"
