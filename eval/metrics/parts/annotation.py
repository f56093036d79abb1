"""Which annotated parts lie where a unit looks: keypoints, or masks where there are any."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch

COVER = 0.25

RULES = {
    "keypoints": "a visible keypoint in the box, its edge included",
    "part masks": f"at least {COVER:g} of the mask, or of the box if that is smaller, is mask inside the box",
}
"""When a part counts as inside of a box, by kind of annotation."""


@dataclass
class Marks:
    """The annotated parts of B images.

    A mask that shrinks to a point follows the rule of a keypoint, so both kinds are judged alike.

    Attributes:
        kind: "keypoints" or "part masks"; masks are taken where the data has both.
        seen: (B, Q) bool, parts that are visible.
        size: (H, W) of the images.
        points: (B, Q, 2) float32, row and column of keypoints; or None.
        sums: (B, Q, H + 1, W + 1) int32, pixels of a mask above and to the left of each place; or None.
        masks: (B, Q, H, W) bool, or None.
    """

    kind: str
    seen: Tensor
    size: tuple[int, int]
    points: Tensor | None = None
    sums: Tensor | None = None
    masks: Tensor | None = None

    @staticmethod
    def of(batch: Batch, names: Sequence[str] = ()) -> Marks | None:
        """The parts of a batch; None where the data has neither masks nor keypoints.

        Raises:
            UserError: a visible keypoint outside of its image.
        """
        size = (batch.image.shape[-2], batch.image.shape[-1])
        if batch.part_masks is not None and batch.part_masks.shape[1]:
            sums = batch.part_masks.to(torch.int32).cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)
            sums = torch.nn.functional.pad(sums, (1, 0, 1, 0))
            return Marks("part masks", sums[:, :, -1, -1] > 0, size, sums=sums, masks=batch.part_masks)
        if batch.keypoints is not None and batch.keypoints.shape[1]:
            seen = batch.keypoints[:, :, 2] > 0
            points = batch.keypoints[:, :, [1, 0]].float()
            _refuse_outside(points, seen, size, batch, names)
            return Marks("keypoints", seen, size, points=points)
        return None

    @property
    def parts(self) -> int:
        """Q."""
        return self.seen.shape[1]

    def places(self) -> Tensor:
        """(B, Q, 2) float32 row and column of each part: its keypoint, or the middle of its mask; 0 if not visible."""
        if self.points is not None:
            return self.points.masked_fill(~self.seen[:, :, None], 0.0)
        assert self.sums is not None
        middles = []
        for edge in (self.sums[:, :, :, -1], self.sums[:, :, -1]):
            # Pixels in each row (or column).
            counts = edge.diff(dim=2).float()
            steps = torch.arange(counts.shape[2], device=counts.device, dtype=torch.float32)
            middles.append((counts @ steps) / counts.sum(2).clamp_min(1))
        return torch.stack(middles, 2)

    def inside(self, which: Tensor, centres: Tensor, half: Tensor) -> Tensor:
        """Which parts lie in boxes around some pixels; see ``RULES``.

        Args:
            which: (n,) int64, the image of each box.
            centres: (n, 2) row and column in pixels; NaN = a box of nothing.
            half: (2,) half its height and half its width in pixels; ends count.

        Returns:
            (n, Q) bool; a part that is not visible is in no box.
        """
        if self.points is not None:
            away = (self.points[which] - centres[:, None]).abs()
            return (away <= half.to(away)).all(2) & self.seen[which]
        assert self.sums is not None
        limit = torch.tensor(self.size, device=centres.device)
        # A box far outside is empty once it is clipped.
        middle = centres.nan_to_num(-1e6)
        low = torch.minimum((middle - half.to(middle)).ceil().long().clamp_min(0), limit)
        high = torch.minimum((middle + half.to(middle)).floor().long().add(1).clamp_min(0), limit)
        high = torch.maximum(high, low)
        rows, columns = (low[:, 0], high[:, 0]), (low[:, 1], high[:, 1])
        corner = [[self.sums[which, :, r, c] for c in columns] for r in rows]
        within = corner[1][1] - corner[0][1] - corner[1][0] + corner[0][0]
        area = ((rows[1] - rows[0]) * (columns[1] - columns[0]))[:, None]
        whole = torch.minimum(self.sums[:, :, -1, -1][which], area)
        return (within > 0) & (within >= COVER * whole)


def _refuse_outside(points: Tensor, seen: Tensor, size: tuple[int, int], batch: Batch, names: Sequence[str]) -> None:
    """Refuse visible keypoints that are on no pixel; (0, 0) is the centre of the first."""
    limit = torch.tensor(size, device=points.device)
    bad = (seen & ~((points >= -0.5) & (points <= limit - 0.5)).all(2)).nonzero()
    if len(bad):
        row, part = (int(v) for v in bad[0])
        image = row if batch.index is None else int(batch.index[row])
        name = names[part] if part < len(names) else str(part)
        y, x = points[row, part].tolist()
        raise UserError(
            f"the keypoint '{name}' of image {image} at ({x:g}, {y:g}) lies outside its image of {size[1]} x {size[0]} "
            "pixels",
            "correct it in the data set, or give it as not visible",
        )


def merged_sides(names: Sequence[str], parts: int) -> Tensor:
    """Parts that differ in nothing but "left" and "right" as one: (parts, G) bool, which part belongs to which group.

    Args:
        names: of the parts; without names, or with another number of them, every part stands alone.
        parts: Q.
    """
    if not parts or len(names) != parts:
        return torch.eye(parts, dtype=torch.bool)
    plain = [re.sub(r"(?<![a-z])(left|right)(?![a-z])", "", name.lower()).strip(" _-") or name for name in names]
    groups = list(dict.fromkeys(plain))
    return torch.tensor([[name == group for group in groups] for name in plain], dtype=torch.bool)
