"""This looks like that: where in the image a prototype was found, and the training patch that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrarium.data.corrections import Box
from vitrarium.eval.explanations import heat

HOLDS = 0.5
"""A box keeps and loses at least this share of the similarity, or its claim fails."""


@dataclass
class Source:
    """The training patch that a prototype was taken from.

    Attributes:
        index: position of the image in the training split.
        label: class of the image; None = unknown.
        picture: (S, S, 3) uint8, the whole image in small; None where the model keeps none.
        box: of the image, the 95-percentile box of the similarity; None = unknown.
        field: of the image, all that the patch can see (the true receptive field); None = unknown.
        similarity: of prototype and patch when the prototype was taken from it; None = unknown.
        drift: how far the prototype has moved from the patch since, |p - x| / |p|; None = nobody has measured it.
        current: whether drift was measured with the weights that the model has now; if not, the picture may be stale.
    """

    index: int
    label: str | None
    picture: np.ndarray | None
    box: Box | None
    field: Box | None
    similarity: float | None
    drift: float | None
    current: bool

    @property
    def state(self) -> str:
        """Whether the picture still shows what the prototype is, in words."""
        if not self.current:
            return "picture may be stale: weights changed since"
        return "drift not measured" if self.drift is None else f"drift {100 * self.drift:.1f} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; the picture as a PNG data address."""
        picture = None if self.picture is None else heat.data_address(heat.png(self.picture))
        return {**vars(self), "picture": picture, **_boxes(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any] | None) -> Source | None:
        """Inverse of :meth:`to_dict`; None stays None."""
        if data is None:
            return None
        picture = None if data["picture"] is None else heat.from_data_address(data["picture"])
        return Source(**{**data, "picture": picture, "box": _box(data["box"]), "field": _box(data["field"])})


@dataclass
class Match:
    """Where a prototype was found in the image that is explained.

    Attributes:
        prototype: its position; of several that make up a unit, the one that fits best.
        owner: the class it belongs to; None if it is shared.
        similarity: at the best place that it may look at, before anything is set by hand; None if it may look nowhere.
        box: the 95-percentile box of the similarity: what the picture shows as "here".
        field: all that the place can see (the true receptive field): the box may be smaller than the reason.
        kept: share of the similarity that is left when all outside the box is masked; None = not measured.
        lost: share that is gone when the box is masked; None = not measured.
    """

    prototype: int
    owner: str | None
    similarity: float | None
    box: Box | None
    field: Box | None
    kept: float | None = None
    lost: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the box accounts for the similarity: it keeps and loses at least half of it; None = not measured."""
        if self.kept is None or self.lost is None:
            return None
        return min(self.kept, self.lost) >= HOLDS

    @property
    def claim(self) -> str:
        """What the box is worth, in words."""
        if self.kept is None or self.lost is None:
            return "box not tested"
        said = f"keeps {_share(self.kept)}, loses {_share(self.lost)}"
        return f"box {said}" if self.holds else f"box does not hold: {said}"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; whether the claim holds is written along for readers of the JSON."""
        return {**vars(self), **_boxes(self), "holds": self.holds}

    @staticmethod
    def from_dict(data: Mapping[str, Any] | None) -> Match | None:
        """Inverse of :meth:`to_dict`; None stays None."""
        if data is None:
            return None
        plain = {name: value for name, value in data.items() if name != "holds"}
        return Match(**{**plain, "box": _box(data["box"]), "field": _box(data["field"])})


def known(value: float) -> float | None:
    """A number, or None in place of NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def known_box(edges: list[float]) -> Box | None:
    """Four numbers as a box; None if they are not known."""
    left, top, right, bottom = edges
    return None if any(math.isnan(edge) for edge in edges) else (left, top, right, bottom)


def _share(value: float) -> str:
    """A share of the similarity in per cent, which may be below 0 or above 100."""
    return f"{round(100 * value)} %".replace("-", "\N{MINUS SIGN}")


def _boxes(of: Source | Match) -> dict[str, Any]:
    return {name: None if getattr(of, name) is None else list(getattr(of, name)) for name in ("box", "field")}


def _box(edges: Any) -> Box | None:
    return None if edges is None else known_box([float(edge) for edge in edges])
