"""Terms on prototypes that belong to classes: near their own class, far from others, different from each other."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.prototypes.layer import PrototypeLayer
from vitrarium.models.prototypes.statistics import by_class, subspace_distances
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term

NORMS = ("l1", "squared")
ROWS = ("prototype", "part")


def nearest_distances(distance: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The distance of each image to the nearest of its chosen prototypes.

    What is not chosen is filled, not multiplied: distances such as -cosine may be negative, and a product with 0 would
    then win the minimum.

    Args:
        distance: (B, P).
        chosen: (B, P) bool.

    Returns:
        (B,) the smallest chosen distance, 0 where nothing was chosen; (B,) bool, whether something was.
    """
    nearest = distance.masked_fill(~chosen, float("inf")).amin(1)
    found = chosen.any(1)
    return torch.where(found, nearest, torch.zeros_like(nearest)), found


class _ToClass(Term):
    """What cluster and separation share: distances of a batch, and which prototypes are whose."""

    needs: ClassVar[frozenset[str]] = frozenset({"prototypes"})
    own: ClassVar[bool]

    def check(self, model: TransparentClassifier) -> None:
        """Refuse prototypes without distances, and those of which no class is told apart from another."""
        layer = prototype_layer(model)
        if layer.vectors is None:
            raise UserError(
                f"{type(layer).__name__} has no prototype vectors, so nothing has a distance to them",
                "leave out the terms cluster and separation",
            )
        if bool(layer.owners().all()):
            raise UserError(
                "every prototype belongs to all classes: there are no own and no other ones",
                "leave out the terms cluster and separation, or give prototypes to classes (model.evidence.per_class)",
            )

    def mean_nearest(self, step: Step) -> Tensor:
        """Mean over the batch of the distance to the nearest living prototype of the own class, or of another."""
        layer = prototype_layer(step.model)
        distance = step.output.evidence.state["distance"]
        mine = layer.owners().T[step.batch.label]
        chosen = (mine if self.own else ~mine) & layer.alive_prototypes()
        nearest, found = nearest_distances(distance, chosen)
        return shared_mean(nearest.sum(), found.sum())


@TERMS.register("cluster")
class Cluster(_ToClass):
    """Every image shall have a patch close to a prototype of its class (ProtoPNet: Chen et al., NeurIPS 2019).

        mean over images i of  min over living prototypes p of class y_i of  d(x_i, p)

    with d(x, p) the distance of the nearest patch of the image: |z - p|^2 for similarities made of distances, 1 - s for
    cosine, 1 - cosine for dot products. A weight above 0 pulls together; the paper's is 0.8. Prototypes that a class
    has chosen from a shared pool are its own; an image whose class has no living prototype is left out.

    Args:
        source: the data.

    Raises:
        UserError: units that are no prototypes with distances, or that no class owns.
    """

    own = True

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch of all processes."""
        return self.mean_nearest(step)


@TERMS.register("separation")
class Separation(_ToClass):
    """No image shall have a patch close to a prototype of another class (ProtoPNet: Chen et al., NeurIPS 2019).

        -(mean over images i of  min over living prototypes p that are not of class y_i of  d(x_i, p))

    The sign is in the term: a weight above 0 pushes apart. The paper writes +0.08 before the negative term and its
    release -0.08 before the positive one; both are ``loss.separation: 0.08`` here. Distances as in ``cluster``;
    squared ones must be bounded for this to have a minimum, which the sigmoid before the prototypes is for.

    Args:
        source: the data.

    Raises:
        UserError: as ``cluster``.
    """

    own = False

    def forward(self, step: Step) -> Tensor:
        """Minus the mean over the batch of all processes."""
        return -self.mean_nearest(step)


@TERMS.register("readout_l1")
class ReadoutL1(Term):
    """L1 norm of the readout's weights between a class and what is not its own (ProtoPNet: Chen et al., NeurIPS 2019).

        sum over classes c and entries e of the vector that c does not own of  |W[c, e]|

    Weights to own prototypes are not counted, those of pruned ones neither. The paper's weight is 1e-4.

    Args:
        source: the data.

    Raises:
        UserError: a readout that does not say which entries are whose.
    """

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a readout without owned weights."""
        owned = isinstance(getattr(model.readout, "mine", None), Tensor)
        if not owned or model.readout.effective_weight is None:
            raise UserError(
                f"the term 'readout_l1' needs a readout whose weights belong to classes, not "
                f"{type(model.readout).__name__}",
                "set model.readout.name=class_connected, or leave the term out",
            )

    def forward(self, step: Step) -> Tensor:
        """The sum."""
        readout, layer = step.model.readout, step.model.evidence
        living = torch.where(layer.unit_of >= 0, layer.alive[layer.unit_of.clamp_min(0)], True)
        weight, mine = readout.effective_weight, readout.mine
        assert weight is not None
        assert isinstance(mine, Tensor)
        return off_class_l1(weight, mine | ~living)


def off_class_l1(weight: Tensor, spared: Tensor) -> Tensor:
    """Sum of |weight| (C, E) where ``spared`` (C, E) bool is False."""
    return weight.masked_fill(spared, 0.0).abs().sum()


