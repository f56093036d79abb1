"""A term that ties prototypes to annotated parts of the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Batch
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.prototypes import prototype_layer

ANNOTATIONS = ("part_masks", "keypoints")
TINY = 1e-12


@TERMS.register("part_prototypes")
class PartPrototypes(Term):
    """A unit tied to a part shall have its best place on it.

    With s_m(j) the map of unit m at place j, and i_q(j) in [0, 1] how much of its part q lies there,

        l_m = -log( sum over j of softmax over j (sharpness s_m(j)) i_q(j) )

    averaged over the images and units whose part is visible. It is the cross-entropy over places by which keypoints are
    learnt (Mask R-CNN: He et al., ICCV 2017), with a part in place of one pixel and similarities as scores; tying
    prototypes by it is ours. i_q is 1 at the place that the part fills most, so that l can become 0:

    - from part masks, the share of the patch that the mask covers over the largest such share in the image;
    - from keypoints, exp(-r^2 / (2 radius^2)) with r the way from the middle of the patch to the point, over the
      largest in the image (the heat maps of Tompson et al., NeurIPS 2014).

    A unit that belongs to classes counts in their images only; a pruned one nowhere.

    Args:
        source: the data, with part masks or keypoints.
        parts: part to the units tied to it, ``{petal: [0, 1, 2]}``; units not named are free. None = unit m is tied to
            part m modulo the number of parts, which gives each class all parts if it has enough prototypes.
        annotation: "part_masks" or "keypoints"; None = masks where the data give them.
        sharpness: above 0; the larger, the more the best place alone counts.
        radius: of keypoints, as a share of the image's height, above 0.

    Raises:
        UserError: data without parts, unknown parts or words, units that do not exist or are tied twice.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"maps", "prototypes"})

    def __init__(
        self,
        source: DataSource,
        parts: Mapping[str, Sequence[int]] | None = None,
        annotation: Literal["part_masks", "keypoints"] | None = None,
        sharpness: float = 10.0,
        radius: float = 0.1,
    ) -> None:
        super().__init__(source)
        if annotation is not None and annotation not in ANNOTATIONS:
            raise UserError(
                f"term 'part_prototypes' has no annotation '{annotation}'", closest(annotation, ANNOTATIONS)
            )
        given = [a for a in ANNOTATIONS if a in source.gives]
        if not source.part_names or not given:
            raise UserError(
                f"term 'part_prototypes' needs annotated parts, and data set '{source.name}' has none",
                "choose a data set with part masks or keypoints, or leave the term out",
            )
        if not 0 < sharpness < float("inf") or not 0 < radius < float("inf"):
            raise UserError(f"sharpness={sharpness}, radius={radius} of 'part_prototypes'", "give numbers above 0")
        self.annotation: str = annotation or given[0]
        self.sharpness, self.radius, self.part_names = sharpness, radius, source.part_names
        self.parts = None if parts is None else {name: list(units) for name, units in parts.items()}
        for name in self.parts or {}:
            if name not in self.part_names:
                raise UserError(f"data set '{source.name}' has no part '{name}'", closest(name, self.part_names))
        # Which of the two it reads decides what the data must give.
        self.__dict__["needs"] = self.needs | {self.annotation}

    def check(self, model: TransparentClassifier) -> None:
        """Refuse units that the model does not have, and those tied to two parts."""
        self.part_of(len(model.evidence.alive))

    def part_of(self, units: int) -> Tensor:
        """(M,) int64: the part of each unit, -1 = free."""
        if self.parts is None:
            return torch.arange(units) % len(self.part_names)
        tied = torch.full((units,), -1)
        for name, chosen in self.parts.items():
            for unit in chosen:
                if not 0 <= unit < units:
                    raise UserError(
                        f"part '{name}' is tied to unit {unit}, and there are {units}", f"give numbers below {units}"
                    )
                if tied[unit] >= 0:
                    raise UserError(
                        f"unit {unit} is tied to '{self.part_names[int(tied[unit])]}' and to '{name}'",
                        "name each unit once in terms.part_prototypes.parts",
                    )
                tied[unit] = self.part_names.index(name)
        return tied

    def forward(self, step: Step) -> Tensor:
        """Mean over the images and units of all processes whose part is visible."""
        layer, maps = prototype_layer(step.model), step.output.evidence.maps
        assert maps is not None
        inside, seen = self._inside(step.batch, (maps.shape[2], maps.shape[3]), layer.window)
        part_of = self.part_of(maps.shape[1]).to(maps.device)
        tied = (part_of >= 0).nonzero()[:, 0]
        part = part_of[tied]
        counts = seen[:, part] & layer.unit_owners().T[step.batch.label][:, tied] & layer.alive[tied]
        losses = outside_mass(maps[:, tied], inside[:, part], self.sharpness)
        return shared_mean(losses.masked_fill(~counts, 0.0).sum(), counts.sum())

    def _inside(self, batch: Batch, grid: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
        """How much of each part lies at each place (B, Q, h', w'), and which parts are visible (B, Q)."""
        size = (batch.image.shape[2], batch.image.shape[3])
        if self.annotation == "part_masks":
            assert batch.part_masks is not None
            return masks_on_grid(batch.part_masks, grid, window), batch.part_masks.flatten(2).any(2)
        assert batch.keypoints is not None
        return keypoints_on_grid(batch.keypoints, size, grid, window, self.radius), batch.keypoints[:, :, 2] > 0.5


def outside_mass(maps: Tensor, inside: Tensor, sharpness: float) -> Tensor:
    """-log sum_j softmax_j(sharpness s(j)) i(j).

    Args:
        maps: (B, M, h, w) similarities s.
        inside: (B, M, h, w) i in [0, 1], somewhere above 0 (where it is not, the result means nothing but is finite).
        sharpness: above 0.

    Returns:
        (B, M), at least 0.
    """
    (maps,) = at_least_float32(maps)
    log_share = (maps.flatten(2) * sharpness).log_softmax(2)
    inside = inside.flatten(2).to(log_share)
    # Filled with the lowest number and not with -inf, which would have no gradient where nothing is inside.
    log_inside = inside.clamp_min(TINY).log().masked_fill(inside <= 0, torch.finfo(log_share.dtype).min / 2)
    return -(log_share + log_inside).logsumexp(2)


def masks_on_grid(masks: Tensor, grid: tuple[int, int], window: int = 1) -> Tensor:
    """Masks (B, Q, H, W) bool on a map: the share of each patch that is covered, over the largest in the image.

    Args:
        masks: of the parts.
        grid: h' and w' of the similarity map.
        window: places of the latent map that a patch takes each way; the latent is (h' + window - 1) x ...
    """
    latent = (grid[0] + window - 1, grid[1] + window - 1)
    covered = functional.avg_pool2d(functional.adaptive_avg_pool2d(masks.float(), latent), window, 1)
    return covered / covered.amax((2, 3), keepdim=True).clamp_min(TINY)


def keypoints_on_grid(
    keypoints: Tensor, size: tuple[int, int], grid: tuple[int, int], window: int = 1, radius: float = 0.1
) -> Tensor:
    """Keypoints (B, Q, 3) on a map: exp(-r^2 / (2 radius^2)), over the largest in the image.

    Args:
        keypoints: x and y in pixels, visible 0 or 1; what is not visible gives some finite number.
        size: H and W of the image in pixels.
        grid: h' and w' of the similarity map.
        window: as in :func:`masks_on_grid`.
        radius: as a share of H.

    Returns:
        (B, Q, h', w') float32 at least.
    """
    (keypoints,) = at_least_float32(keypoints.nan_to_num(0.0))

    def middles(places: int, length: int) -> Tensor:
        at = torch.arange(places, device=keypoints.device, dtype=keypoints.dtype)
        return (at + window / 2) * length / (places + window - 1)

    down = (keypoints[:, :, 1, None] - middles(grid[0], size[0])).square()
    across = (keypoints[:, :, 0, None] - middles(grid[1], size[1])).square()
    squared = down[:, :, :, None] + across[:, :, None, :]
    return torch.exp((squared.amin((2, 3), keepdim=True) - squared) / (2 * (radius * size[0]) ** 2))
