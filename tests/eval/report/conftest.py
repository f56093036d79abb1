"""Run folders as training and evaluation leave them, with made-up but plausible numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vitrarium.eval.records import Record, write_records

GROUPS = {
    "cell_size": (2, 0.83, 0.898), "cell_shape": (2, 0.834, 0.947), "nucleus_shape": (6, 0.66, 0.872),
    "nuclear_cytoplasmic_ratio": (2, 0.982, 0.97), "chromatin_density": (2, 0.955, 0.967),
    "cytoplasm_vacuole": (2, 0.949, 0.984), "cytoplasm_texture": (2, 0.944, 0.954),
    "cytoplasm_colour": (3, 0.937, 0.951),
    "granule_type": (4, 0.991, 0.993), "granule_colour": (4, 0.986, 0.987), "granularity": (2, 0.993, 0.997),
}  # fmt: skip
CLASSES = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")
IMAGES = 3099


@dataclass
class Fake:
    """What a made-up preset is good at: accuracy, concept accuracy (None = no concepts), where its curve ends."""

    title: str
    family: str
    accuracy: float
    concepts: float | None
    end: float | None
    ece: float
    size: float
    minutes: float
    low_end: float = 0.97
    loss: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "concepts": 1.0})


FAKES = {
    "blackbox": Fake("Black box", "black box", 0.9913, None, None, 0.004, 57.0, 2.9, loss={"cross_entropy": 1.0}),
    "multitask": Fake("Multitask", "black box", 0.9908, 0.909, 0.9908, 0.005, 11.0, 3.1),
    "cbm": Fake("CBM (joint)", "concept bottleneck", 0.9905, 0.9045, 0.977, 0.046, 5.2, 3.2),
    "cbm_logit": Fake("CBM (logit)", "concept bottleneck", 0.9912, 0.901, 0.958, 0.006, 6.8, 3.2),
    "cbm_hard": Fake("CBM (hard)", "concept bottleneck", 0.9879, 0.9, 0.9893, 0.009, 4.1, 3.3),
    "cbm_side": Fake("CBM + side channel", "concept bottleneck", 0.991, 0.906, 0.9931, 0.005, 9.4, 3.3),
    "cbm_sequential": Fake("CBM (sequential)", "concept bottleneck", 0.9908, 0.9145, 0.945, 0.004, 5.9, 3.0, 0.954),
    "cbm_independent": Fake("CBM (independent)", "concept bottleneck", 0.9858, 0.9145, 0.9903, 0.006, 4.6, 3.0, 0.99),
}


def make_run(
    root: Path, preset: str = "cbm", seed: int = 0, sweep: dict[str, Any] | None = None, data: str = "wbcatt",
    fake: Fake | None = None, shift: float = 0.0, name: str | None = None, backbone: str = "convnet",
    scopes: tuple[str, ...] = ("all", "grey", "pixels16"),
) -> Path:  # fmt: skip
    """Write one finished, evaluated run folder and return it."""
    fake, sweep = fake or FAKES[preset], sweep or {}
    suffix = "".join(f"-{k.rpartition('.')[2]}={v}" for k, v in sweep.items())
    folder = root / (name or f"{preset}-{data}{suffix}-{seed}")
    rng = np.random.default_rng([seed, len(preset), int(1000 * fake.accuracy)])
    jitter = float(rng.normal(0, 0.0009)) + shift
    config: dict[str, Any] = {
        "model": {"preset": preset, "family": fake.family, "title": fake.title},
        "backbone": {"name": backbone}, "data": {"name": data, "size": 64}, "seed": seed, "sweep": sweep,
        "loss": dict(fake.loss), "train": {"epochs": 12, "lr": 0.003},
    }  # fmt: skip
    for key, value in sweep.items():
        section, _, last = key.partition(".")
        config[section][last] = value
    (folder / "evaluation").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    seconds = 60 * fake.minutes * (1 + 0.05 * rng.random())
    dump(folder / "progress.json", {"finished": True, "seconds": seconds, "images_seen": 74_028, "stages": {}})
    dump(folder / "environment.json", ENVIRONMENT)
    dump(
        folder / "model" / "config.json",
        {"class_names": list(CLASSES), "concepts": describe(fake), "units": describe(fake)},
    )
    about = {"run": folder.name, "preset": preset, "family": fake.family, "data": data, "split": "test", "seed": seed}
    curves = make_curves(fake, jitter, scopes) if fake.concepts is not None else []
    write_records(folder / "evaluation" / "results.csv", make_records(fake, jitter, rng, about, curves))
    if curves:
        with (folder / "evaluation" / "curves.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*about, "scope", *curves[0]])
            writer.writeheader()
            writer.writerows([{**about, **row} for row in curves])
    return folder


ENVIRONMENT = {
    "python": "3.11.7", "platform": "Linux", "processor": "Some processor", "cores": 2, "threads": 1,
    "accelerators": [],
    "packages": {"vitrarium": "0.1.0", "torch": "2.14.1"},
}  # fmt: skip


def dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def describe(fake: Fake) -> dict[str, Any] | None:
    if fake.concepts is None:
        return None
    groups = [
        {"name": g, "values": [str(v) for v in range(n)], "categorical": True, "cost": 1.0}
        for g, (n, *_) in GROUPS.items()
    ]
    return {"per_class": False, "groups": groups}


def half(share: float) -> float:
    """Half a 95 % interval of a share of IMAGES images."""
    return 1.96 * float(np.sqrt(share * (1 - share) / IMAGES))


def make_curves(fake: Fake, jitter: float, scopes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Two policies and twelve budgets in each scope."""
    assert fake.end is not None
    flat = fake.end == fake.accuracy
    starts = {"all": (fake.accuracy, fake.end), "grey": (0.113, fake.low_end), "pixels16": (0.84, fake.low_end)}
    rows = []
    for scope in scopes:
        start, end = starts[scope]
        start, end = start + jitter, (start if flat else end) + jitter
        for policy, bend in (("random", 1.4), ("uncertainty", 0.6 if scope == "all" else 2.0)):
            for budget in range(12):
                value = min(1.0, start + (end - start) * (budget / 11) ** bend)
                rows.append({
                    "scope": scope, "policy": policy, "budget": budget, "cost": float(budget), "accuracy": value,
                    "low": value - half(value), "high": min(1.0, value + half(value)), "sd": 0.001, "trials": 10,
                })  # fmt: skip
    return rows


