from __future__ import annotations

import json
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vitrarium.data.batch import Batch
from vitrarium.data.concepts import ConceptSet
from vitrarium.eval.metrics import METRICS, Metric
from vitrarium.eval.metrics.parts.sighting import Sighting, UnitLayout
from vitrarium.models.types import Evidence

NAMES = [
    "accuracy", "balanced_accuracy", "ece", "nll", "concept_accuracy", "concept_auc", "concept_f1",
    "all_concepts_right", "aurc", "excess_aurc", "risk_at_coverage", "coverage_at_threshold", "risk_at_threshold",
]  # fmt: skip
PARTS = ["consistency", "purity", "stability", "part_localisation", "location_instability", "part_interpretability"]
# Units 0 and 1 belong to classes, 2 and 3 are shared.
UNITS = UnitLayout(torch.eye(4, 3, dtype=torch.bool) | (torch.arange(4) > 1)[:, None], torch.ones(4, dtype=torch.bool))


def looking(name: str, data: dict[str, torch.Tensor]) -> Metric:
    """A metric of units over some images."""
    metric = METRICS.build(name, classes=3, units=UNITS, parts=2)
    for rows in torch.arange(len(data["label"])).split(7):
        if len(rows):
            batch = Batch(torch.zeros(len(rows), 3, 16, 16), data["label"][rows], part_masks=data["masks"][rows],
                          index=data["index"][rows])  # fmt: skip
            maps = [data[kind][rows] for kind in ("maps", "noisy")]
            sights = [Sighting.of(Evidence(m.amax((2, 3)), m.amax((2, 3)), maps=m), batch) for m in maps]
            metric.update(*sights[: 2 if name == "stability" else 1])
    return metric


WORKER = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from work import work
work(1, sys.argv[1])
"""


def work(rank: int, folder: str) -> None:
    """One of two processes: metrics over its share of the data, gathered."""
    concepts = ConceptSet.from_dict(json.loads((Path(folder) / "concepts.json").read_text()))
    data = torch.load(f"{folder}/data.pt", weights_only=True)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=90)
    )
    found = {}
    try:
        for share in (30, 40):  # of 40: unequal shares, then one process sees nothing
            mine = slice(0, share) if rank == 0 else slice(share, 40)
            for name in NAMES:
                metric = METRICS.build(name, classes=3, concepts=concepts)
                tensors = [data[field][mine] for field in metric.fields]
                for rows in torch.arange(len(tensors[0])).split(7):
                    if len(rows):
                        metric.update(*[t[rows] for t in tensors])
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The ``compute`` method")
                    found[f"{name} {share}"] = float(metric.compute())
            for name in PARTS:
                metric = looking(name, {field: tensor[mine] for field, tensor in data.items()})
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The ``compute`` method")
                    found[f"{name} {share}"] = float(metric.compute())
        dist.barrier()
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


def test_two_processes_agree_with_one(tmp_path: Path, concepts, make_truth):
    generator = torch.Generator().manual_seed(0)
    data = {
        "logits": torch.randn(40, 3, generator=generator),
        "label": torch.randint(3, (40,), generator=generator),
        "probabilities": torch.rand(40, 8, generator=generator),
        "concepts": make_truth(40, 0, 0.2),
        "index": torch.arange(40),
        # In quarters, so that many activations are equal.
        "maps": (torch.rand(40, 4, 5, 5, generator=generator) * 4).round() / 4,
        "noisy": (torch.rand(40, 4, 5, 5, generator=generator) * 4).round() / 4,
        "masks": torch.rand(40, 2, 16, 16, generator=generator) > 0.8,
    }
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "concepts.json").write_text(json.dumps(concepts.to_dict()))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "work.py").write_text(Path(__file__).read_text())
    other = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(tmp_path / "code")])
    try:
        work(0, str(tmp_path))
        assert other.wait(timeout=90) == 0
    finally:
        other.kill()
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 2 * len(NAMES + PARTS)
        for key, value in found.items():
            name = key.split()[0]
            if name in PARTS:
                # Counts agree exactly; distances are real numbers, whose sums round in the order of the processes.
                real = name == "location_instability"
                expected = float(looking(name, data).compute())
                assert value == (pytest.approx(expected, rel=1e-14) if real else expected), key
                continue
            metric = METRICS.build(name, classes=3, concepts=concepts)
            metric.update(*[data[field] for field in metric.fields])
            assert value == pytest.approx(float(metric.compute()), abs=1e-6), key


def test_every_streaming_metric_knows_its_state_by_sum_or_concatenation(concepts):
    for name in METRICS.list():
        if issubclass(METRICS.get(name), Metric):
            metric = METRICS.build(name, classes=3, concepts=concepts, units=UNITS, parts=2)
            assert metric._reductions, name
            assert all(reduction is not None for reduction in metric._reductions.values()), name
