"""Run folders: one per trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitrarium.configs.compose import compose, to_plain
from vitrarium.configs.errors import UserError

if TYPE_CHECKING:
    from vitrarium.data.module import DataModule
    from vitrarium.data.source import DataSource
    from vitrarium.models.classifier import TransparentClassifier

# What may differ between two sessions of one run without changing what it is.
NOT_IDENTITY = {
    ("train", key)
    for key in ("workers", "devices", "accelerator", "strategy", "threads", "save_seconds", "tensorboard", "progress")
}
NOT_IDENTITY_GROUPS = {"cache", "evaluation", "sweep"}


class Run:
    """A run folder: configuration, model, progress, results.

    Args:
        folder: ``runs/<name>``.

    Attributes:
        folder: where it lies.
        config: the composed configuration, as plain containers.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self._source: DataSource | None = None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether training is over and the model is written."""
        return bool(read_progress(self.folder).get("finished"))

    @property
    def model(self) -> TransparentClassifier:
        """The trained model, loaded afresh."""
        from vitrarium.models.folder import load_model

        return load_model(self.folder)

    @property
    def source(self) -> DataSource:
        """The data set it was trained on."""
        if self._source is None:
            self._source = build_source_of(self.config)
        return self._source

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
) -> Run:
    """Train a model and leave it in a run folder.

    Args:
        overrides: ``group=option`` and ``key=value``, for instance ``"model=cbm", "train.epochs=5"``.
        out: the run folder; default ``runs/<preset>-<data>-<seed>``.
        config: a YAML file with any of the keys.
        resume: go on with the run in the folder if there is one; a finished run is returned as it is.
        folders: folders with further configuration groups.

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
    from vitrarium.training import train_run

    return train_run(settled, folder, resume)


def default_folder(config: Mapping[str, Any]) -> Path:
    """Where a run goes when nobody says."""
    return Path("runs") / f"{config['model']['preset']}-{config['data']['name']}-{config['seed']}"


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run folder."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{folder}' is no run folder: it has no config.yaml", "runs lie under runs/<name>")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"'{path}' cannot be read: {' '.join(str(error).split())}", "mend it or train again") from error
    if not isinstance(loaded, dict) or not {"model", "data", "seed"} <= loaded.keys():
        raise UserError(f"'{path}' is not the configuration of a run", "give a folder that vitrarium train has written")
    return loaded


def read_progress(folder: Path) -> dict[str, Any]:
    """``progress.json`` of a run folder, or nothing."""
    try:
        return dict(json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8")))
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
    """The data set of a configuration."""
    from vitrarium.data import build_source

    return build_source(config["data"])


def build_data(config: Mapping[str, Any], source: DataSource, batch_size: int | None = None) -> DataModule:
    """Loaders of a data set as a configuration wants them."""
    from vitrarium.data.module import DataModule

    train, cache = config["train"], config["cache"]
    return DataModule(
        source,
        batch_size=batch_size or train["batch_size"],
        workers=train["workers"],
        augment=config["augment"],
        seed=config["seed"],
        cache_folder=cache["folder"],
        cache_limit_gb=cache["limit_gb"],
        progress=_tell if sys.stderr.isatty() else None,
    )


def _tell(split: str, done: int, count: int) -> None:
    """One line that counts decoded images while a cache is built."""
    sys.stderr.write(f"\rdecoding {split} {done}/{count}" + ("\n" if done == count else ""))
    sys.stderr.flush()
