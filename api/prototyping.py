"""Prototypes of a trained model: the gallery, and the health report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrarium.eval.gallery.exhibits import Gallery
from vitrarium.eval.prototypes.gallery import build_gallery
from vitrarium.measuring import refuse_other_data
from vitrarium.models.prototypes.health import Finding, Health, Limits, check_health
from vitrarium.runs import Run
from vitrarium.showing import write_gallery

COLUMNS = ("unit", "kind", "severity", "message", "command")


@dataclass
class PrototypeReport:
    """The health of a run's prototypes, and its gallery.

    Attributes:
        run: what was looked at.
        health: findings, measures and notes.
        gallery: all living prototypes, with their findings.
    """

    run: Run
    health: Health
    gallery: Gallery

    def rows(self) -> list[dict[str, str]]:
        """A row per finding, with the command that may cure it."""
        return [
            {**{k: getattr(f, k) for k in COLUMNS[:-1]}, "command": command_of(self.run, f)}
            for f in self.health.findings
        ]

    def write(self, folder: str | Path) -> Path:
        """``gallery.html``, ``gallery.png`` and ``health.csv``; each file appears whole.

        Raises:
            UserError: a folder that cannot be written.
        """
        return write_gallery(self.gallery, folder, "health.csv", COLUMNS, self.rows())


def command_of(run: Run, finding: Finding) -> str:
    """What to type about a finding."""
    if finding.edit:
        return f"vitrarium edit {run.folder} {finding.edit}"
    return "add the event 'project' to the end of the recipe and train again" if finding.kind == "stale" else ""


def prototype_report(run: Run, limits: Limits | None = None) -> PrototypeReport:
    """Look at every living prototype: one pass over the training images, two over the validation images.

    Raises:
        UserError: a model without prototypes, data that are not there, limits out of range.
    """
    model, data = run.model, run.data(run.config["evaluation"]["batch_size"])
    refuse_other_data(model, run.source)
    health = check_health(model, data.loader("train"), data.loader("val"), limits, seed=run.config["seed"])
    gallery = build_gallery(
        model, f"{run.config['model']['title'] or run.name} on {run.source.name}", run.source.pictures, health.findings
    )
    return PrototypeReport(run, health, gallery)
