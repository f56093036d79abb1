"""Prototypes of several parts, each of which may look for its match beside its usual place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.evidence.prototypes import ADDONS, build_addon
from vitrarium.models.prototypes.layer import PrototypeLayer, pool_best
from vitrarium.models.prototypes.similarity import TINY, at_least_float32
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

INTERPOLATIONS = ("squares", "linear")
CONSTANT = 1e-4
"""What two more channels hold at every place, so that nothing has length 0."""


@EVIDENCE.register("deformable_prototypes")
class DeformablePrototypes(PrototypeLayer):
    """M prototypes of k x k parts at places that depend on the image (Donnelly et al., CVPR 2022).

    The latent z (E, h, w) is the features, not below 0, with two constant channels, of length 1 at every place. Part n
    of a patch around place (a, b) is z at (a, b) + r_n + offset_n(a, b): r_n are k x k places around the middle, and
    the offsets come from one 3 x 3 convolution of z for all prototypes, which starts at 0. With parts p_n of length 1,

        cos(x, p) = (1 / k^2) sum over n of <z_n, p_n>      activation = relu(max over places of cos)

    which is the cosine of patch and prototype as vectors of k^2 E numbers, for then all parts have the same length.
    That needs z between places to be of length 1 too. Plain bilinear interpolation shortens it; the paper's takes the
    root of the interpolated squares, z_n = sqrt(sum_i u_i z_i^2) for each channel with weights u_i that sum to 1, and

        |z_n|^2 = sum over channels of sum_i u_i z_i^2 = sum_i u_i |z_i|^2 = 1.

    (Squares lose the sign, which is why z is not below 0.) A part beyond the border sees the nearest place inside, so
    that it has length 1 as well; the released code sees zeros there, and a prototype cut at the border would be less
    than wholly similar to its own source. The operator is ``grid_sample``; no extension is compiled.

    Args:
        channels: D of the backbone's map.
        classes: C.
        per_class: prototypes owned by each class.
        part: k.
        reach: places from the middle of a patch to its outermost parts, where nothing is deformed.
        interpolation: "squares" as above, or "linear": bilinear, then brought to length 1; gentler gradients.
        width: channels of the features that are compared; None = D.
        addon: layers between backbone and prototypes: "none", "plain" or "sigmoid", as in ``prototypes``.
        picture: size of the pictures kept of the patches that prototypes come from; 0 = none.

    Raises:
        UserError: unknown words, numbers out of range.
    """

    wanders = True
    steps: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        per_class: int = 6,
        part: int = 2,
        reach: float = 1.0,
        interpolation: Literal["squares", "linear"] = "squares",
        width: int | None = None,
        addon: Literal["none", "plain", "sigmoid"] = "none",
        picture: int = 64,
    ) -> None:
        super().__init__()
        for option, value, known in (("interpolation", interpolation, INTERPOLATIONS), ("addon", addon, ADDONS)):
            if value not in known:
                raise UserError(f"evidence 'deformable_prototypes' has no {option} '{value}'", closest(value, known))
        width = channels if width is None else width
        if addon == "none" and width != channels:
            raise UserError(
                f"width={width} with addon=none and {channels} channels", "leave width out, or take an addon"
            )
        if min(per_class, part, width) < 1 or not 0 <= reach < float("inf") or picture < 0:
            raise UserError(
                f"per_class={per_class}, part={part}, width={width}, reach={reach}",
                "give at least 1 prototype, part and channel, and a reach of 0 places or more",
            )
        self.part, self.interpolation = part, interpolation
        self.addon = build_addon(addon, channels, width)
        count = per_class * classes
        self.prototypes = nn.Parameter(torch.rand(count, width + 2, part, part))
        self.offsets = nn.Conv2d(width + 2, 2 * part**2, 3, padding=1)
        with torch.no_grad():
            self.prototypes[:, width:] = CONSTANT
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)
        line = torch.linspace(-reach, reach, part) if part > 1 else torch.zeros(1)
        # (2, k^2): rows and columns of the parts, in the order of the prototypes' own places.
        self.register_buffer("steps", torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1), False)
        units = UnitTable.anonymous("prototype", count)
        units.absent, units.present = torch.zeros(count), torch.ones(count)
        self.gives = self.gives | {"owned", "gates", "deforms"}
        self.set_prototypes(units, classes, torch.arange(classes).repeat_interleave(per_class), picture)

    @property
    def vectors(self) -> Tensor:  # type: ignore[override]
        """(P, E, k, k)."""
        return self.prototypes

    def embed(self, features: Features) -> Tensor:
        """(B, D, h, w) to (B, E, h, w) of length 1 at every place, E = width + 2."""
        (latent,) = at_least_float32(self.addon(features.map))
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.relu()
            scale = (latent.square().sum(1, keepdim=True) + 2 * CONSTANT**2).rsqrt()
            return torch.cat([latent * scale, (CONSTANT * scale).expand(-1, 2, -1, -1)], 1)

    def offsets_of(self, latent: Tensor) -> Tensor:
        """(B, E, h, w) to offsets (B, 2, k^2, h, w) in places: rows, then columns."""
        with torch.autocast(latent.device.type, enabled=False):
            return self.offsets(latent).unflatten(1, (2, self.part**2))

    def deformed(self, latent: Tensor, offsets: Tensor) -> Tensor:
        """(B, E, k^2, h, w): the parts around every place, each of length 1."""
        height, width = latent.shape[-2:]
        rows = torch.arange(height, device=latent.device, dtype=latent.dtype)[:, None]
        columns = torch.arange(width, device=latent.device, dtype=latent.dtype)[None]
        steps = self.steps.to(latent.dtype)[:, :, None, None]
        y = rows + steps[0] + offsets[:, 0]
        x = columns + steps[1] + offsets[:, 1]
        # grid_sample counts from -1 to 1 between the outer edges of the map.
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        source = latent.square() if self.interpolation == "squares" else latent
        found = functional.grid_sample(source, grid.flatten(1, 2), padding_mode="border", align_corners=False)
        found = found.unflatten(2, (self.part**2, height))
        if self.interpolation == "squares":
            # Half of the channels are 0, where a root has no slope.
            return found.clamp_min(TINY).sqrt()
        return functional.normalize(found, dim=1, eps=TINY)

    def cosines(self, latent: Tensor, offsets: Tensor) -> Tensor:
        """(B, P, h, w) in [-1, 1]."""
        with torch.autocast(latent.device.type, enabled=False):
            (prototypes,) = at_least_float32(self.prototypes)
            unit = functional.normalize(prototypes.flatten(2), dim=1, eps=TINY).flatten(1) / self.part**2
            return functional.conv2d(self.deformed(latent, offsets).flatten(1, 2), unit[:, :, None, None])

    def similarity(self, latent: Tensor) -> Tensor:
        """(B, E, h, w) to (B, P, h, w) in [0, 1]."""
        return self.cosines(latent, self.offsets_of(latent)).relu()

    def reduce(self, maps: Tensor, region: Tensor | None = None) -> Tensor:
        """(B, P, h, w) to the best place (B, P)."""
        return pool_best(maps, region, "max", 1, self.silent)

    def patches(self, latent: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """(n, E, k, k): the parts of some patches at the places to which they are deformed."""
        images, back = rows.unique(return_inverse=True)
        chosen = latent[images]
        parts = self.deformed(chosen, self.offsets_of(chosen))
        return parts[back, :, :, places[:, 0], places[:, 1]].unflatten(2, (self.part, self.part))

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to the similarities of P prototypes, and what terms read.

        ``state["cosine"]`` (B, P) is the best cosine before the ReLU, ``state["distance"]`` 1 minus it,
        ``state["offsets"]`` (B, 2, k^2, h, w) how far each part moved, in places.
        """
        latent = self.embed(features)
        offsets = self.offsets_of(latent)
        cosines = self.cosines(latent, offsets)
        best = cosines.flatten(2).amax(2)
        activations = best.relu()
        state = {"cosine": best, "distance": 1 - best, "offsets": offsets}
        evidence = Evidence(activations, activations, maps=cosines.relu(), state=state)
        evidence.vector = self.assemble(activations, evidence)
        return evidence

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations; a pruned prototype says nothing."""
        return activations.masked_fill(~self.alive, 0.0)
