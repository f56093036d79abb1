"""What units look at, held against annotated parts: measured while the answers are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from vitrarium.data.batch import Batch
from vitrarium.eval.floors import CHANNELS, PATCHES, Look, channels, random_patches
from vitrarium.eval.metrics.base import METRICS
from vitrarium.eval.metrics.parts.annotation import RULES, Marks
from vitrarium.eval.metrics.parts.base import UnitMetric
from vitrarium.eval.metrics.parts.localisation import WAYS, PartLocalisation
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout
from vitrarium.eval.metrics.parts.stability import Stability, noisy
from vitrarium.eval.metrics.resampling import Bootstrap
from vitrarium.eval.scorecard import Scorecard
from vitrarium.models.types import Evidence, Features, Output

# Some in two ways: as in the paper, and in one that treats shared units and those of classes alike.
MEASURED: dict[str, dict[str, Any]] = {
    "consistency": {"name": "consistency"},
    "consistency@top": {"name": "consistency", "images": "top"},
    "purity": {"name": "purity"},
    "stability": {"name": "stability"},
    "part_localisation": {"name": "part_localisation"},
    "location_instability": {"name": "location_instability"},
    "location_instability@top": {"name": "location_instability", "images": "top"},
    "part_interpretability": {"name": "part_interpretability"},
}


class View:
    """One way to look at images with M units, and the metrics of it.

    Args:
        layout: the units.
        classes: C.
        marks: of the first batch, which says how many parts there are.
        names: of the parts.
    """

    def __init__(self, layout: UnitLayout, classes: int, marks: Marks, names: Sequence[str]) -> None:
        given = {"classes": classes, "units": layout, "parts": marks.parts, "part_names": names}
        self.metrics: dict[str, UnitMetric] = {
            label: METRICS.build(spec, **given) for label, spec in MEASURED.items()
        }  # fmt: skip

    def update(self, sight: Sighting, under_noise: Sighting) -> None:
        """Add a batch."""
        for metric in self.metrics.values():
            if isinstance(metric, Stability):
                metric.update(sight, under_noise)
            else:
                metric.update(sight)


class PartsWatch:
    """Measures what units with maps look at, on data with parts: each metric of ``MEASURED``.

    Called with every answer while they are collected; what it keeps has a fixed size. Prototypes are measured beside
    two floors, under the same backbone: patches drawn by chance in their place, and the backbone's channels as they
    are. Part filters are measured beside the second. Data without keypoints and part masks costs nothing and leaves a
    note.

    Args:
        card: where records and notes go.
        batches: gives the batches of a split, for patches drawn by chance.
        names: of the parts; left and right ones are merged by them where a metric says so.
    """

    def __init__(
        self, card: Scorecard, batches: Callable[[str], Iterable[Batch]], names: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self.card, self.batches, self.names = card, batches, tuple(names)
        self.views: dict[str, tuple[Look, View]] = {}
        self.kind = ""
        self._asked = "maps" not in card.model.evidence.gives
        self._prototypes, self._filters = (kind in card.model.evidence.gives for kind in ("prototypes", "filters"))

    def __call__(self, output: Output, batch: Batch) -> None:
        """Add a batch and what the model answered; the batch has positions and lies where the model does."""
        if self._asked and not self.views:
            return
        marks = Marks.of(batch, self.names) if output.features is not None and batch.image.numel() else None
        if not self._asked:
            self._asked = True
            if marks is None:
                self._say_nothing()
                return
            self._open(output, marks)
        if marks is None or output.features is None:
            return
        noise = self._features_under_noise(batch)
        for scope, (look, view) in self.views.items():
            shown = output.evidence if scope == "all" else look(output.features)
            before, after = self._sight(shown, batch, marks), self._sight(look(noise), batch, marks)
            view.update(before, after)

    def file(self, samples: int) -> None:
        """File what was measured, with intervals over ``samples`` resamples of the units (0 = none)."""
        for scope, (_, view) in self.views.items():
            for label, metric in view.metrics.items():
                name, _, variant = label.partition("@")
                if isinstance(metric, PartLocalisation):
                    for way in WAYS:
                        metric.way = way
                        self._file(name, scope, metric, f"@{way}", samples)
                else:
                    self._file(name, scope, metric, variant and f"@{variant}", samples)

    def _file(self, name: str, scope: str, metric: UnitMetric, variant: str, samples: int) -> None:
        each = metric.each().cpu()
        known = each[~torch.isnan(each)]
        if not len(known):
            return
        boot = Bootstrap(len(known), samples, over="units")
        choices = {**metric.choices, "annotation": self.kind, "judged": len(known), **boot.choices}
        if "inside" in choices:
            choices["inside"] = RULES[self.kind]
        self.card.add(name, scope, known.mean(), boot.of_mean(known), choices, variant)

    def _open(self, output: Output, marks: Marks) -> None:
        """Make the views, now that it is known what the data gives."""
        model, self.kind = self.card.model, marks.kind
        layout, classes = UnitLayout.of(model), len(model.class_names)
        looks: dict[str, tuple[Look, UnitLayout]] = {"all": (model.evidence, layout)}
        if self._prototypes:
            # From images that are not measured on.
            other = self.batches("train" if self.card.split == "val" else "val")
            looks[PATCHES] = random_patches(model, other, layout.owners), layout
        if self._prototypes or self._filters:
            width = output.features.map.shape[1]  # type: ignore[union-attr]
            everybody = torch.ones(width, classes, dtype=torch.bool)
            looks[CHANNELS] = channels, UnitLayout(everybody, torch.ones(width, dtype=torch.bool))
        self.views = {
            scope: (look, View(units, classes, marks, self.names)) for scope, (look, units) in looks.items()
        }  # fmt: skip

    def _features_under_noise(self, batch: Batch) -> Features:
        assert batch.index is not None
        backbone = self.card.model.backbone
        return backbone(noisy(batch.image, batch.index, backbone.std))  # type: ignore[no-any-return]

    def _sight(self, evidence: Evidence, batch: Batch, marks: Marks) -> Sighting:
        sight = Sighting.of(evidence, replace(batch, features=()), self.names, marks)
        assert sight is not None
        return sight

    def _say_nothing(self) -> None:
        if self._prototypes or self._filters:
            self.card.notes.append(
                "nothing said of parts (consistency, purity, stability, location instability ...): "
                "the data has neither keypoints nor part masks"
            )
