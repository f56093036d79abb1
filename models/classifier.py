"""The one model class of the house: backbone, evidence, readout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitrarium.configs.errors import UserError
from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models.abstention import Abstention
from vitrarium.models.backbones.base import Backbone
from vitrarium.models.evidence.base import EvidenceLayer
from vitrarium.models.intervention import Intervention, from_corrections
from vitrarium.models.prediction import Prediction, predict
from vitrarium.models.readouts.base import Contributions, Readout
from vitrarium.models.regions import Places
from vitrarium.models.types import Evidence, Features, Output

if TYPE_CHECKING:
    from vitrarium.models.backbones.weights import WeightReport
    from vitrarium.models.deploy import DeployReport
    from vitrarium.models.prototypes.journal import Journal

PARTS = ("backbone", "evidence", "readout")


class TransparentClassifier(nn.Module):
    """image -> backbone -> evidence -> readout -> logits, with a door for interventions at the evidence.

    Args:
        backbone: image to features.
        evidence: features to named units.
        readout: units to logits.
        class_names: names of the C classes.
        concepts: the concept set it was built for, or None.
        preprocessing: what turns a file into pixels; needed by :meth:`predict` only.
        spec: the plain configuration it was built from; saved with it, so it can be built again.

    Example:
        >>> from vitrarium.models import build
        >>> model = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ["a", "b"])
        >>> model(torch.rand(2, 3, 32, 32)).logits.shape
        torch.Size([2, 2])

    Attributes:
        deploy_report: what was made simpler in a copy that :meth:`deploy` has made; None in every other model.
        start_report: what became of the weights of the run that it starts from; None without one.
        journal: what people changed in it since it was trained; None if nobody did.
    """

    deploy_report: DeployReport | None = None
    start_report: WeightReport | None = None
    journal: Journal | None = None

    def __init__(
        self,
        backbone: Backbone,
        evidence: EvidenceLayer,
        readout: Readout,
        class_names: tuple[str, ...],
        concepts: ConceptSet | None = None,
        preprocessing: Preprocessing | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        refuse_misfit(backbone, evidence, readout, concepts)
        self.backbone, self.evidence, self.readout = backbone, evidence, readout
        self.class_names, self.concepts = tuple(class_names), concepts
        self.preprocessing, self.spec = preprocessing, dict(spec or {})
        # When it does not answer; chosen on validation images at the end of training.
        self.abstention: Abstention | None = None
        # What some recipes need beside the three parts (a decoder, a learnt policy); train-only ones are not saved.
        self.auxiliary = nn.ModuleDict()
        self.train_only: set[str] = set()

    def forward(self, x: Tensor, do: Intervention | None = None) -> Output:
        """Pixels (B, 3, H, W) in [0, 1] to an :class:`Output`, under an intervention if one is given."""
        features = self.backbone(x)
        return self.answer(self.observe(features), do, features)

    def look(self, batch: Batch) -> Features:
        """The features of a batch: those it brings, or what the backbone makes of its images."""
        if batch.features:
            # In the precision the backbone would have answered in: that of its standardisation.
            map, *carry = (tensor.to(self.backbone.mean.dtype) for tensor in batch.features)
            return Features(map, tuple(carry))
        return self.backbone(batch.image)

    def on(self, batch: Batch, do: Intervention | None = None) -> Output:
        """What it answers to a batch; as ``model(batch.image, do)``, but features that the batch brings are used."""
        features = self.look(batch)
        return self.answer(self.observe(features), do, features)

    def observe(self, features: Features) -> Evidence:
        """Features to evidence, before any intervention."""
        return self.evidence(features)

    def answer(self, evidence: Evidence, do: Intervention | None = None, features: Features | None = None) -> Output:
        """Evidence (fresh or cached) to an :class:`Output`; the backbone does not run."""
        if do is not None:
            evidence = self.evidence.intervene(evidence, do)
        return Output(self.readout(evidence), evidence, features)

    def contributions(self, evidence: Evidence, classes: Tensor) -> Contributions:
        """How much each unit speaks for ``classes`` (B,)."""
        return self.readout.contributions(evidence, classes)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by part name: backbone, evidence, readout, and the auxiliary modules by their names."""
        named: dict[str, list[nn.Parameter]] = {part: list(getattr(self, part).parameters()) for part in PARTS}
        named.update({name: list(module.parameters()) for name, module in self.auxiliary.items()})
        return named

    def intervention(self, do: Mapping[str, Any], batch: int = 1, places: Places | None = None) -> Intervention:
        """Corrections by name ({"granularity": "yes"}) as an intervention on ``batch`` images.

        Args:
            do: see :meth:`predict`.
            batch: B.
            places: where units look, ``Places.of(evidence, features)``; needed only where ``do`` bans a place.

        Raises:
            UserError: an unknown unit, an impossible value or box, a ban where units have no maps.
        """
        return from_corrections(self.evidence.units, self.evidence.read_corrections(do), batch, places)

    def under(self, features: Features, do: Mapping[str, Any]) -> tuple[Output, Intervention]:
        """What it answers to features under corrections by name, and these as an intervention."""
        evidence = self.observe(features)
        made = self.intervention(do, len(evidence), Places.of(evidence, features))
        return self.answer(evidence, made, features), made

    def predict(self, image: Any, do: Mapping[str, Any] | None = None) -> Prediction:
        """Classify one image and say why.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) uint8 or float in [0, 1].
            do: corrections by name: an answer (``{"granularity": "yes"}``; categorical groups are set whole),
                ``"silent"``, an activation (``{"prototype_3": {"score": 0.8}}``) or a box where a unit may not look
                (``{"prototype_3": {"ban": [left, top, right, bottom]}}`` in fractions of the image; "everywhere" in
                place of a name is for all units).

        Raises:
            UserError: an image that cannot be read, an unknown unit, an impossible value or box.
        """
        return predict(self, image, do)

    def deploy(self, fold: bool = True) -> TransparentClassifier:
        """A copy for inference, with everything folded that can be; see :func:`vitrarium.models.deploy.deploy`."""
        from vitrarium.models.deploy import deploy

        return deploy(self, fold)


def refuse_misfit(backbone: Backbone, evidence: EvidenceLayer, readout: Readout, concepts: ConceptSet | None) -> None:
    """Refuse parts that do not fit, by the names of what is needed and given."""
    offered = backbone.gives | ({"concepts"} if concepts is not None else frozenset())
    for part, needs, gives, giver in (
        (evidence, evidence.needs, offered, backbone),
        (readout, readout.needs, evidence.gives | backbone.gives, evidence),
    ):
        missing = sorted(needs - gives)
        if missing:
            raise UserError(
                f"{type(part).__name__} needs {', '.join(missing)}, "
                f"which {type(giver).__name__} does not give (it gives {', '.join(sorted(gives))})",
                "choose parts that fit: vitrarium list evidence, vitrarium list readouts",
            )


@torch.no_grad()
def count_parameters(model: nn.Module) -> int:
    """Number of learnable numbers."""
    return sum(p.numel() for p in model.parameters())
