"""Whether the pictures of prototypes still show what the prototypes are: checksum of the weights, and drift."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.source import Split
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating
from vitrarium.models.prototypes.layer import PrototypeLayer
from vitrarium.models.prototypes.nearest import prototype_layer

BOOKKEEPING = ("sources.", "alive", "absent", "present", "class_of")
"""Tensors of the evidence that change no similarity."""

PIECE = 2**20


@torch.no_grad()
def weights_checksum(model: TransparentClassifier) -> float:
    """A number that changes with any weight that decides a similarity: those of the backbone and of the evidence.

    The sum over all tensors and places i of (2 i + 1) times the bits of the i-th number in single precision, modulo
    2^52. Whole numbers add up to the same on every device and in any order. The readout, which units are alive, and
    the sources themselves do not count.
    """
    total, place = 0, 0
    for part, module in (("backbone", model.backbone), ("evidence", model.evidence)):
        for name, tensor in sorted(module.state_dict().items()):
            if not tensor.is_floating_point() or (part == "evidence" and name.startswith(BOOKKEEPING)):
                continue
            for piece in tensor.detach().flatten().split(PIECE):
                # Adding 0 makes -0 and 0 the same.
                bits = (piece.float() + 0.0).view(torch.int32).to(torch.int64)
                factor = torch.arange(place, place + len(bits), device=bits.device) * 2 + 1
                total += int((bits * factor).sum())
                place += len(bits)
    return float(total % 2**52)


def pictures_are_current(model: TransparentClassifier) -> bool:
    """Whether drift was measured with just these weights, so that what ``sources`` says is true now."""
    state = prototype_layer(model).sources.state
    # A model in lower precision has rounded what it was measured with.
    return bool(state.isfinite()) and float(state) == float(torch.tensor(weights_checksum(model), dtype=state.dtype))


def carry_state(model: TransparentClassifier, copy: TransparentClassifier) -> None:
    """Let the pictures of a copy that sees the same with other weights be as current as those of its original."""
    if isinstance(model.evidence, PrototypeLayer) and isinstance(copy.evidence, PrototypeLayer):
        state = weights_checksum(copy) if pictures_are_current(model) else float("nan")
        copy.evidence.sources.state.fill_(state)


def describe_drift(model: TransparentClassifier, prototype: int, current: bool | None = None) -> str:
    """What a picture of a prototype has to say about itself, in words.

    Args:
        model: the model.
        prototype: its position.
        current: what :func:`pictures_are_current` said; None = ask it.
    """
    sources = prototype_layer(model).sources
    if int(sources.index[prototype]) < 0:
        return "no source: never projected, or moved by hand"
    drift = float(sources.drift[prototype])
    if drift != drift or not (pictures_are_current(model) if current is None else current):
        return "weights changed since the picture was taken: it may be stale"
    return f"drift {100 * drift:.1f} %"


def digest_of(pixels: np.ndarray) -> int:
    """Hash of an image's pixels, (H, W, 3) uint8, as a signed 64-bit number."""
    total = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=8).digest()
    return int.from_bytes(total, "little", signed=True)


def source_images(split: Split, index: Tensor, batch: int = 64) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
    """The images of some positions, each once, in batches.

    Args:
        split: where they are.
        index: (n,) int64, positions; repeated ones are read once.
        batch: images at a time.

    Yields:
        ``(positions, pixels)``: (b,) int64 rising, and b arrays (H, W, 3) uint8.
    """
    for positions in index.cpu().unique().split(batch):
        yield positions, [split.sample(int(position)).image for position in positions]


def to_pixels(images: list[np.ndarray], device: Any = None) -> Tensor:
    """Arrays (H, W, 3) uint8 as a batch (n, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float().div_(255).to(device)


def measure_drift(model: TransparentClassifier, split: Split, batch: int = 64) -> Tensor:
    """How far each prototype is from its source patch as present weights embed it.

    |p - x| / |p| with x the patch now. Where units are channels and have no vector, the relative change of the
    similarity at the source, |s - s_then| / |s_then|.

    Args:
        model: the model; nothing is changed.
        split: the training split that the sources are positions of.
        batch: images at a time.

    Returns:
        (P,) float32, NaN for prototypes without a source, on the layer's device.

    Raises:
        UserError: the split is another one than the sources come from.
    """
    layer = prototype_layer(model)
    sources, vectors = layer.sources, layer.vectors
    drift = torch.full_like(sources.drift, float("nan"), dtype=torch.float32)
    known = sources.known.nonzero().squeeze(1)
    if len(known) and int(sources.index.max()) >= len(split):
        raise UserError(
            f"a prototype comes from image {int(sources.index.max())}, and this split has {len(split)}",
            "give the training split that the model was projected on",
        )
    with evaluating(model):
        for positions, images in source_images(split, sources.index[known], batch):
            which = known[torch.isin(sources.index[known].cpu(), positions).to(known.device)]
            row = torch.searchsorted(positions.to(which.device), sources.index[which])
            digests = torch.tensor([digest_of(image) for image in images], device=which.device)
            if not torch.equal(digests[row], sources.digest[which]):
                raise UserError(
                    "the images are not those that prototypes come from: their pixels differ",
                    "give the data that the model was trained on, in the same size and preparation",
                )
            latent = layer.embed(model.backbone(to_pixels(images, layer.class_of.device).to(model.backbone.mean.dtype)))
            places = sources.place[which]
            if vectors is None:
                now = layer.similarity(latent)[row, which, places[:, 0], places[:, 1]].float()
                then = sources.similarity[which].float()
                drift[which] = (now - then).abs() / then.abs().clamp_min(1e-12)
            else:
                own = vectors[which].flatten(1).float()
                away = (own - layer.patches(latent, row, places).flatten(1).float()).norm(dim=1)
                drift[which] = away / own.norm(dim=1).clamp_min(1e-12)
    return drift


def record_drift(model: TransparentClassifier, split: Split) -> Tensor:
    """Measure drift and file it with the sources, so that pictures are current again; (P,) as it was measured."""
    sources = prototype_layer(model).sources
    drift = measure_drift(model, split)
    sources.drift.copy_(drift)
    sources.state.fill_(weights_checksum(model))
    return drift
