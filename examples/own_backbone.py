"""Your own network as a backbone: two lines to train a concept bottleneck on it, one more to load it again.

Run ``python own_backbone.py [FOLDER]``; without a folder, output goes to a temporary one.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import vitrarium as vt

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())


class MyNet(nn.Module):
    """A classifier as one would write it for any other purpose."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to logits (B, 1000)."""
        return self.head(self.body(self.stem(x)).mean((2, 3)))


# A classifier ends in logits: without a cut, the refusal says where it can be cut.
try:
    vt.backbone(MyNet())
except vt.UserError as refusal:
    print("refused:", refusal)

torch.manual_seed(0)
backbone = vt.backbone(MyNet(), cut="body", mean=0.5, std=0.25)
flowers = ["data=flowers", "data.size=32", "data.train=200", "data.val=40", "data.test=40", "train.epochs=3"]
run = vt.fit("model=cbm", *flowers, "train.batch_size=20", out=out / "run", resume=True, backbone=backbone)

flower = run.source.splits["test"].sample(0).image
print("trained:", run.model.predict(flower).label, "from maps of", run.model.backbone.channels, "channels")

# The folder holds the weights, not the class: hand such a network over again.
again = vt.load(run.folder, backbone=MyNet())
print("loaded: ", again.predict(flower).label)

# The same network in a training loop of your own.
model = vt.build(run.source, backbone=backbone, evidence="concepts", readout="linear", seed=0)
print("logits: ", tuple(model(torch.rand(2, 3, 32, 32)).logits.shape))
