"""Every example decoded once: which are broken, and what their pixels, maps and parts are like."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.files import ORIENTATION
from vitrarium.data.reading import each
from vitrarium.data.source import DataSource, Split

ELONGATED = 2.0
"""Longer over shorter side from which on much of an image lies outside the centre square."""


@dataclass
class Seen:
    """What one example is like.

    Attributes:
        problem: why it cannot be read, empty if it can.
        digest: of its pixels at the size asked for.
        blank: whether all its pixels have one colour.
        original: width and height of the image file, None where the example does not come from one.
        kinds: what the file is beyond 8-bit RGB: "grey", "16 bit", "CMYK", "palette", "transparent", "turned".
        map: "none", "empty" (black), "constant" or "drawn".
        visible: (P,) which parts have a visible keypoint, or None.
        outlined: (P,) which parts have a mask that is not empty, or None.
    """

    problem: str = ""
    digest: str = ""
    blank: bool = False
    original: tuple[int, int] | None = None
    kinds: tuple[str, ...] = ()
    map: str = "none"
    visible: np.ndarray | None = None
    outlined: np.ndarray | None = None


def look(split: Split, index: int) -> Seen:
    """Decode example ``index``; a user's mistake in it is told, not raised."""
    try:
        sample = split.sample(index)
    except UserError as error:
        return Seen(problem=error.problem)
    path = split.file(index)
    original, kinds = (None, ()) if path is None else _original(path)
    drawn = sample.human_map
    return Seen(
        digest=hashlib.blake2b(np.ascontiguousarray(sample.image).tobytes(), digest_size=16).hexdigest(),
        blank=bool((sample.image == sample.image[:1, :1]).all()),
        original=original,
        kinds=kinds,
        map="none" if drawn is None else _map_kind(drawn),
        visible=None if sample.keypoints is None else sample.keypoints[:, 2] > 0,
        outlined=None if sample.part_masks is None else np.asarray(sample.part_masks.any(axis=(1, 2))),
    )


def _map_kind(drawn: np.ndarray) -> str:
    low, high = int(drawn.min()), int(drawn.max())
    return "drawn" if low < high else "constant" if high else "empty"


def _original(path: str | object) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Size and kinds of an image file, from its first bytes."""
    with Image.open(path) as picture:  # type: ignore[arg-type]
        mode, size, kinds = picture.mode, picture.size, []
        if mode in ("1", "L", "LA") or mode.startswith("I"):
            kinds.append("grey")
        if mode.startswith(("I", "F")):
            kinds.append("16 bit")
        if mode in ("CMYK", "YCCK"):
            kinds.append("CMYK")
        if mode == "P":
            kinds.append("palette")
        if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            kinds.append("transparent")
        if picture.getexif().get(ORIENTATION, 1) != 1:
            kinds.append("turned")
    return size, tuple(kinds)


@dataclass
class Tally:
    """What all examples of a data set are like; memory grows with what is wrong, not with what is read.

    Attributes:
        images: how many were looked at.
        broken: table line or file, and why it cannot be read.
        blank: images of one colour, by name.
        thin: images with a side of one pixel, by name.
        empty_maps: images with a black map, by name.
        constant_maps: images with a map of one other value, by name.
        digests: for each split the content hash of each image, empty for broken ones; nothing where the data set has
            looked for copies itself.
        files: how many come from image files of their own.
        smaller: how many have a side below the size asked for.
        elongated: how many have sides of more than 2 : 1.
        smallest: width and height of the smallest original.
        largest: width and height of the largest original.
        kinds: how many files are grey, 16 bit, CMYK ...
        maps: how many have a human map.
        visible: (P,) how many show each part as a keypoint; None if no example has keypoints.
        outlined: (P,) how many have a mask of each part; None if no example has masks.
    """

    images: int = 0
    broken: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    thin: list[str] = field(default_factory=list)
    empty_maps: list[str] = field(default_factory=list)
    constant_maps: list[str] = field(default_factory=list)
    digests: dict[str, list[str]] = field(default_factory=dict)
    files: int = 0
    smaller: int = 0
    elongated: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    maps: int = 0
    visible: np.ndarray | None = None
    outlined: np.ndarray | None = None

    def add(self, seen: Seen, name: str, where: str, size: int) -> None:
        """Count one example.

        Args:
            seen: what it is like.
            name: its origin.
            where: what to mend if it is wrong.
            size: of the square that is asked for.
        """
        self.images += 1
        if seen.problem:
            self.broken.append(seen.problem if where in seen.problem else f"{where}: {seen.problem}")
            return
        if seen.blank:
            self.blank.append(name)
        if seen.original is not None:
            self._original(seen.original, name, size)
        self.kinds.update(seen.kinds)
        self.maps += seen.map != "none"
        if seen.map == "empty":
            self.empty_maps.append(name)
        if seen.map == "constant":
            self.constant_maps.append(name)
        self.visible = _sum(self.visible, seen.visible)
        self.outlined = _sum(self.outlined, seen.outlined)

    def _original(self, original: tuple[int, int], name: str, size: int) -> None:
        short, long = sorted(original)
        self.files += 1
        self.smaller += short < size
        self.elongated += long > ELONGATED * short
        if short == 1:
            self.thin.append(name)
        area = original[0] * original[1]
        if self.smallest is None or area < self.smallest[0] * self.smallest[1]:
            self.smallest = original
        if self.largest is None or area > self.largest[0] * self.largest[1]:
            self.largest = original


def _sum(total: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    if more is None:
        return total
    return more.astype(np.int64) + (0 if total is None else total)


Progress = Callable[[int, int], None]
"""Told how many examples are done, and of how many."""


def look_at_all(source: DataSource, progress: Progress | None = None) -> Tally:
    """Decode every example of every split, in several processes where that pays.

    Args:
        source: the data set.
        progress: called now and then.
    """
    tally, digest = Tally(), source.duplicates is None
    total = sum(len(split) for split in source.splits.values())
    for name, split in source.splits.items():
        tally.digests[name] = []
        for index, seen in enumerate(each(split, look)):
            if digest:
                tally.digests[name].append(seen.digest)
            tally.add(seen, split.origin(index), split.where(index), source.size)
            if progress is not None and tally.images % 32 == 0:
                progress(tally.images, total)
    return tally
