"""Run folders: one per trained model."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitrarium.configs.compose import completed, compose, to_plain
from vitrarium.configs.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from vitrarium.data.module import DataModule
    from vitrarium.data.source import DataSource
    from vitrarium.models.backbones.base import Backbone
    from vitrarium.models.classifier import TransparentClassifier

logger = logging.getLogger(__name__)

# What may differ between two sessions of one run without changing what it is.
NOT_IDENTITY = {
    ("train", key)
    for key in ("workers", "devices", "accelerator", "strategy", "threads", "save_seconds", "tensorboard", "progress")
}
NOT_IDENTITY_GROUPS = {"cache", "evaluation", "abstain", "sweep"}


class Run:
    """A run folder: configuration, model, progress, results.

    Args:
        folder: ``runs/<name>``.
        backbone: for a run whose backbone was handed over as an object: such a network again.
        root: where its data lie now, if not where they were when it was trained.

    Attributes:
        folder: where it lies.
        config: the composed configuration, as plain containers.
    """

    def __init__(self, folder: str | Path, backbone: nn.Module | None = None, root: str | Path | None = None) -> None:
        self.folder, self.backbone = Path(folder), backbone
        self.config = read_config(self.folder)
        if root is not None:
            self.config["data"]["root"] = str(root)
        self._source: DataSource | None = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether training is over and the model is written."""
        return bool(read_progress(self.folder).get("finished"))

    def require_finished(self) -> Run:
        """The run itself; refuses one whose training goes on, which may hold the model of an earlier one."""
        if not self.finished:
            raise UserError(f"the run '{self.folder}' is not finished", f"vitrarium train --resume -o {self.folder}")
        return self

    @property
    def model(self) -> TransparentClassifier:
        """The trained model, loaded afresh."""
        from vitrarium.models.folder import load_model

        return load_model(self.folder, backbone=self.backbone)

    @property
    def source(self) -> DataSource:
        """The data set it was trained on; one that has changed since then says so in its notes.

        Raises:
            UserError: data that are no longer where they were.
        """
        if self._source is None:
            root = self.config["data"].get("root")
            if root and not Path(root).expanduser().exists():
                raise UserError(
                    f"the data of '{self.folder}' do not lie in '{root}'",
                    f"give their place (root=..., --root), or write it in {self.folder / 'config.yaml'} (data: root)",
                )
            self._source = build_source_of(self.config)
            changed = self.other_data()
            if changed is not None:
                self._source.notes.append(changed)
                logger.warning("%s: %s", self.folder, changed)
        return self._source

    def other_data(self) -> str | None:
        """In words that its data are not those that the model was trained on; None if they are, or nobody knows."""
        from vitrarium.models.folder import read_facts

        before = read_facts(self.folder).get("fingerprint") if self.finished else None
        if before in (None, self.source.fingerprint):
            return None
        return "the data are not those that the model was trained on: files, labels or options have changed since"

    def data(self, batch_size: int | None = None) -> DataModule:
        """Loaders of its data set."""
        return build_data(self.config, self.source, batch_size)

    def identity(self) -> dict[str, Any]:
        """What names its rows in tables of results."""
        return {
            "run": self.name,
            "preset": self.config["model"]["preset"],
            "family": self.config["model"]["family"],
            "data": self.config["data"]["name"],
            "seed": self.config["seed"],
        }

    def __repr__(self) -> str:
        return f"Run('{self.folder}')"


def fit(
    *overrides: str,
    out: str | Path | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    folders: Sequence[str | Path] = (),
    backbone: nn.Module | None = None,
) -> Run:
    """Train a model and leave it in a run folder.

    Args:
        overrides: ``group=option`` and ``key=value``, for instance ``"model=cbm", "train.epochs=5"``.
        out: the run folder; default ``runs/<preset>-<data>-<seed>``.
        config: a YAML file with any of the keys.
        resume: go on with the run in the folder if there is one; a finished run is returned as it is.
        folders: folders with further configuration groups.
        backbone: a network, or what :func:`vitrarium.backbone` gives, in place of the configuration's. A copy is
            trained: ``run.model.backbone`` is the trained one.

    Returns:
        The finished run.

    Raises:
        UserError: anything that can be known to fail, before training; an existing folder without ``resume``.
        Interrupted: stopped by Ctrl-C; call again with ``resume=True``.
    """
    settled = to_plain(compose(overrides, config, folders))
    folder = Path(out) if out is not None else default_folder(settled)
    if resume and not overrides and config is None and (folder / "config.yaml").is_file():
        settled = read_config(folder)
    if settled["data"].get("root"):
        # The run must find its data from wherever it is evaluated.
        settled["data"]["root"] = str(Path(settled["data"]["root"]).expanduser().resolve())
    if backbone is not None:
        backbone = _handed_over(backbone, overrides)
        settled["backbone"] = dict(backbone.origin)
    from vitrarium.training import train_run

    return train_run(settled, folder, resume, backbone)


