"""Which split each image of a folder belongs to: as folders say, as a column says, or drawn."""

from __future__ import annotations

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.sets.folder_layout import Layout
from vitrarium.data.source import SPLITS
from vitrarium.data.splitting import draw_splits


def assign_splits(
    layout: Layout, column: list[str] | None, way: str, fractions: tuple[float, float], seed: int
) -> tuple[np.ndarray, str]:
    """The split of every image.

    Args:
        layout: what lies in the folder.
        column: the column ``split`` of ``concepts.csv``, or None.
        way: "folders", "column", "random", or "auto" for the first of them that is there.
        fractions: share of val and of test, for those that neither folders nor column name.
        seed: of the draw.

    Returns:
        (N,) array of split names, and a note on how they came about.
    """
    offered = {"folders": layout.splits, "column": column, "random": [""] * len(layout.files)}
    if way == "auto":
        way = next(name for name, splits in offered.items() if splits is not None)
    if way not in offered:
        raise UserError(f"unknown way to split '{way}'", closest(way, ["auto", *offered]))
    chosen = offered[way]
    if chosen is None:
        missing = "train/, val/ and test/" if way == "folders" else "a column 'split' in concepts.csv"
        raise UserError(f"split={way} needs {missing}", "add it, or set split=random")
    _refuse_contradiction(layout, column, way)
    splits = np.array(["train" if way == "random" else split for split in chosen], dtype="<U5")
    absent = {name: f for name, f in zip(SPLITS[1:], fractions, strict=True) if name not in splits}
    if absent:
        draw_splits(splits, layout.labels, absent, seed)
    _check_splits(splits, layout)
    notes = (
        [] if way == "random" else ["splits as given by " + {"folders": "its folders", "column": "concepts.csv"}[way]]
    )
    if absent:
        drawn = " and ".join(f"{share:.0%} of each class for {name}" for name, share in absent.items())
        notes.append(f"{drawn} drawn from the rest with split_seed={seed}")
    return splits, "; ".join(notes)


def _refuse_contradiction(layout: Layout, column: list[str] | None, way: str) -> None:
    """Folders and a column that both name splits must agree, unless the user chose one of them."""
    if way != "folders" or layout.splits is None or column is None or layout.splits == column:
        return
    first = next(i for i, (a, b) in enumerate(zip(layout.splits, column, strict=True)) if a != b)
    raise UserError(
        f"'{layout.files[first]}' lies in {layout.splits[first]}, but concepts.csv puts it into {column[first]}",
        "move the image or mend the cell, or set split=column",
    )


def _check_splits(splits: np.ndarray, layout: Layout) -> None:
    for name in SPLITS:
        if not (splits == name).any():
            raise UserError(
                f"the split {name} got none of the {len(splits)} images", "give more images, or a larger fraction"
            )
    for c, name in enumerate(layout.class_names):
        if not ((layout.labels == c) & (splits == "train")).any():
            raise UserError(f"the class '{name}' has no training image", "put at least one into train")
