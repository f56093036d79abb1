"""Every model of timm as a backbone: convolutional and transformer, any cut, any number of input channels."""

from __future__ import annotations

from typing import Any

import timm
from timm.utils import reparameterize_model
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.backbones.base import FINAL, Backbone, Cut, finish, first_line, for_channels
from vitrarium.models.backbones.layouts import Layout
from vitrarium.models.backbones.norms import is_norm
from vitrarium.models.backbones.probing import drop_unused, evaluate
from vitrarium.models.backbones.tracing import without_inplace
from vitrarium.models.types import Features

PROBE_SIZE = 128


class TimmBackbone(Backbone):
    """A timm model without its classification head.

    Cuts are the names of the model's own feature list and ``final``, the map just before pooling (for transformers
    after the last norm). A few models end in class tokens or several maps instead (pit, crossvit): they have no
    ``final`` and end at their last feature.

    Args:
        model: timm's name, with or without a weight tag.
        in_channels: channels of the images.
        image_size: height and width for models that need to know; None keeps timm's size.

    Raises:
        UserError: an unknown model or tag, an image size for a model that takes any.
    """

    network: Any
    cuts: dict[str, Cut]
    entry = "forward_features"
    feature = -1

    def __init__(self, model: str, in_channels: int = 3, image_size: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.origin = {"name": f"timm/{model}", "in_channels": in_channels, "image_size": image_size}
        self.network = create(model, in_channels, image_size)
        # Activations that write in place cannot be hooked for gradients, and would write into maps others look at.
        without_inplace(self.network)
        self.channels_last = not has_narrow_strided_pointwise(self.network)
        facts = self.network.pretrained_cfg
        self.standardise_by(for_channels(facts["mean"], in_channels), for_channels(facts["std"], in_channels))
        native = int(facts["input_size"][-1])
        self.image_size = image_size or (native if facts.get("fixed_input_size") else None)
        self._explore(native)

    def forward(self, x: Tensor) -> Features:
        """(B, C, H, W) pixels in [0, 1] to the map (B, D, h, w) at the cut; of tokens only those that have a place."""
        pixels = self.standardise(x)
        if self.cut == FINAL:
            return Features(self.layout.read(self.network.forward_features(pixels), pixels.shape[-2:])[0])
        return Features(_feature(self.network, pixels, self.feature))

    def split(self, cut: str) -> tuple[Backbone, nn.Module]:
        """See :meth:`Backbone.split`; only a network that has its ``final`` map can be split."""
        if self.cut != FINAL:
            raise UserError(
                f"timm/{self.model} ends at '{self.cut}', and only a network with its final map can be split",
                "build it without a cut" if self.has_final else f"cut at one of: {', '.join(self.cuts)}",
            )
        return super().split(cut)

    def truncate(self, cut: str) -> Backbone:
        """Up to ``cut``: a name of timm's feature list by timm's own means, any other module by torch.fx.

        A normalisation is left to torch.fx as well, so that it can be opened.
        """
        if cut == FINAL and FINAL in self.cuts:
            drop_unused(self.network, _end, self._probe())
            return self
        if cut not in self.cuts or self._is_norm(cut):
            drop_unused(self.network, _end, self._probe())
            return super().truncate(cut)
        self._keep_tail(cut)
        names = list(self.cuts)
        place = names.index(cut)
        self.feature = _prune(self.network, place)
        self.cut, self.cuts = cut, {name: self.cuts[name] for name in names[: place + 1]}
        drop_unused(self.network, lambda network, pixels: _feature(network, pixels, self.feature), self._probe())
        return self

    def _is_norm(self, cut: str) -> bool:
        return is_norm(dict(self.network.named_modules()).get(cut, self.network))

    def _keep_tail(self, cut: str) -> None:
        """Before the layers above a cut are taken out, remember them for :meth:`tail`, where torch.fx can follow."""
        if not self.has_final:
            return
        try:
            stem, rest = self.split(cut)
        except UserError:
            return
        if "carry" not in stem.gives:
            self.__dict__["_tail"] = (rest, self.channels)

    def maps(self, pixels: Tensor) -> dict[str, tuple[Tensor, Any]]:
        """See :meth:`Backbone.maps`."""
        final, maps = _features(self.network, self.standardise(pixels))
        if self.has_final:
            maps = [*maps, self.layout.read(final, pixels.shape[-2:])[0]]
        return {cut: (map, map.grad_fn) for cut, map in zip(self.cuts, maps, strict=True)}

    def deployed(self) -> Backbone:
        """Its blocks with several branches (RepVGG, MobileOne, LeViT ...) in the form with one that timm gives them."""
        # What timm makes anew has torch's default type and place.
        self.network = reparameterize_model(self.network, inplace=True).to(self.mean)
        return self

    def _explore(self, native: int) -> None:
        """Run the model once to learn its cuts and how it holds its final map."""
        # Small images where any will do; a few models need more than that.
        sizes = (self.image_size,) if self.image_size else (min(native, PROBE_SIZE), native)
        for self.probe_size in dict.fromkeys(sizes):
            try:
                final, maps = evaluate(self.network, _features, self._probe())
                break
            except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
                failure = error
        else:
            raise UserError(
                f"timm/{self.model} does not take images of {self.probe_size} x {self.probe_size}: "
                f"{first_line(failure)}",
                "set backbone.image_size to another size, or choose another model",
            ) from failure
        names = _feature_names(self.network)
        layout = _final_layout(final, maps[-1], getattr(self.network, "output_fmt", None))
        self.cuts = {name: self._cut(map) for name, map in zip(names, maps, strict=True)}
        self.cut = names[-1]
        self.has_final = layout is not None
        if layout is not None:
            self.layout, self.cut = layout, FINAL
            self.cuts[FINAL] = self._cut(layout.read(final, maps[-1].shape[-2:])[0])

    def _cut(self, map: Tensor) -> Cut:
        return Cut(map.shape[1], max(1, round(self.probe_size / map.shape[2])))

    def _probe(self) -> Tensor:
        return self.mean.new_zeros(1, self.in_channels, self.probe_size, self.probe_size)


def build_timm(
    model: str,
    in_channels: int = 3,
    image_size: int | None = None,
    cut: str | None = None,
    weights: str | None = None,
) -> Backbone:
    """Build a :class:`TimmBackbone`.

    Args:
        model: timm's name.
        in_channels: channels of the images; RGB weights are folded to fit.
        image_size: height and width, for models with positions or windows of a fixed size.
        cut: a name of timm's feature list, ``final``, or any module path (``layer4.0.bn1``); default ``final``.
        weights: a weight source (``hub`` for timm's own); default random.

    Raises:
        UserError: an unknown model, cut or weight source, an image size the model does not take.
    """
    return finish(TimmBackbone(model, in_channels, image_size), cut, weights)


def create(model: str, in_channels: int, image_size: int | None, pretrained: bool = False) -> Any:
    """A timm model without classifier, by its name; the network is asked only for ``pretrained``."""
    if not timm.is_model(model) or ":" in model:
        known = (f"timm/{name}" for name in list_timm())
        raise UserError(f"unknown backbone 'timm/{model}'", closest(f"timm/{model}", known))
    for option, value in (("in_channels", in_channels), ("image_size", image_size)):
        if value is not None and value < 1:
            raise UserError(f"timm/{model} with {option}={value}", f"set {option} to 1 or more")
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        return timm.create_model(model, pretrained=pretrained, num_classes=0, in_chans=in_channels, **size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise UserError(f"timm/{model} takes images of any size", "leave backbone.image_size out") from error
    except RuntimeError as error:
        if "pretrained tag" not in str(error):
            raise
        tags = [name.partition(".")[2] for name in timm.list_pretrained(model.partition(".")[0] + ".*")]
        raise UserError(f"timm/{model} has no such weight tag", closest(model.partition(".")[2], tags)) from error


def list_timm() -> list[str]:
    """The names of all models of timm."""
    return list(timm.list_models())


def has_narrow_strided_pointwise(network: nn.Module) -> bool:
    """Whether a network has 1x1 convolutions with a stride that read fewer than 16 channels (FastViT, RepVGG).

    The gradient of their weights is written beyond its end on CPUs when maps have their channels last (oneDNN of
    torch 2.14; 128 pixels with stride 2 crash the process).
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(
        convolution.kernel_size == (1, 1) and convolution.stride != (1, 1) and convolution.in_channels < 16
        for convolution in convolutions
    )


def _features(network: Any, pixels: Tensor) -> tuple[Any, list[Tensor]]:
    """The final value as the model gives it, and the maps (B, D, h, w) of its feature list."""
    final, maps = network.forward_intermediates(pixels, output_fmt="NCHW")
    return final, maps


def _end(network: Any, pixels: Tensor) -> Tensor:
    """The final value, or the last map where that is no tensor."""
    final, maps = _features(network, pixels)
    return final if isinstance(final, Tensor) else maps[-1]


def _feature(network: Any, pixels: Tensor, index: int) -> Tensor:
    """One map (B, D, h, w) of the feature list; what lies above it does not run."""
    (map,) = network.forward_intermediates(
        pixels, indices=[index], stop_early=True, intermediates_only=True, output_fmt="NCHW"
    )
    return map


def _prune(network: Any, place: int) -> int:
    """Take out what lies above a feature; its index from then on."""
    (index,) = network.prune_intermediate_layers([place], prune_norm=True, prune_head=True)
    return int(index)


def _feature_names(network: Any) -> list[str]:
    """The modules of the feature list; a second branch through the same module is called ``<module>:2``."""
    info = network.feature_info
    modules = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
    earlier = [modules[:place].count(module) for place, module in enumerate(modules)]
    return [module if n == 0 else f"{module}:{n + 1}" for module, n in zip(modules, earlier, strict=True)]


def _final_layout(final: object, last: Tensor, declared: str | None) -> Layout | None:
    """How ``final`` holds a map; None if it is none.

    Args:
        final: what the model gives before pooling.
        last: the last map (B, D, h, w) of its feature list, whose grid tokens must fill.
        declared: the layout the model says it has, if it says.
    """
    if not isinstance(final, Tensor):
        return None
    if final.dim() == 4:
        return Layout("last" if declared == "NHWC" else "first")
    prefix = final.shape[1] - last.shape[2] * last.shape[3]
    return Layout("tokens", prefix) if final.dim() == 3 and prefix >= 0 else None