def _handed_over(given: nn.Module, overrides: Sequence[str]) -> Backbone:
    """The backbone that a user hands over; refuses that the configuration is told another."""
    told = [override for override in overrides if re.match(r"\+?backbone[.=]", override.strip())]
    if told:
        raise UserError(
            f"a backbone is handed over, and '{told[0]}' names one too",
            "give one of the two; vitrarium.backbone(network, cut=..., ...) takes the options",
        )
    from vitrarium.models.backbones.own_module import taken

    return taken(given)


def default_folder(config: Mapping[str, Any]) -> Path:
    """Where a run goes when nobody says."""
    return Path("runs") / f"{config['model']['preset']}-{config['data']['name']}-{config['seed']}"


def is_run(path: str | Path) -> bool:
    """Whether a run lies there, finished or not."""
    return (Path(path) / "config.yaml").is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run folder; what it is too old to know is at its default."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{folder}' is no run folder: it has no config.yaml", "runs lie under runs/<name>")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"'{path}' cannot be read: {' '.join(str(error).split())}", "mend it or train again") from error
    if not isinstance(loaded, dict) or not {"model", "data", "seed"} <= loaded.keys():
        raise UserError(f"'{path}' is not the configuration of a run", "give a folder that vitrarium train has written")
    return completed(loaded)


def read_progress(folder: Path) -> dict[str, Any]:
    """``progress.json`` of a run folder, or nothing."""
    return _read_json(folder, "progress.json")


def read_weight_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of weights from elsewhere, by the key that named them; empty for a run that started from none."""
    return _read_json(folder, "weights.json")


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run was made with, or nothing."""
    return _read_json(folder, "environment.json")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((Path(folder) / name).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which two configurations describe different runs."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    return sorted(
        ".".join(key)
        for key in flat_old.keys() | flat_new.keys()
        if flat_old.get(key) != flat_new.get(key) and key[0] not in NOT_IDENTITY_GROUPS and key[:2] not in NOT_IDENTITY
    )


def _flatten(config: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(config, Mapping) and config:
        return {k: v for key, value in config.items() for k, v in _flatten(value, (*prefix, str(key))).items()}
    return {prefix: config}


def build_source_of(config: Mapping[str, Any]) -> DataSource:
    """The data set of a configuration, with the prices of its concepts."""
    from vitrarium.data import build_source

    source, costs = build_source(config["data"]), config["concept_costs"]
    if costs:
        if source.concepts is None:
            raise UserError(f"concept_costs are given, and '{source.name}' has no concepts", "set concept_costs={}")
        source.concepts = source.concepts.priced(costs)
    return source


def build_data(config: Mapping[str, Any], source: DataSource, batch_size: int | None = None) -> DataModule:
    """Loaders of a data set as a configuration wants them."""
    from vitrarium.data.module import DataModule

    train, cache = config["train"], config["cache"]
    return DataModule(
        source,
        batch_size=batch_size or train["batch_size"],
        balance=train["balance"],
        workers=train["workers"],
        augment=config["augment"],
        seed=config["seed"],
        cache_folder=cache["folder"],
        cache_limit_gb=cache["limit_gb"],
        progress=tell("decoding"),
    )


def tell(what: str) -> Callable[[str, int, int], None] | None:
    """A function that counts images in one line while a cache is built; None where nobody looks."""
    if not sys.stderr.isatty():
        return None

    def count_images(split: str, done: int, count: int) -> None:
        sys.stderr.write(f"\r{what} {split} {done}/{count}" + ("\n" if done == count else ""))
        sys.stderr.flush()

    return count_images
