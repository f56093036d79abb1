"""Concept whitening: the axes of a layer, whitened and rotated so that named ones stand for concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.models.backbones.base import Backbone
from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.intervention import Intervention
from vitrarium.models.layers.affine import Affine
from vitrarium.models.layers.reduction import REDUCTIONS, reduce_map, shift_to
from vitrarium.models.layers.rotation import orthonormal, rotate_towards
from vitrarium.models.layers.whitening import Whitening
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable

MAP = "map"
"""Where in ``Evidence.context`` the rotated map (B, C, h, w) lies, for the layers above."""


@EVIDENCE.register("whitened_axes")
class WhitenedAxes(EvidenceLayer):
    """Whitens a map and rotates it: y = R W (x - mu), with R orthogonal.

    Concept whitening (Chen, Bei & Rudin, Nature Machine Intelligence 2020). It takes the place of the normalisation at
    the backbone's cut (inside a residual block too), and the readout ``network`` is the rest of the network. Whitened
    axes are uncorrelated and of unit variance, so each can stand for one thing; the event ``align`` turns the first K
    of them to the concepts. The others are free: units as well, which a person may name later. The rotation is no
    parameter: gradients of the loss do not reach it.

    Args:
        channels: C of the map at the cut.
        concepts: the data's concepts; each value is an axis.
        backbone: cut inside; the normalisation it ends with is taken out.
        axes: names of what has an axis, in place of all concepts of the data (some of its concepts, or the folders of
            ``align.folder``). Axes chosen by name are not judged against annotation by ``evaluate``.
        groups: the channels in so many equal parts, each whitened and rotated on its own; a concept's axis is in one of
            them, in turn.
        method: "eigh" (ZCA), "cholesky" or "iternorm" (Newton's iteration as in the released code).
        iterations: of "iternorm".
        eps: added to the variances, as a share of their mean.
        momentum: of the running mean and covariance.
        reduction: how an axis is read from its map: "mean", "max", "positive_mean" or "pool_max".
        subspaces: give each concept group a subspace: the axes of its values, and ``free`` further ones, which the
            event ``align`` turns to what the group's images have beside.
        free: free axes of each subspace.

    Raises:
        UserError: more axes than channels, an unknown name, no concepts and no names.
    """

    gives: frozenset[str] = frozenset({"vector", "maps", "passes", "axes"})

    def __init__(
        self,
        channels: int,
        backbone: Backbone,
        concepts: ConceptSet | None = None,
        axes: Sequence[str] | None = None,
        groups: int = 1,
        method: Literal["eigh", "cholesky", "iternorm"] = "eigh",
        iterations: int = 10,
        eps: float = 1e-5,
        momentum: float = 0.05,
        reduction: Literal["mean", "max", "positive_mean", "pool_max"] = "pool_max",
        subspaces: bool = False,
        free: int = 1,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise UserError(f"an axis cannot be read by reduction '{reduction}'", closest(reduction, REDUCTIONS))
        if free < 0 or (subspaces and axes is not None):
            raise UserError(
                f"whitened_axes with subspaces={subspaces}, free={free}, axes={axes}",
                "free is 0 or more; subspaces are those of the data's concept groups, so leave axes out",
            )
        self.named = tuple(axes) if axes is not None else () if concepts is None else concepts.names
        self.reduction, self.channels = reduction, channels
        self._free = self._subspaces(concepts, free) if subspaces and concepts is not None else []
        wanted = len(self.named) + sum(len(own) for _, own in self._free)
        if not self.named or wanted > channels:
            raise UserError(
                f"{wanted} axes are asked for, and the map at '{backbone.cut}' has {channels} channels",
                "cut where there are more channels, or name some concepts: model.evidence.axes=[...]"
                if self.named
                else "choose a data set with concepts, or name the axes: model.evidence.axes=[...]",
            )
        backbone.open_norm()
        self.whitening = Whitening(channels, groups, method, eps=eps, momentum=momentum, iterations=iterations)
        self.register_buffer("rotation", torch.eye(channels // groups).repeat(groups, 1, 1))
        self.register_buffer("axis_of", self._places(channels, groups), persistent=False)
        self.set_units(self._table(concepts, axes is None))

    rotation: Tensor
    axis_of: Tensor

    def _subspaces(self, concepts: ConceptSet, free: int) -> list[tuple[ConceptGroup, list[int]]]:
        """Each concept group with the units of its free axes."""
        first = len(concepts)
        return [
            (group, list(range(first + g * free, first + (g + 1) * free))) for g, group in enumerate(concepts.groups)
        ]

    def _places(self, channels: int, groups: int) -> Tensor:
        """(C,) the channel of the rotated map that is each unit: units are dealt out to the groups of channels."""
        width = channels // groups
        return torch.arange(channels).reshape(groups, width).T.reshape(-1)

    def _table(self, concepts: ConceptSet | None, judged: bool) -> UnitTable:
        """Concepts (or names) first, then the free axes, those of subspaces by the name of their group."""
        if judged and concepts is not None:
            table = UnitTable.with_free(concepts, "axis", self.channels)
        else:
            double = [name for n, name in enumerate(self.named) if name in self.named[:n]]
            if double:
                raise UserError(f"the axis '{double[0]}' is named twice", "name each axis once")
            table = UnitTable.anonymous("axis", self.channels)
        names = {m: f"{group.name}_free_{n}" for group, own in self._free for n, m in enumerate(own, 1)}
        if not judged:
            names = dict(enumerate(self.named))
        groups = tuple(
            replace(group, name=names[group.members[0]])
            if len(group.members) == 1 and group.members[0] in names
            else group
            for group in table.groups
        )
        return replace(table, groups=groups)

    def subspaces(self) -> list[Tensor] | None:
        """The units of each concept group's subspace, or None where there are no subspaces."""
        if not self._free:
            return None
        return [torch.tensor([*group.members, *own]) for group, own in self._free]

    def free_axes(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of each subspace, the units of its concepts and those of its free axes; empty without subspaces."""
        return [(tuple(group.members), tuple(own)) for group, own in self._free]

    def turn(self, whitened: Tensor) -> Tensor:
        """The whitened map (B, C, h, w) to the units' maps: rotated, in the order of the units."""
        weight = self.rotation.to(whitened).flatten(0, 1)[:, :, None, None]
        return self.in_order(nn.functional.conv2d(whitened, weight, groups=len(self.rotation)))

    def in_order(self, rotated: Tensor) -> Tensor:
        """A rotated map, its channels in the order of the units."""
        return rotated if len(self.rotation) == 1 else rotated[:, self.axis_of]

    def in_channels(self, maps: Tensor) -> Tensor:
        """Inverse of :meth:`in_order`."""
        return maps if len(self.rotation) == 1 else maps[:, self.axis_of.argsort()]

    def rows(self, count: int) -> Tensor:
        """(count, C / groups) the rows of the rotations that are the first ``count`` units."""
        return self.rotation.flatten(0, 1)[self.axis_of[:count]]

    def with_free(self, member: Tensor, maps: Tensor) -> Tensor:
        """Which image counts for which axis, (B, K), with the free axes of subspaces beside them.

        An image drawn for a concept of a group counts for the free axis of its subspace that it activates most.
        """
        if not self._free:
            return member
        said, columns = reduce_map(maps, self.reduction), []
        for group, own in self._free:
            if own:
                inside = member[:, list(group.members)].amax(1)
                best = said[:, own].argmax(1)
                columns.append(nn.functional.one_hot(best, len(own)).to(member) * inside[:, None])
        return torch.cat([member, *columns], 1)

    @torch.no_grad()
    def rotate(self, gradient: Tensor, seen: Tensor, steps: int) -> None:
        """Turn the first k units' axes where their activation grows.

        Args:
            gradient: (k, C / groups) of the objective, to be raised.
            seen: (k,) bool, the axes that take a step; the others move only as the rest does.
            steps: searches.
        """
        width = self.rotation.shape[1]
        place = self.axis_of[: len(seen)]
        for g in range(len(self.rotation)):
            mine = ((place // width == g) & seen).nonzero()[:, 0]
            if len(mine):
                turned = rotate_towards(self.rotation[g], -gradient[mine], place[mine] % width, steps)
                # Long steps in single precision leave a trace, which would grow from update to update.
                self.rotation[g] = orthonormal(turned)

    def forward(self, features: Features) -> Evidence:
        """(B, C, h, w) to maps of the same shape, and what each axis says, (B, C)."""
        maps = self.look(features.map)
        carry = {f"carry{n}": tensor for n, tensor in enumerate(features.carry)}
        activations = reduce_map(maps, self.reduction)
        return Evidence(activations, activations, maps=maps, context={MAP: maps, **carry})

    def look(self, map: Tensor) -> Tensor:
        """The map at the cut to the units' maps, both (B, C, h, w)."""
        return self.in_order(self.whitening(map, self.rotation))

    @torch.no_grad()
    def deployed(self) -> EvidenceLayer:
        """Whitening and rotation as one 1 x 1 convolution, R W x - R W mu."""
        self.whitening.settle()
        weight = torch.block_diag(*(self.rotation @ self.whitening.root))[self.axis_of]
        bias = -weight.double() @ self.whitening.running_mean.double().reshape(-1)
        return PlainAxes(self, Affine(weight, bias))

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The vector is the activations; what the layers above see is the map in the context."""
        return activations

    def intervene(self, evidence: Evidence, do: Intervention) -> Evidence:
        """A value shifts an axis's map until its reduction has it, everywhere alike."""
        if do.region is not None:
            evidence = self.confine(evidence, do.region)
        whole, maps = do.widened(self.channels), evidence.context[MAP]
        asked = whole.apply(evidence.activations)
        shift = shift_to(maps, self.reduction, asked)
        return self._with(
            evidence, maps + torch.where(whole.mask, shift, torch.zeros_like(shift))[:, :, None, None], asked
        )

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """Where an axis may not look it is 0, the mean over the training images."""
        maps = evidence.context[MAP] * region.to(evidence.context[MAP])
        return self._with(evidence, maps, reduce_map(maps, self.reduction))

    def _with(self, evidence: Evidence, maps: Tensor, activations: Tensor) -> Evidence:
        context = {**evidence.context, MAP: maps}
        shown = None if evidence.maps is None else maps
        return replace(evidence, activations=activations, vector=activations, maps=shown, context=context)


class PlainAxes(WhitenedAxes):
    """The axes of a deployed model: one affine step, which folding may move into the convolution before it.

    Args:
        axes: the layer that was trained.
        affine: whitening and rotation, with the channels in the order of the units.
    """

    def __init__(self, axes: WhitenedAxes, affine: Affine) -> None:
        nn.Module.__init__(self)
        self.named, self.reduction, self.channels, self._free = axes.named, axes.reduction, axes.channels, axes._free
        self.affine = affine
        self.set_units(axes.units)

    def look(self, map: Tensor) -> Tensor:
        """The affine step."""
        maps: Tensor = self.affine(map)
        return maps

    def deployed(self) -> EvidenceLayer:
        """Itself."""
        return self
