"""Rectangles around what a prototype responds to, and how far they can be believed."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.modes import evaluating

PIXELS_AT_ONCE = 2**18
"""Of enlarged maps that are looked at together: they stay in a processor's cache."""


def upsampled(maps: Tensor, size: tuple[int, int], grid: tuple[int, int] | None = None) -> Tensor:
    """Maps (n, h', w') to the size of the image, (n, H, W), by cubic interpolation, as ProtoPNet shows them.

    Args:
        maps: float maps.
        size: H and W.
        grid: h and w of the latent map; similarity maps of k x k parts are smaller than it, and their borders are
            repeated so that the middle of a part lies where it is in the image. None = h' and w'.
    """
    height, width = (maps.shape[1], maps.shape[2]) if grid is None else grid
    down = _cubic(maps.shape[1], height, size[0]).to(maps.device)
    across = _cubic(maps.shape[2], width, size[1]).to(maps.device)
    return down @ maps.float() @ across.T


@lru_cache(maxsize=64)
def _cubic(places: int, grid: int, pixels: int) -> Tensor:
    """(pixels, places) weights of cubic interpolation along one side, which is linear: far faster than map by map."""
    with torch.inference_mode(False):  # what is kept may meet a gradient later
        sides = torch.eye(places)[:, None, None]
        first = (grid - places) // 2
        padded = functional.pad(sides, (first, grid - places - first, 0, 0), mode="replicate").transpose(2, 3)
        large = functional.interpolate(padded, size=(pixels, 1), mode="bicubic", align_corners=False)
    return large[:, 0, :, 0].T


def percentile_boxes(
    maps: Tensor, size: tuple[int, int], level: float = 0.95, grid: tuple[int, int] | None = None
) -> Tensor:
    """The tight rectangle around everything at or above a percentile of the cubic-upsampled map.

    Not of one connected region: ProtoPNet's way (Chen et al., NeurIPS 2019), whose ``level`` is 0.95. It says where the
    map is high, not what the network saw there: see :func:`misalignment` and the receptive field.

    Args:
        maps: (n, h', w') similarity maps.
        size: H and W of the image in pixels.
        level: of the percentile, in [0, 1], linear between order statistics.
        grid: as in :func:`upsampled`.

    Returns:
        (n, 4) float32 in [0, 1]: left, top, right, bottom.

    Raises:
        UserError: a level outside [0, 1].
    """
    if not 0 <= level <= 1:
        raise UserError(f"level={level} is no percentile", "give a number in [0, 1]")
    height, width = size
    boxes = [torch.zeros(0, 4)]
    for piece in maps.detach().cpu().split(max(1, PIXELS_AT_ONCE // (height * width))):
        flat = upsampled(piece, size, grid).flatten(1)
        position = level * (flat.shape[1] - 1)
        below = int(position)
        # numpy's partition is several times as fast as torch's kthvalue and topk.
        parted = torch.from_numpy(np.partition(flat.numpy(), below, axis=1))
        low, rest = parted[:, below], parted[:, below + 1 :]
        high = rest.amin(1) if rest.shape[1] else low
        mark = torch.lerp(low, high, position - below)[:, None]
        large = flat.unflatten(1, size)
        top, bottom = _ends(large.amax(2) >= mark)
        left, right = _ends(large.amax(1) >= mark)
        boxes.append(torch.stack([left / width, top / height, right / width, bottom / height], 1))
    return torch.cat(boxes).to(maps.device)


def _ends(marked: Tensor) -> tuple[Tensor, Tensor]:
    """First marked and one after the last marked, of (n, length) bool with something marked in each row."""
    first = marked.int().argmax(1)
    last = marked.shape[1] - marked.flip(1).int().argmax(1)
    return first.float(), last.float()


def inside_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 1, H, W) bool: which pixels have their middle inside boxes (n, 4) in [0, 1]."""
    height, width = size
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(1))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def misalignment(
    model: TransparentClassifier,
    images: Tensor,
    units: Tensor,
    boxes: Tensor,
    fill: Literal["mean", "blur"] = "mean",
    batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """How much of a unit's similarity the box accounts for: a box that claims too little is spatially misaligned.

    The question is that of Sacha et al. (AAAI 2024), who change what lies outside the box by an attack; here it is
    masked, and so is the inside. With s the similarity at the best place of the image, and s_out, s_in, s_all the
    similarities at the same place with the outside, the inside, or everything masked:

        kept = (s_out - s_all) / (s - s_all),   lost = (s - s_in) / (s - s_all).

    An honest box keeps and loses 1. The empty image is subtracted because many similarities do not begin at 0.

    Args:
        model: its evidence gives maps.
        images: (n, 3, H, W) in [0, 1].
        units: (n,) int64, the unit asked about in each image.
        boxes: (n, 4) in [0, 1].
        fill: what masked pixels become: "mean", the mean colour of the image, or "blur", the image without details
            (mean over a window of a quarter of its height).
        batch: images at a time.

    Returns:
        kept and lost, (n,) float32 each; NaN where the empty image is as similar as the image itself.

    Raises:
        UserError: evidence without maps, an unknown fill.
    """
    if fill not in ("mean", "blur"):
        raise UserError(f"masked pixels cannot become '{fill}'", "known: blur, mean")
    if "maps" not in model.evidence.gives:
        raise UserError(
            f"{type(model.evidence).__name__} has no maps", "boxes can be tested on evidence with maps only"
        )
    kept, lost = [], []
    device = model.evidence.alive.device
    with evaluating(model):
        for start in range(0, len(images), batch):
            image, unit, box = (t[start : start + batch].to(device) for t in (images, units, boxes))
            empty = _emptied(image, fill)
            inside = inside_boxes(box, (image.shape[2], image.shape[3]))
            maps = _unit_maps(model, image, unit)
            place = maps.argmax(1, keepdim=True)
            whole, outside_masked, inside_masked, nothing = (
                m.gather(1, place).squeeze(1)
                for m in (
                    maps,
                    _unit_maps(model, torch.where(inside, image, empty), unit),
                    _unit_maps(model, torch.where(inside, empty, image), unit),
                    _unit_maps(model, empty, unit),
                )
            )
            range_ = whole - nothing
            range_ = range_.masked_fill(range_ <= 1e-6 * whole.abs().clamp_min(1e-6), float("nan"))
            kept.append((outside_masked - nothing) / range_)
            lost.append((whole - inside_masked) / range_)
    return torch.cat(kept), torch.cat(lost)


def _unit_maps(model: TransparentClassifier, images: Tensor, units: Tensor) -> Tensor:
    """(n, h' w') the map of one unit per image."""
    maps = model.observe(model.backbone(images)).maps
    assert maps is not None
    return maps[torch.arange(len(images), device=maps.device), units].flatten(1).float()


def _emptied(images: Tensor, fill: str) -> Tensor:
    """The images with nothing left to recognise."""
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    window = max(3, min(images.shape[2:]) // 4 | 1)
    padded = functional.pad(images, (window // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, window, 1)
