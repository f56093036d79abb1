"""Where the numbers of training go."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vitrarium.configs.files import whole_file

COLUMNS = ("stage", "epoch", "step", "name", "value")


class TidyCSV(Logger):
    """Appends to ``metrics.csv``: one row a number (stage, epoch, step, name, value).

    Lightning's own CSV logger deletes the file that is there; this one goes on where it stopped, and forgets what was
    written after the checkpoint that training resumes from.

    Args:
        path: the file.
        stage: name of the stage.
    """

    def __init__(self, path: Path, stage: str) -> None:
        super().__init__()
        self.path, self.stage = path, stage

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of one moment."""
        epoch = int(metrics.get("epoch", -1))
        rows = [(self.stage, epoch, step, name, repr(float(v))) for name, v in metrics.items() if name != "epoch"]
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerows(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's configuration is in ``config.yaml``; nothing is written here."""


def rewind(path: Path, stage: str, earlier: list[str], epoch: int) -> None:
    """Keep of ``metrics.csv`` what was logged in ``earlier`` stages and before ``epoch`` of ``stage``."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if _before(r, stage, earlier, epoch)]
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _before(row: dict[str, str], stage: str, earlier: list[str], epoch: int) -> bool:
    try:
        return row["stage"] in earlier or (row["stage"] == stage and int(row["epoch"]) < epoch)
    except (KeyError, TypeError, ValueError):
        return False  # a row that was being written when the process was killed


def build_loggers(folder: Path, stage: str, tensorboard: bool) -> list[Logger]:
    """CSV always, TensorBoard event files if asked for."""
    loggers: list[Logger] = [TidyCSV(folder / "metrics.csv", stage)]
    if tensorboard:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=stage))
    return loggers
