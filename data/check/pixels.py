"""What the decoded examples say about a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitrarium.data.check.examples import Tally
from vitrarium.data.check.findings import Finding, counted
from vitrarium.data.source import DataSource

_KINDS = {
    "grey": ("grey", "they are shown as RGB with three equal channels"),
    "16 bit": ("16-bit grey", "they are divided by 257: images that use few of the 16 bits become dark, rescale those"),
    "CMYK": ("CMYK", "they are converted without a colour profile: save them as RGB if colour matters"),
    "palette": ("of a palette", "they are converted to RGB"),
    "transparent": ("partly transparent", "transparency is dropped: what lies hidden under it becomes visible"),
    "turned": ("turned by EXIF", "they are read upright: keypoints and maps must belong to the upright image"),
}


def pixel_findings(tally: Tally, size: int) -> list[Finding]:
    """Broken, blank, thin, small, elongated and unusual files; maps that say nothing.

    Args:
        tally: of all examples.
        size: of the square that the model sees.
    """
    found = []
    for severity, kind, names, one, many, cure in (
        ("error", "broken_file", tally.broken, "cannot be read", "", "replace or remove such files"),
        ("warning", "blank_image", tally.blank, "has one single colour", "have one single colour", "remove them"),
        ("warning", "thin_image", tally.thin, "is one pixel thin", "are one pixel thin", "remove them"),
        ("warning", "empty_map", tally.empty_maps, "has a black map", "have a black map", _BLACK),
        ("warning", "constant_map", tally.constant_maps, "has a map of one grey", "have a map of one grey", _GREY),
    ):
        if names:
            said = counted(len(names), f"image {one}", f"images {many or one}")
            found.append(Finding(severity, kind, said, cure, tuple(names)))
    return found + _sizes(tally, size) + _kinds(tally)


_BLACK = "it says that there is nowhere to look: draw it, or remove it"
_GREY = "it does not say where to look: draw it, or remove it"


def _sizes(tally: Tally, size: int) -> list[Finding]:
    found = []
    if tally.smaller and tally.smallest is not None:
        low = " x ".join(map(str, tally.smallest))
        said = f"{counted(tally.smaller, 'image has', 'images have')} a side below {size} pixels (smallest: {low})"
        found.append(Finding("note", "enlarged", said, f"they are enlarged to {size}; a smaller size may do"))
    if tally.elongated:
        said = f"{counted(tally.elongated, 'image is', 'images are')} more than twice as long as wide"
        cure = "only the centre square is seen: crop them yourself where it misses what matters"
        found.append(Finding("note", "elongated", said, cure))
    return found


def _kinds(tally: Tally) -> list[Finding]:
    found = []
    for kind, count in sorted(tally.kinds.items()):
        called, what = _KINDS[kind]
        said = f"{counted(count, 'image is', 'images are')} {called}"
        found.append(Finding("note", kind.replace(" ", "_").lower(), said, what))
    return found


def part_table(source: DataSource, tally: Tally) -> list[dict[str, Any]]:
    """For each part the share of images that show it as a keypoint, and as a mask; None where there are none."""
    read = max(tally.images - len(tally.broken), 1)

    def share(counts: np.ndarray | None, p: int) -> float | None:
        return None if counts is None else float(counts[p] / read)

    return [
        {"name": name, "visible": share(tally.visible, p), "masked": share(tally.outlined, p)}
        for p, name in enumerate(source.part_names)
    ]


def part_findings(parts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Parts that no image shows, neither as a keypoint nor as a mask."""
    hidden = tuple(row["name"] for row in parts if not row["visible"] and not row["masked"])
    if not hidden:
        return []
    said = f"{counted(len(hidden), 'part is', 'parts are')} visible in no image"
    return [Finding("warning", "hidden_part", said, "mend their positions and the column 'visible'", hidden)]
