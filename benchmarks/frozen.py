"""Does training on frozen features get out of them what is in them? Against ridge regression on the same features.

    python benchmarks/frozen.py
    python benchmarks/frozen.py --seeds 3 --json frozen.json

A set in the layout of CUB-200-2011 is made: 20 classes (the ten of CIFAR-10 and ten signs of GTSRB, 200 training and
75 test images each, 32 px enlarged to 112), 85 random class-level attributes, boxes, parts for a third of the images.
It is trained with `train=frozen backbone=efficientnet_lite0`. The opponent is flattered: its penalty is the one that is
best on the TEST split; the note says what the validation split would have chosen (frames of one sign are near copies,
so validation prefers too little of it). Needs VITRARIUM_DATA with `cifar10` and `gtsrb32`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import report

import vitrarium as vt
from vitrarium.data import build_source
from vitrarium.data.module import DataModule
from vitrarium.models.backbones import build_backbone

ATTRIBUTES, TRAIN, TEST = 85, 200, 75
SIGNS = (1, 2, 3, 4, 5, 7, 8, 9, 10, 12)
PENALTIES = (1, 10, 100, 1000, 3000, 10000)


def stand_in(data: Path, root: Path) -> Path:
    """Write the set; which images it takes is fixed."""
    rng = np.random.default_rng(0)
    tables: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    boxes, parts, number = [], [], 0
    for first, name, classes in ((0, "cifar10/cifar10", range(10)), (10, "gtsrb32/gtsrb32", SIGNS)):
        for split, most in (("train", TRAIN), ("test", TEST)):
            packed = np.load(data / f"{name}_{split}_jpeg.npz", allow_pickle=False)
            bytes_, offsets, labels = packed["jpeg"], packed["offsets"], packed["labels"]
            for place, label in enumerate(classes):
                folder = root / "images" / f"{first + place + 1:03d}.class{first + place}"
                folder.mkdir(parents=True, exist_ok=True)
                for index in rng.permutation(np.flatnonzero(labels == label))[:most]:
                    number += 1
                    file = folder / f"{split}_{index}.jpg"
                    file.write_bytes(bytes_[offsets[index] : offsets[index + 1]].tobytes())
                    tables["images"].append(f"{number} {folder.name}/{file.name}")
                    tables["image_class_labels"].append(f"{number} {first + place + 1}")
                    tables["train_test_split"].append(f"{number} {int(split == 'train')}")
                    boxes.append(f"{number} 2.0 2.0 28.0 28.0")
                    if number % 3 == 0:
                        parts.append(f"{number} 1 {rng.uniform(5, 25):.1f} {rng.uniform(5, 25):.1f} 1")
    truth = (rng.random((20, ATTRIBUTES)) < 0.35) * 100.0
    folders = sorted(folder.name for folder in (root / "images").iterdir())
    tables |= {
        "bounding_boxes": boxes,
        "classes": [f"{c + 1} {name}" for c, name in enumerate(folders)],
        "parts/parts": ["1 centre"],
        "parts/part_locs": parts,
        "attributes/attributes": [f"{k + 1} attribute{k}" for k in range(ATTRIBUTES)],
        "attributes/class_attribute_labels_continuous": [" ".join(f"{v:.1f}" for v in row) for row in truth],
    }
    for name, lines in tables.items():
        path = root / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@torch.no_grad()
def ridge(root: Path) -> tuple[float, float]:
    """Test accuracies of ridge regression on standardised features: penalty best on test, and chosen on validation."""
    data = DataModule(build_source({"name": "cub", "root": str(root), "size": 112}), 64)
    spec = {"name": "timm/tf_efficientnet_lite0", "weights": "package:efficientnet_lite0"}
    backbone, x, y = build_backbone(spec).eval(), {}, {}
    for split in ("train", "val", "test"):
        seen = [(backbone(batch.image).map.mean((2, 3)), batch.label) for batch in data.loader(split)]
        x[split] = torch.cat([features for features, _ in seen]).double()
        y[split] = torch.cat([label for _, label in seen])
    mean, deviation = x["train"].mean(0), x["train"].std(0) + 1e-9
    x = {split: (features - mean) / deviation for split, features in x.items()}
    targets = torch.nn.functional.one_hot(y["train"]).double()
    found = []
    for penalty in PENALTIES:
        gram = x["train"].T @ x["train"] + penalty * torch.eye(x["train"].shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, x["train"].T @ (targets - targets.mean(0)))
        said = {split: (x[split] @ weight + targets.mean(0)).argmax(1) for split in ("val", "test")}
        right = {split: float((said[split] == y[split]).double().mean()) for split in said}
        found.append((right["val"], right["test"]))
    return max(test for _, test in found), max(found, key=lambda pair: pair[0])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write records to this file")
    given = parser.parse_args()
    if not os.environ.get("VITRARIUM_DATA"):
        parser.error("set VITRARIUM_DATA to the folder that holds cifar10 and gtsrb32")
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VITRARIUM_CACHE"] = str(Path(scratch) / "cache")
        root = stand_in(Path(os.environ["VITRARIUM_DATA"]), Path(scratch) / "standin")
        theirs, chosen = ridge(root)
        for preset in ("blackbox", "cbm"):
            accuracies = []
            for seed in range(given.seeds):
                run = vt.fit(
                    f"model={preset}", "data=cub", f"data.root={root}", "backbone=efficientnet_lite0", "train=frozen",
                    f"seed={seed}", "train.progress=false", "evaluation.degradations=[]", "evaluation.bootstrap=0",
                    "evaluation.trials=1", out=Path(scratch) / f"{preset}-{seed}",
                )  # fmt: skip
                accuracies.append(vt.evaluate(run).value("accuracy"))
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            ours = statistics.mean(accuracies)
            note = (
                f"test accuracy against ridge regression ({chosen:.4f} with the penalty that validation chooses); "
                f"{given.seeds} seed(s), standard deviation {spread:.4f}"
            )
            records.append(
                {"name": preset, "ours": ours, "theirs": theirs, "ratio": ours / theirs, "target": 1.0,
                 "difference": ours - theirs, "note": note}
            )  # fmt: skip
    report(records, given.json)


if __name__ == "__main__":
    main()
