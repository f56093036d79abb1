"""The shape of a configuration: every key there is, its type, its default and what it means.

Options of registered parts (a backbone, a term ...) are free mappings ``{name, **options}`` here; the registries check
them against the part's signature before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

from omegaconf import MISSING


@dataclass
class ModelConfig:
    """What the model is made of, beside its backbone.

    Attributes:
        preset: name of the YAML it came from.
        family: row of the family table.
        title: how reports call it.
        evidence: ``{name, **options}`` of the registry ``evidence``.
        readout: ``{name, **options}`` of the registry ``readouts``.
    """

    preset: str = MISSING
    family: str = MISSING
    title: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    readout: dict[str, Any] = field(default_factory=dict)


@dataclass
class AugmentConfig:
    """Training-time augmentation in two halves, each a list of ``{name, **options}``.

    Attributes:
        geometry: moves image, human map, masks and keypoints together; shared by all views.
        appearance: changes the pixels of each view on its own.
    """

    geometry: list[dict[str, Any]] = field(default_factory=list)
    appearance: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class DoConfig:
    """Interventions during training.

    Attributes:
        kind: "none"; "truth" sets every concept to its truth (the independent bottleneck); "random" sets some.
        probability: chance of each concept under "random".
        per: draw for each sample, or once for the whole batch (the released CEM's way).
    """

    kind: Literal["none", "truth", "random"] = "none"
    probability: float = 0.25
    per: Literal["sample", "batch"] = "sample"


@dataclass
class StageConfig:
    """One phase of training.

    Attributes:
        epochs: passes over the training split; 0 = events only.
        learn: learning-rate factor by part (backbone, evidence, readout, auxiliary names); parts not named are frozen:
            out of the optimiser, their normalisation in evaluation mode. Empty = all parts, each with factor 1.
        terms: names of the loss terms of this stage (keys of ``loss``).
        views: how many appearances of each image.
        do: interventions during training.
        select: validation metrics whose mean picks the best epoch; empty = the last epoch.
        patience: stop after so many epochs without improvement; 0 = never.
        lr: overrides ``train.lr`` in this stage.
        events: by label: ``{name, when: start|end|epoch|step, every: n, **options}``; label = name by default.
    """

    epochs: int = 0
    learn: dict[str, float] = field(default_factory=dict)
    terms: list[str] = field(default_factory=list)
    views: int = 1
    do: DoConfig = field(default_factory=DoConfig)
    select: list[str] = field(default_factory=list)
    patience: int = 0
    lr: Optional[float] = None  # noqa: UP045 - OmegaConf reads these at run time
    events: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """How training runs, whatever the model.

    Attributes:
        epochs: of the main stages; presets refer to it.
        batch_size: images per optimiser step over all processes, before accumulation.
        balance: how evenly the classes come: an epoch holds n_c^(1 - balance) images of a class in proportion; 0 = as
            the data are, 1 = every class equally often.
        optimiser: "adamw", "adam" or "sgd" (momentum 0.9).
        lr: highest learning rate.
        weight_decay: on weights of two or more dimensions (not on biases and normalisation).
        schedule: "cosine" to zero, or "constant"; both after the warm-up.
        warmup: share of a stage's steps over which the rate rises linearly from 0.
        clip: largest gradient norm; 0 = no clipping.
        accumulate: batches per optimiser step.
        precision: of Lightning ("32-true", "bf16-mixed", "16-mixed", "64-true").
        accelerator: of Lightning.
        devices: how many.
        strategy: of Lightning ("auto", "ddp", "ddp_spawn").
        workers: loader processes.
        threads: CPU threads of torch; 0 = leave as it is.
        save_seconds: least time between two saves inside an epoch; 0 saves after every step.
        tensorboard: also write TensorBoard event files.
        progress: progress bar.
        freeze: parts that no stage learns, whatever the recipe says (for instance [backbone]).
        features: 0 = the backbone runs on every batch. n > 0, for a frozen backbone: its features are computed once for
            n appearances of each training image (the image as it is, then n - 1 augmented ones) and kept in the cache;
            epoch e trains on appearance e mod n.
    """

    epochs: int = 10
    batch_size: int = 64
    balance: float = 0.0
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 3e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.1
    clip: float = 0.0
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    workers: int = 0
    threads: int = 0
    save_seconds: float = 60.0
    tensorboard: bool = False
    progress: bool = True
    freeze: list[str] = field(default_factory=list)
    features: int = 0


@dataclass
class EvaluationConfig:
    """What ``evaluate`` measures.

    Attributes:
        degradations: named test-time degradations measured beside the clean test split.
        policies: intervention policies of the curves.
        trials: random orders per curve.
        bootstrap: resamples of the intervals.
        batch_size: images per forward pass.
    """

    degradations: list[str] = field(default_factory=list)
    policies: list[str] = field(default_factory=lambda: ["random", "uncertainty"])
    trials: int = 10
    bootstrap: int = 1000
    batch_size: int = 256


@dataclass
class AbstainConfig:
    """When the trained model does not answer: how the threshold is chosen on the validation split.

    Attributes:
        score: what confidence is: "probability" of the class that is named, or its "margin" over the runner-up's.
        risk: largest error among the answered; with neither ``risk`` nor ``coverage`` it is half of the error over all,
            as far as that leaves four fifths of the images answered.
        coverage: least share of the images that is answered; in place of ``risk``.
        confidence: None = the error on the validation images is compared with ``risk``; 0.95 = the true error is to
            stay below it with 95 % confidence.
    """

    score: Literal["probability", "margin"] = "probability"
    risk: Optional[float] = None  # noqa: UP045
    coverage: Optional[float] = None  # noqa: UP045
    confidence: Optional[float] = None  # noqa: UP045


@dataclass
class CacheConfig:
    """Where decoded images are kept.

    Attributes:
        folder: None = $VITRARIUM_CACHE or ~/.cache/vitrarium.
        limit_gb: a data set larger than this (decoded) is decoded on demand.
    """

    folder: Optional[str] = None  # noqa: UP045
    limit_gb: float = 4.0


@dataclass
class Config:
    """A run.

    Attributes:
        model: evidence, readout and their names.
        backbone: ``{name, cut, weights, **options}``; ``{module, cut, options}`` is somebody's own network.
        data: ``{name, **options}`` of the registry ``data sets``.
        concept_costs: price of asking a person about a concept group, by its name; 1 for those not named.
        augment: training-time augmentation.
        cache: decoded images.
        loss: weight of each loss term by its label.
        terms: options of the terms by label, ``{name, **options}``; a label is its own name by default.
        recipe: the stages by name, in order.
        train: how training runs.
        evaluation: what is measured after it.
        abstain: when the model does not answer.
        init_from: folder of a run whose weights this one starts from (parts that match by name and shape).
        seed: of initial weights, data order and augmentation.
        sweep: keys that an experiment varies, with this run's values; for the report.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    backbone: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    concept_costs: dict[str, float] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    loss: dict[str, float] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, StageConfig] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    abstain: AbstainConfig = field(default_factory=AbstainConfig)
    init_from: Optional[str] = None  # noqa: UP045
    seed: int = 0
    sweep: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExperimentConfig:
    """Presets x seeds x sweeps, trained in order of dependency and compared.

    Attributes:
        title: heading of the report.
        about: one or two sentences for its reader.
        presets: names of model presets.
        seeds: for every preset.
        more_seeds: further seeds for some presets, by name.
        sweep: by preset: key -> values; each value is a run of its own with the first seed.
        overrides: ``key=value`` for all runs.
        own_overrides: further ones for some presets, by name.
        examples: how many test images to explain side by side.
        workers: runs trained at the same time, each on its share of the cores.
        baseline: the preset others are compared with.
    """

    title: str = MISSING
    about: str = ""
    presets: list[str] = MISSING
    seeds: list[int] = field(default_factory=lambda: [0])
    more_seeds: dict[str, list[int]] = field(default_factory=dict)
    sweep: dict[str, dict[str, list[Union[int, float, str]]]] = field(default_factory=dict)  # noqa: UP007
    overrides: list[str] = field(default_factory=list)
    own_overrides: dict[str, list[str]] = field(default_factory=dict)
    examples: int = 4
    workers: int = 2
    baseline: str = "blackbox"
