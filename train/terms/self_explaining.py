"""Terms of self-explaining models: what makes learnt concepts worth looking at, and the head they are held against."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.source import DataSource
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.evidence.self_learnt_concepts import HEAD, TURNS, SelfLearntConcepts
from vitrarium.models.prototypes.similarity import at_least_float32
from vitrarium.train.distributed import shared_mean
from vitrarium.train.terms.base import TERMS, Step, Term
from vitrarium.train.terms.classification import CrossEntropy

FORMS = ("squared", "kl")


@TERMS.register("reconstruction")
class Reconstruction(Term):
    """The units must hold enough of the image to draw it again (Alvarez-Melis & Jaakkola, NeurIPS 2018).

    Mean squared error of the decoded image, over pixels in [0, 1], channels and images.

    Args:
        source: the data.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"decodes", "pixels"})

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch of all processes."""
        image = step.batch.image.detach()
        size = (image.shape[2], image.shape[3])
        decoded = layer_of(step.model).decode(step.output.evidence.activations, size)
        return _mean((decoded - image).square().flatten(1).mean(1))


@TERMS.register("sparsity")
class Sparsity(Term):
    """Few units shall speak in each image (Alvarez-Melis & Jaakkola, NeurIPS 2018).

    Sum over units of |h_m|, mean over images. Annotated units are left out: their truth says how often they speak.

    Args:
        source: the data.
    """

    def check(self, model: TransparentClassifier) -> None:
        """Refuse a model all of whose units are annotated."""
        units = model.evidence.units
        if units.truth == "concept" and not units.free:
            raise UserError("term 'sparsity' finds no unit that is not annotated", "leave it out of the recipe")

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch of all processes."""
        units, activations = step.model.evidence.units, step.output.evidence.activations
        if units.truth == "concept":
            activations = activations[:, len(units) - units.free :]
        return _mean(activations.abs().sum(1))


@TERMS.register("head_cross_entropy")
class HeadCrossEntropy(CrossEntropy):
    """Cross-entropy of the black-box head that stands beside the units (Sarkar et al., CVPR 2022).

    Options as those of ``cross_entropy``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"head"})

    def forward(self, step: Step) -> Tensor:
        """Weighted mean over the batch of all processes."""
        return self.loss(step.output.evidence.context[HEAD], step.batch.label)


@TERMS.register("fidelity")
class Fidelity(Term):
    """The readout shall say what the head says (Sarkar et al., CVPR 2022).

    A distance of its logits from those of the head, which get no gradient, as in the paper.

    Args:
        source: the data.
        form: "squared": mean over classes of the squared difference of logits, the distance of the authors' code;
            "kl": KL(softmax(head) || softmax(readout)), which does not mind a constant that is added to all logits.

    Raises:
        UserError: an unknown form.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"head"})

    def __init__(self, source: DataSource, form: Literal["squared", "kl"] = "squared") -> None:
        super().__init__(source)
        if form not in FORMS:
            raise UserError(f"term 'fidelity' has no form '{form}'", closest(form, FORMS))
        self.form = form

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch of all processes."""
        return _mean(infidelity(step.output.logits, step.output.evidence.context[HEAD], self.form))


def infidelity(logits: Tensor, head: Tensor, form: str) -> Tensor:
    """(B,) distance of logits (B, C) from those of the head (B, C), taken as constants; see :class:`Fidelity`."""
    logits, head = at_least_float32(logits, head.detach())
    if form == "squared":
        return (logits - head).square().mean(1)
    return functional.kl_div(logits.log_softmax(1), head.log_softmax(1), reduction="none", log_target=True).sum(1)


@TERMS.register("rotation")
class Rotation(Term):
    """The units must tell how an image was turned (Sarkar et al., CVPR 2022; the task is Gidaris et al., ICLR 2018).

    Each image is turned by 0, 90, 180 or 270 degrees, drawn anew in every step, and a head tells from the units by how
    much: cross-entropy, without annotation. One further pass of the network over the batch. It teaches nothing where
    the images have no upright, or where the augmentation has already turned them.

    Args:
        source: the data.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"turns", "pixels"})

    def forward(self, step: Step) -> Tensor:
        """Mean cross-entropy over the batch of all processes."""
        image, model = step.batch.image.detach(), step.model
        turns = torch.randint(TURNS, (len(image),), device=image.device)
        evidence = model.observe(model.backbone(turned(image, turns)))
        logits = layer_of(model).tell_turn(evidence.activations)
        return _mean(functional.cross_entropy(logits.float(), turns, reduction="none"))


def turned(image: Tensor, turns: Tensor) -> Tensor:
    """Images (B, C, S, S), each turned counterclockwise by ``turns`` (B,) quarters.

    Raises:
        UserError: images that are not square.
    """
    if image.shape[2] != image.shape[3]:
        raise UserError(
            f"images of {image.shape[2]} x {image.shape[3]} cannot be turned by 90 degrees", "give square images"
        )
    result = image
    for quarter in range(1, TURNS):
        result = torch.where((turns == quarter)[:, None, None, None], image.rot90(quarter, (2, 3)), result)
    return result


def layer_of(model: TransparentClassifier) -> SelfLearntConcepts:
    """The evidence layer of a model, which has what the term needs."""
    layer: SelfLearntConcepts = model.evidence  # type: ignore[assignment]
    return layer


def _mean(values: Tensor) -> Tensor:
    """Mean of a loss per image (B,) over the batch of all processes."""
    return shared_mean(values.sum(), values.new_tensor(float(len(values))))
