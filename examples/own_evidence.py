"""A new evidence layer: each channel speaks with its k strongest places. Registered, trained, explained, corrected.

Run ``python own_evidence.py [FOLDER]``; without a folder, output goes to a temporary one.

docs/add_your_own_evidence.md explains it line by line.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.models.evidence.base import EVIDENCE, EvidenceLayer
from vitrarium.models.types import Evidence, Features
from vitrarium.models.units import UnitTable


@EVIDENCE.register("top_patches")
class TopPatches(EvidenceLayer):
    """One unit per channel: the mean of its k largest places.

    Args:
        channels: D of the backbone's map; handed in when the model is built.
        k: how many places count.
    """

    gives = frozenset({"vector", "maps"})

    def __init__(self, channels: int, k: int = 3) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"top_patches with k={k}", "give at least 1")
        self.k = k
        self.set_units(UnitTable.anonymous("channel", channels))

    def forward(self, features: Features) -> Evidence:
        """(B, D, h, w) to activations = vector = (B, D)."""
        h, w = features.map.shape[-2:]
        if self.k > h * w:
            raise UserError(f"top_patches with k={self.k} on a map of {h} x {w} places", "lower k, or cut earlier")
        activations = self.strongest(features.map)
        return Evidence(activations, activations, maps=features.map)

    def strongest(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D): the mean of the k largest places."""
        return maps.flatten(2).topk(self.k).values.mean(-1)

    def assemble(self, activations: Tensor, evidence: Evidence) -> Tensor:
        """The readout consumes the activations themselves."""
        return activations

    def confine(self, evidence: Evidence, region: Tensor) -> Evidence:
        """Places outside the region fall silent (0)."""
        if evidence.maps is None:
            raise UserError("this evidence was cached without maps", "ban a region on the model itself")
        activations = self.strongest(evidence.maps * region)
        return replace(evidence, activations=activations, vector=activations)

    def certify(self, evidence: Evidence, bound: float) -> Tensor | None:
        """Distance to the middle between absent and present, over the unit's Lipschitz constant bound / sqrt(k)."""
        if torch.isnan(self.absent).any():
            return None
        middle = (self.absent + self.present) / 2
        return (evidence.activations - middle).abs() * math.sqrt(self.k) / bound


PRESET = """
model:
  preset: top_patches
  family: black box
  title: Strongest patches
  evidence: {name: top_patches, k: 3}
  readout: {name: linear}
loss:
  cross_entropy: 1.0
recipe:
  joint:
    epochs: ${train.epochs}
    terms: [cross_entropy]
    select: [accuracy]
    events:
      calibrate: {when: end}
"""


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "preset.yaml").write_text(PRESET)
    tiny = ["data.size=32", "data.train=200", "data.val=40", "data.test=40", "backbone.widths=[16,32]"]
    run = vt.fit(
        f"model={out / 'preset.yaml'}", "data=flowers", *tiny, "train.epochs=4", "train.batch_size=32",
        out=out / "top_patches", resume=True,
    )  # fmt: skip
    print(f"trained: {run.folder}")
    model = vt.load(run.folder)
    flower = run.source.splits["test"].sample(0).image
    print(vt.explain(model, flower).sentence())
    vt.explain(model, flower).save(out / "why.png")
    before, after = model.predict(flower), model.predict(flower, do={"channel_3": "yes"})
    print(f"channel_3: {before.units['channel_3']:.2f} seen, {after.units['channel_3']:.2f} set")
    print(f"{before.label} {before.probability:.1%} -> {after.label} {after.probability:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