class _OfClasses(Term):
    """What terms on the prototypes of each class ask for."""

    needs: ClassVar[frozenset[str]] = frozenset({"prototypes", "owned"})

    def check(self, model: TransparentClassifier) -> None:
        """Refuse units that have no vectors, and prototypes that no class owns for good."""
        layer = prototype_layer(model)
        if layer.vectors is None or not bool((layer.class_of >= 0).any()):
            raise UserError(
                f"the prototypes of {type(layer).__name__} are no vectors that belong to classes",
                "leave out the terms orthogonality and subspace_separation, or choose evidence 'prototypes' with "
                "per_class",
            )


@TERMS.register("orthogonality")
class Orthogonality(_OfClasses):
    """The prototypes of a class shall be orthogonal to each other and of length 1.

        sum over classes c of  |B_c B_c^T - I|

    with the living prototypes of class c as the rows of B_c, which are found by who owns them. TesNet (Wang et al.,
    ICCV 2021; the defaults) takes the sum of absolute values over whole prototypes as they are. Deformable ProtoPNet
    (Donnelly et al., CVPR 2022) takes the sum of squares over all parts of a class, each of length 1: ``norm: squared,
    rows: part, unit: true``. (Its release reshapes prototypes in the wrong order, so that the rows of one B are of
    several classes.)

    Args:
        source: the data.
        norm: "l1" (sum of absolute values) or "squared" (sum of squares).
        rows: "prototype" (k x k places as one vector) or "part" (each place is a vector of its own).
        unit: whether rows are first brought to length 1, so that only their angles count.

    Raises:
        UserError: unknown words, prototypes that no class owns.
    """

    def __init__(
        self,
        source: DataSource,
        norm: Literal["l1", "squared"] = "l1",
        rows: Literal["prototype", "part"] = "prototype",
        unit: bool = False,
    ) -> None:
        super().__init__(source)
        for option, value, known in (("norm", norm, NORMS), ("rows", rows, ROWS)):
            if value not in known:
                raise UserError(f"the term 'orthogonality' has no {option} '{value}'", closest(value, known))
        self.norm, self.rows, self.unit = norm, rows, unit

    def forward(self, step: Step) -> Tensor:
        """The sum over classes."""
        basis, living = class_bases(step.model, self.rows == "part", self.unit)
        return orthogonality(basis, living, self.norm)


def orthogonality(basis: Tensor, living: Tensor, norm: str = "l1") -> Tensor:
    """sum_c |B_c B_c^T - I| over living rows.

    Args:
        basis: (C, n, D), rows of 0 where ``living`` is False.
        living: (C, n) bool.
        norm: "l1" or "squared".
    """
    gram = basis @ basis.transpose(1, 2) - torch.diag_embed(living.to(basis.dtype))
    return gram.abs().sum() if norm == "l1" else gram.square().sum()


@TERMS.register("subspace_separation")
class SubspaceSeparation(_OfClasses):
    """The subspaces of two classes shall be far from each other (TesNet: Wang et al., ICCV 2021).

        -(1 / (2 sqrt 2)) sum over classes i != j of  |P_i - P_j|_F,   P_c = B_c^T B_c

    with the living prototypes of class c as the rows of B_c. A weight above 0 pushes apart; the paper's is 1e-7.

    Args:
        source: the data.

    Raises:
        UserError: prototypes that no class owns.
    """

    def forward(self, step: Step) -> Tensor:
        """Minus the sum over pairs of classes that have prototypes left."""
        basis, living = class_bases(step.model)
        return subspace_separation(basis[living.any(1)])


def subspace_separation(basis: Tensor) -> Tensor:
    """-(1 / (2 sqrt 2)) sum_ij |P_i - P_j|_F of C bases (C, n, D)."""
    return -subspace_distances(basis).sum() / 8**0.5


def prototype_layer(model: TransparentClassifier) -> PrototypeLayer:
    """The evidence of a model, known to be made of prototypes because terms that need them are refused otherwise."""
    assert isinstance(model.evidence, PrototypeLayer)
    return model.evidence


def class_bases(model: TransparentClassifier, parts: bool = False, unit: bool = False) -> tuple[Tensor, Tensor]:
    """The living prototypes of each class.

    Args:
        model: its prototypes belong to classes.
        parts: whether each of the k x k places is a row of its own.
        unit: whether rows are brought to length 1.

    Returns:
        (C, n, D) in float32 at least, rows of 0 where a class has fewer than n; (C, n) bool, which rows are prototypes.
    """
    layer = prototype_layer(model)
    assert layer.vectors is not None
    vectors, owner, living = layer.vectors, layer.class_of, layer.alive_prototypes()
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    if parts:
        rows = vectors.flatten(2).transpose(1, 2).flatten(0, 1)
        owner, living = (t.repeat_interleave(vectors[0, 0].numel()) for t in (owner, living))
    else:
        rows = vectors.flatten(1)
    if unit:
        rows = torch.nn.functional.normalize(rows, dim=1, eps=1e-12)
    return by_class(rows, owner, living, layer.classes)
