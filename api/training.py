"""From a settled configuration to a finished run folder."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from vitrarium.abstaining import choose_threshold
from vitrarium.card import write_card
from vitrarium.configs.errors import UserError
from vitrarium.configs.files import write_text
from vitrarium.data import cache
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.data.source import DataSource
from vitrarium.environment import describe_environment
from vitrarium.models.abstention import AbstentionRule
from vitrarium.models.assembly import build
from vitrarium.models.backbones.base import Backbone
from vitrarium.models.backbones.weights import WeightReport
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.folder import WEIGHTS, model_folder, read_weights, save_model, weights_of
from vitrarium.runs import Run, build_data, build_source_of, differences, read_config, read_progress, tell
from vitrarium.train.fit import Recipe, first_process, write_json

logger = logging.getLogger(__name__)


def train_run(config: dict[str, Any], folder: Path, resume: bool, backbone: Backbone | None = None) -> Run:
    """Train what ``config`` describes into ``folder``, with ``backbone`` if one was handed over; as ``fit`` says."""
    begun = time.time()
    if _already_finished(config, folder, resume):
        return Run(folder, backbone)
    if config["train"]["threads"]:
        torch.set_num_threads(config["train"]["threads"])
    rule = AbstentionRule(**config["abstain"])
    source = build_source_of(config)
    model = build_model(config, source, backbone)
    reports = weight_reports(model)
    data = build_data(config, source)
    # Everything that can be refused is refused before the folder exists: damaged images too, which are decoded here.
    recipe = Recipe(model, source, data, config, folder)
    recipe.prepare(tell("features of"))
    with contextlib.ExitStack() as stack:
        if first_process():
            stack.enter_context(locked(folder))
            _prepare(config, folder, reports)
        result = recipe.run(resume)
    if first_process():
        model.abstention = choose_threshold(model, data, rule, config["evaluation"]["batch_size"])
        named = {key: config["model"][key] for key in ("preset", "family", "title")}
        facts = {"data": source.name, "fingerprint": source.fingerprint, "seed": config["seed"], **named}
        packages = describe_environment()["packages"]
        card = write_card(config, source, model, result.seconds, packages, reports)
        save_model(model, folder / "model", card, facts)
        write_json(
            folder / "progress.json",
            {
                "finished": True,
                "stages": list(config["recipe"]),
                "seconds": result.seconds,
                "images_seen": result.images,
                "began": begun,
            },
        )
    return Run(folder, backbone)


def build_model(
    config: Mapping[str, Any], source: DataSource, backbone: Backbone | None = None
) -> TransparentClassifier:
    """The untrained model of a configuration, or one that starts from another run's weights.

    Args:
        config: the composed configuration.
        source: the data set.
        backbone: one that was handed over as an object, in place of the configuration's.
    """
    spec = {"backbone": backbone or config["backbone"], **{p: config["model"][p] for p in ("evidence", "readout")}}
    model = build(spec, source.class_names, source.concepts, Preprocessing(source.size), seed=config["seed"])
    if config["init_from"]:
        start_from(model, Path(config["init_from"]))
    return model


def start_from(model: TransparentClassifier, folder: Path) -> WeightReport:
    """Copy all weights of another run that match by name and shape; the report stays with the model.

    Where the readout is the rest of the network, its layers are also looked for in the other run's backbone.

    Raises:
        UserError: nothing of the backbone matches.
    """
    theirs, ours = _as_ours(read_weights(model_folder(folder) / WEIGHTS), model), model.state_dict()
    taken = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape}
    if not any(name.startswith("backbone.") for name in taken):
        raise UserError(
            f"init_from: no backbone weight of '{folder}' fits this model",
            "start from a run with the same backbone and cut",
        )
    model.load_state_dict(taken, strict=False)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    model.start_report = WeightReport(
        source=str(folder),
        matched=tuple(taken),
        missing=tuple(name for name in weights_of(model) if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in ours),
        mismatched=tuple(name for name in ours if name in theirs and name not in taken),
        fraction=sum(size for name, size in sizes.items() if name in taken) / sum(sizes.values()),
    )
    logger.log(logging.INFO if model.start_report.complete else logging.WARNING, "%s", model.start_report)
    return model.start_report


def _as_ours(theirs: dict[str, torch.Tensor], model: TransparentClassifier) -> dict[str, torch.Tensor]:
    """The weights of another model; those of its backbone that are layers of our readout have their names there."""
    moved = dict(theirs)
    for ours, name in model.readout.names_elsewhere().items():
        if ours not in moved and name in moved:
            moved[ours] = moved.pop(name)
    return moved


def weight_reports(model: TransparentClassifier) -> dict[str, dict[str, Any]]:
    """What became of weights from elsewhere, by the key of the configuration that named them."""
    reports = {"backbone.weights": model.backbone.weight_report, "init_from": model.start_report}
    return {key: report.to_dict() for key, report in reports.items() if report is not None}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder; the lock goes with the process, however it ends.

    Raises:
        UserError: another process is training there.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(cache.locked(_create(folder) / "training.lock", wait=False))
        except cache.Busy as error:
            raise UserError(
                f"another process is training in '{folder}'", "wait for it, stop it, or choose another folder with -o"
            ) from error
        yield


def _already_finished(config: Mapping[str, Any], folder: Path, resume: bool) -> bool:
    """Whether the folder holds this run, finished; refuses folders that must not be touched."""
    if not folder.is_dir() or all(path.suffix in (".lock", ".part") for path in folder.iterdir()):
        return False
    if not first_process():
        return bool(read_progress(folder).get("finished"))
    if not resume:
        raise UserError(
            f"'{folder}' exists", "add --resume to go on with it, or choose another folder with -o; nothing was changed"
        )
    changed = differences(read_config(folder), config)
    if changed:
        raise UserError(
            f"the run in '{folder}' has another configuration ({', '.join(changed[:5])})",
            "resume it with the configuration that began it, or choose another folder with -o",
        )
    return bool(read_progress(folder).get("finished"))


def _create(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath("training.lock").touch()
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error}", "choose a folder you may write to with -o") from error
    return folder


def _prepare(config: Mapping[str, Any], folder: Path, reports: Mapping[str, Any]) -> None:
    """Write what is known before training."""
    try:
        write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        write_json(folder / "environment.json", describe_environment())
        if reports:
            write_json(folder / "weights.json", dict(reports))
        write_json(folder / "progress.json", {"finished": False, "stages": list(config["recipe"])})
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error}", "choose a folder you may write to with -o") from error