def make_records(
    fake: Fake, jitter: float, rng: np.random.Generator, about: dict[str, Any], curves: list[dict[str, Any]]
) -> list[Record]:
    found: list[Record] = []

    def add(
        category: str,
        metric: str,
        value: float,
        scope: str = "all",
        better: bool | None = True,
        low: float | None = None,
        high: float | None = None,
        **choices: Any,
    ) -> None:
        ends = (value - half(value), value + half(value)) if low is None and 0 <= value <= 1 else (low, high)
        low, high = (float("nan") if e is None else e for e in ends)
        found.append(Record(**about, scope=scope, category=category, metric=metric, value=value, low=low, high=high,
                            higher_is_better=better, choices=choices))  # fmt: skip

    accuracy = fake.accuracy + jitter
    add("task", "accuracy", accuracy, interval="95% percentile bootstrap over images, 1000 resamples")
    add("task", "accuracy", accuracy - 0.0003, scope="without duplicates")
    add("task", "accuracy", 0.113, scope="grey")
    add("task", "accuracy", 0.84 + 5 * jitter, scope="pixels16")
    add("task", "balanced_accuracy", accuracy - 0.003)
    add("task", "ece", fake.ece, better=False, low=0.7 * fake.ece, high=1.4 * fake.ece)
    for name in CLASSES:
        add("task", "accuracy", min(1.0, accuracy + float(rng.normal(0, 0.003))), scope=f"class:{name}")
    add(
        "compactness", "explanation_size", fake.size, better=False, low=fake.size - 0.2, high=fake.size + 0.2, share=0.9
    )
    add("cost", "parameters", 79_669 + (0 if fake.concepts is None else 2_682), better=False)
    add("cost", "latency_ms", 2.3 + 0.1 * float(rng.random()), better=False, batch=1, threads=1)
    if fake.concepts is None:
        return found
    per_group = {g: right + fake.concepts - 0.9145 + float(rng.normal(0, 0.003)) for g, (_, right, _) in GROUPS.items()}
    for group, value in per_group.items():
        add("concept", "concept_accuracy", min(1.0, value), scope=f"concept:{group}")
        add("concept", "human_agreement", GROUPS[group][2], scope=f"concept:{group}", better=None, images=304)
    human = float(np.mean([h for *_, h in GROUPS.values()]))
    add("concept", "human_agreement", human, scope="second annotator", better=None, images=304)
    add("concept", "concept_accuracy", float(np.mean(list(per_group.values()))) - 0.012, scope="second annotator")
    add("concept", "concept_accuracy", float(np.mean(list(per_group.values()))))
    add("concept", "all_concepts_right", max(0.02, 0.33 + 3 * (fake.concepts - 0.905)))
    for policy in ("random", "uncertainty"):
        for scope in dict.fromkeys(r["scope"] for r in curves):
            line = [r["accuracy"] for r in curves if (r["scope"], r["policy"]) == (scope, policy)]
            chosen = {"trials": 10, "truth": "annotation of the data set", "level": "image"}
            area = float((np.sum(line) - (line[0] + line[-1]) / 2) / 11)
            add("intervention", "intervention_area", area, scope, **chosen, policy=policy)
            if policy == "random":
                gain = line[-1] - line[0]
                add("intervention", "accuracy_fully_corrected", line[-1], scope, **chosen)
                ends = (0.0, 0.0) if gain == 0 else (gain - 0.002, gain + 0.002)
                add("intervention", "intervention_gain", gain, scope, True, *ends, **chosen)
    return found


def make_experiment(root: Path) -> list[Path]:
    """Eight presets, three seeds for two of them, and a sweep of the weight of the concepts."""
    folders = [
        make_run(root, preset, seed)
        for preset in FAKES
        for seed in ((0, 1, 2) if preset in ("blackbox", "cbm") else (0,))
    ]
    for weight, (accuracy, concepts, end) in {
        0.01: (0.9915, 0.72, 0.62), 0.1: (0.991, 0.86, 0.91), 1: (0.9905, 0.9045, 0.977), 10: (0.9871, 0.913, 0.9885),
    }.items():  # fmt: skip
        fake = Fake("CBM (joint)", "concept bottleneck", accuracy, concepts, end, 0.03, 5.5, 3.2)
        folders.append(make_run(root, "cbm", 0, {"loss.concepts": weight}, fake=fake))
    return folders


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of a whole experiment; read only."""
    return make_experiment(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Write one run into a folder of this test."""

    def write(preset: str = "cbm", seed: int = 0, **options: Any) -> Path:
        return make_run(tmp_path / "runs", preset, seed, **options)

    return write


@pytest.fixture
def fakes() -> dict[str, Fake]:
    """The made-up presets by name."""
    return FAKES
