"""The gallery of a model or run: prototypes from their sources, any units from images of a data set."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.files import write_text
from vitrarium.data import build_source
from vitrarium.data.module import MEMORY, DataModule
from vitrarium.data.source import SPLITS, DataSource
from vitrarium.eval.gallery.exhibits import COLUMNS, Gallery
from vitrarium.eval.gallery.units import unit_gallery
from vitrarium.eval.prototypes.gallery import build_gallery
from vitrarium.measuring import refuse_other_data
from vitrarium.models.classifier import TransparentClassifier
from vitrarium.models.folder import load_model
from vitrarium.runs import Run, is_run

AT_ONCE = 64
"""Images that go through a model together where no run says otherwise."""


def gallery_of(
    given: TransparentClassifier | Run | str | Path,
    split: str | None = None,
    data: DataSource | Mapping[str, Any] | str | None = None,
    root: str | Path | None = None,
    *,
    top: int = 8,
    only: Sequence[str] = (),
    limit: int | None = None,
    where: Literal["contour", "heat", "box"] = "contour",
) -> Gallery:
    """See :func:`vitrarium.gallery`."""
    run = _run_of(given, root)
    model = given if isinstance(given, TransparentClassifier) else run.model if run else load_model(Path(str(given)))
    if split is None and data is None and "prototypes" in model.evidence.gives and not only:
        return build_gallery(model)
    split = split or "train"
    if split not in SPLITS:
        raise UserError(f"there is no split '{split}'", closest(split, SPLITS))
    if data is None and run is None:
        raise UserError(
            f"{model.evidence.units.kinds} are shown by images, and the model alone has none",
            "give the run folder, or the data set: data='flowers'",
        )
    module = run.data(run.config["evaluation"]["batch_size"]) if run is not None and data is None else _module(data)
    refuse_other_data(model, module.source)
    named = f"{run.config['model']['title'] or run.name} on " if run is not None else ""
    return unit_gallery(
        model, module.loader(split, degrade="clean"), module.split(split), split,
        top=top, only=only, limit=limit, where=where,
        title=f"{named}{module.source.name}", credit=module.source.pictures,
    )  # fmt: skip


def write_gallery(
    gallery: Gallery,
    folder: str | Path,
    table: str = "images.csv",
    columns: Sequence[str] = COLUMNS,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """``gallery.html``, ``gallery.png`` and a table beside them; each file appears whole.

    Args:
        gallery: the pictures.
        folder: where they go.
        table: name of the table.
        columns: its columns.
        rows: its rows; None = the images that the gallery shows.

    Raises:
        UserError: a folder that cannot be written.
    """
    folder, text = Path(folder), io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(gallery.rows() if rows is None else rows)
    try:
        write_text(folder / table, text.getvalue())
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error}", "choose another folder with -o") from error
    for name in ("gallery.html", "gallery.png"):
        gallery.save(folder / name)
    return folder


def _run_of(given: TransparentClassifier | Run | str | Path, root: str | Path | None) -> Run | None:
    """The run, if it is one; a model or model folder has none."""
    if isinstance(given, Run):
        return (given if root is None else Run(given.folder, given.backbone, root)).require_finished()
    if isinstance(given, TransparentClassifier) or not is_run(given):
        return None
    return Run(given, root=root).require_finished()


def _module(data: DataSource | Mapping[str, Any] | str | None) -> DataModule:
    """Loaders of a data set that somebody names; what is decoded for one gallery is not kept."""
    assert data is not None
    source = data if isinstance(data, DataSource) else build_source(data)
    return DataModule(source, batch_size=AT_ONCE, cache_folder=MEMORY)
