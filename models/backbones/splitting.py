"""Cutting a network in two at any named module, with torch.fx."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.backbones.base import Backbone, Cut
from vitrarium.models.backbones.layouts import Layout, detect
from vitrarium.models.backbones.norms import is_norm, without_norm
from vitrarium.models.backbones.tracing import Trace, assemble, live_across, trace, without_inplace
from vitrarium.models.types import Features


class Stem(Backbone):
    """A backbone up to a cut: pixels to ``Features(map, carry)``.

    ``carry`` holds the other tensors alive across the cut, a residual shortcut say, and in front of them the prefix
    tokens of a transformer, which have no place on the map.

    Args:
        whole: the backbone that was cut; parameters are shared with it.
        network: standardised pixels to a tuple (value at the cut, other live tensors).
        cut: the name of the cut.
        place: channels and stride there.
        arrangement: how the value at the cut holds its map.
    """

    def __init__(self, whole: Backbone, network: nn.Module, cut: str, place: Cut, arrangement: Layout) -> None:
        super().__init__()
        self.standardise_by(tuple(whole.mean.tolist()), tuple(whole.std.tolist()))
        self.to(whole.mean.device, whole.mean.dtype)
        self.network, self.arrangement = network, arrangement
        self.cut, self.cuts = cut, {cut: place}
        self.origin, self.channels_last = whole.origin, whole.channels_last
        self.image_size, self.probe_size = whole.image_size, whole.probe_size
        self.path = whole.aliases.get(cut, cut)

    def open_norm(self) -> bool:
        """See :meth:`Backbone.open_norm`."""
        norm = self.network.get_submodule(self.path)
        if not is_norm(norm):
            return False
        left = without_norm(norm)
        if left is None:
            raise UserError(
                f"'{self.path}' is a {type(norm).__name__}, and what else than a normalisation it does is not known",
                "cut the backbone at another module",
            )
        self.network.set_submodule(self.path, nn.Identity())
        if not isinstance(left, nn.Identity):
            rest, _ = self.tail()
            assert isinstance(rest, Tail)
            rest.begin_with(left)
        return True

    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) pixels in [0, 1] to the map (B, D, h, w) at the cut and what else is alive there."""
        value, *others = self.network(self.standardise(x))
        map, prefix = self.arrangement.read(value, x.shape[-2:])
        return Features(map, (*prefix, *others))

    def maps(self, pixels: Tensor) -> dict[str, tuple[Tensor, Any]]:
        """See :meth:`Backbone.maps`; of this one the map at its cut."""
        map = self(pixels).map
        return {self.cut: (map, map.grad_fn)}

    def split(self, cut: str) -> tuple[Backbone, nn.Module]:
        """Refused: what lies above this cut is gone."""
        raise UserError(f"this backbone already ends at '{self.cut}'", "build it without a cut, and split that one")


class Tail(nn.Module):
    """The rest of a network above a cut: ``tail(map, *carry)`` to the final map of the uncut network.

    Args:
        network: (value at the cut, other live tensors) to the final value.
        arrangement: how the value at the cut holds its map.
        final: how the final value does.
    """

    def __init__(self, network: nn.Module, arrangement: Layout, final: Layout) -> None:
        super().__init__()
        self.network, self.arrangement, self.final = network, arrangement, final
        self.first: nn.Module | None = None

    def begin_with(self, first: nn.Module) -> None:
        """Let the map pass through another module before it enters the network."""
        without_inplace(first)
        self.first = first

    def forward(self, map: Tensor, *carry: Tensor) -> Tensor:
        """(B, D, h, w) and the stem's carry to (B, D', h', w'). Neither is written to."""
        prefixes = 1 if self.arrangement.prefix else 0
        if self.first is not None:
            map = self.first(map)
        value = self.arrangement.write(map, carry[:prefixes])
        return self.final.read(self.network(value, *carry[prefixes:]), map.shape[-2:])[0]


class End(nn.Module):
    """The tail of a network that is cut at its end."""

    def forward(self, map: Tensor, *carry: Tensor) -> Tensor:
        """The map as it is."""
        return map


def split(backbone: Backbone, cut: str) -> tuple[Backbone, nn.Module]:
    """Cut a whole backbone in two at a named cut or at the output of any module.

    The network is followed by torch.fx only as deep as the cut lies; every module beside the path to it stays whole,
    so most networks can be cut even if something inside them cannot be traced. In-place operations next to the
    cut are replaced by their ordinary forms: nobody may write into a map that others look at.

    Args:
        backbone: a backbone that is not cut yet; its parameters are shared, not copied.
        cut: one of ``backbone.cuts`` or a module path such as ``layer4.0.bn1``.

    Returns:
        The stem, pixels to ``Features(map (B, D, h, w), carry)``, and the tail, ``(map, *carry)`` to the final map.

    Raises:
        UserError: an unknown module, one that gives no single map, a network that torch.fx cannot follow.
    """
    path = backbone.aliases.get(cut, cut)
    modules = dict(backbone.network.named_modules())
    if path not in modules or not path:
        if cut == backbone.cut:
            return backbone, End()
        raise UserError(f"the backbone has no module '{cut}' to cut at", closest(cut, [*backbone.cuts, *modules]))
    traced = trace(backbone, path)
    arrangement, place = _place(backbone, traced, cut)
    live = live_across(traced, cut)
    stem, tail = assemble(backbone.network, traced, live)
    for half in (stem, tail):
        half.train(backbone.training)
        without_inplace(half)
    lower = Stem(backbone, stem, cut, place, arrangement).train(backbone.training)
    if live or arrangement.prefix:
        lower.gives = lower.gives | {"carry"}
    return lower, Tail(tail, arrangement, backbone.layout).train(backbone.training)


def _place(backbone: Backbone, traced: Trace, cut: str) -> tuple[Layout, Cut]:
    """How the value at the cut holds its map, and the map's channels and stride."""
    value, size = traced.values[traced.cut], traced.size
    arrangement = None
    if isinstance(value, Tensor) and value.shape[:1] == (traced.batch,):
        arrangement = detect(value.shape, size, backbone.layout)
    if arrangement is None:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(
            f"module '{cut}' gives {given} for {traced.batch} images of {size[0]} x {size[1]}, which is no map",
            "cut at a module that gives (B, D, h, w) or a grid of tokens",
        )
    map, _ = arrangement.read(value, size)
    return arrangement, Cut(map.shape[1], max(1, round(size[0] / map.shape[2])))
