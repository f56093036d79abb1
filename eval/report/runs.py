"""Run folders as the comparison sees them: settings, environment, results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vitrarium.configs.compose import backbone_title
from vitrarium.configs.errors import UserError
from vitrarium.eval.records import Record, read_records

Point = TypeVar("Point")


@dataclass(frozen=True)
class CurvePoint:
    """One budget of one intervention curve of one run.

    Attributes:
        scope: "all", or the name of a degradation.
        policy: who chooses what is asked.
        budget: concept groups corrected per image.
        accuracy: mean over trials.
        low: lower end of the 95 % interval, NaN if there is none.
        high: upper end.
    """

    scope: str
    policy: str
    budget: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class RiskPoint:
    """One point of one risk-coverage curve of one run.

    Attributes:
        scope: "all", or the name of a degradation.
        coverage: share of the images that was to be answered.
        risk: error among the answered.
        low: lower end of the 95 % interval, NaN if there is none.
        high: upper end.
    """

    scope: str
    coverage: float
    risk: float
    low: float
    high: float


@dataclass
class RunResults:
    """A finished and evaluated run.

    Attributes:
        folder: where it lies.
        config: its composed configuration.
        progress: what ``progress.json`` holds.
        environment: versions, threads, hardware.
        records: all its numbers.
        curves: its intervention curves, point by point.
        model: ``model/config.json``: class names, unit table.
        risks: its risk-coverage curves, point by point; none in a run that was evaluated before there were any.
    """

    folder: Path
    config: dict[str, Any]
    progress: dict[str, Any]
    environment: dict[str, Any]
    records: list[Record]
    curves: list[CurvePoint] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    risks: list[RiskPoint] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name

    @property
    def preset(self) -> str:
        """Name of its preset."""
        return str(self.config["model"]["preset"])

    @property
    def family(self) -> str:
        """Row of the family table."""
        return str(self.config["model"].get("family", ""))

    @property
    def title(self) -> str:
        """How reports call its preset."""
        return str(self.config["model"].get("title") or self.preset)

    @property
    def backbone(self) -> str:
        """Name of its backbone."""
        return backbone_title(self.config["backbone"])

    @property
    def data(self) -> str:
        """Registered name of its data set."""
        return str(self.config["data"]["name"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    @property
    def sweep(self) -> dict[str, Any]:
        """Swept key to value; empty for a run that is no part of a sweep."""
        return dict(self.config.get("sweep") or {})

    @property
    def minutes(self) -> float:
        """Training time in minutes."""
        return float(self.progress["seconds"]) / 60

    @property
    def split(self) -> str:
        """The split its numbers come from."""
        return self.records[0].split

    def setting(self, key: str) -> Any:
        """The value at a dotted key of the configuration, or None where there is none."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value


def read_run(folder: str | Path) -> RunResults:
    """Read a run folder.

    Raises:
        UserError: not a run folder, an unfinished run, a run that was not evaluated, damaged files.
    """
    folder = Path(folder)
    _refuse_strangers(folder)
    progress = _json(folder / "progress.json", folder)
    if not progress.get("finished"):
        raise UserError(
            f"the run '{folder}' has not finished training",
            "go on with it: vitrarium train --resume with its configuration",
        )
    results = folder / "evaluation" / "results.csv"
    if not results.is_file():
        raise UserError(f"the run '{folder}' has not been evaluated", f"vitrarium evaluate {folder}")
    run = RunResults(
        folder=folder,
        config=_config(folder / "config.yaml"),
        progress=progress,
        environment=_json(folder / "environment.json", folder, needed=False),
        records=_records(results),
        curves=_curves(folder / "evaluation" / "curves.csv"),
        model=_json(folder / "model" / "config.json", folder, needed=False),
        risks=_risks(folder / "evaluation" / "risk_coverage.csv"),
    )
    if not isinstance(progress.get("seconds"), int | float):
        raise UserError(f"'{folder / 'progress.json'}' does not say how long training took", "train the run again")
    return run


def _refuse_strangers(folder: Path) -> None:
    """Refuse what is no run folder, and name the runs inside where there are some."""
    if not folder.is_dir():
        problem = "is a file, not a run folder" if folder.exists() else "does not exist"
        raise UserError(f"'{folder}' {problem}", "give folders that vitrarium train has made, such as runs/cbm")
    if not (folder / "config.yaml").is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/config.yaml"))
        if inside:
            some = ", ".join(inside[:4]) + (" ..." if len(inside) > 4 else "")
            raise UserError(f"'{folder}' holds {len(inside)} runs but is none itself", f"give them one by one: {some}")
        raise UserError(f"'{folder}' is no run folder (it has no config.yaml)", "give a folder made by vitrarium train")


def _config(path: Path) -> dict[str, Any]:
    """The composed configuration, with what a comparison needs."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"'{path}' cannot be read ({error})", "the run folder is damaged: train it again") from error
    for section, key in (("model", "preset"), ("backbone", "name"), ("data", "name")):
        part = config.get(section) if isinstance(config, dict) else None
        if not isinstance(part, dict) or key not in part:
            raise UserError(f"'{path}' does not say {section}.{key}", "the run folder is damaged: train it again")
    if not isinstance(config.get("seed"), int):
        raise UserError(f"'{path}' does not say the seed", "the run folder is damaged: train it again")
    return dict(config)


def _json(path: Path, run: Path, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if not needed:
            return {}
        raise UserError(f"the run '{run}' has no {path.name}", "it never began to train: train it again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error})", "the run folder is damaged: train it again") from error
    return data if isinstance(data, dict) else {}


def _records(path: Path) -> list[Record]:
    try:
        records = read_records(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = f"vitrarium evaluate {path.parent.parent}"
        raise UserError(f"'{path}' is no table of results ({error!r})", cure) from error
    if not records:
        raise UserError(f"'{path}' holds no results", f"vitrarium evaluate {path.parent.parent}")
    return records


def _curves(path: Path) -> list[CurvePoint]:
    """The intervention curves of the run; none where it has no concepts to correct."""
    return _points(path, "intervention curves", lambda row: CurvePoint(
        row["scope"], row["policy"], int(row["budget"]), *_numbers(row, "accuracy", "low", "high"),
    ))  # fmt: skip


def _risks(path: Path) -> list[RiskPoint]:
    """The risk-coverage curves of the run; none where it was evaluated before there were any."""
    return _points(
        path,
        "risk-coverage curves",
        lambda row: RiskPoint(row["scope"], *_numbers(row, "coverage", "risk", "low", "high")),
    )


def _numbers(row: Mapping[str, str], *columns: str) -> list[float]:
    return [float(row[column] or "nan") for column in columns]


def _points(path: Path, what: str, point: Callable[[dict[str, str]], Point]) -> list[Point]:
    """The points of a table of curves; none where there is no such table."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [point(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = f"vitrarium evaluate {path.parent.parent}"
        raise UserError(f"'{path}' is no table of {what} ({error!r})", cure) from error
