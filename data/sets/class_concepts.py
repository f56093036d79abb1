"""``class_concepts.csv``: what is true of every image of a class, a row for each class."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concept_columns import ConceptColumns
from vitrarium.data.concepts import ConceptGroup, ConceptSet
from vitrarium.data.naming import Names
from vitrarium.data.tables import open_table

CLASS_CONCEPTS = "class_concepts.csv"


class ClassConcepts(NamedTuple):
    """What a table of classes says.

    Attributes:
        concepts: the concept set, ``per_class``; None without a column for a concept.
        truth: (C, K) float32 in [0, 1], NaN where nobody knows, or None.
        titles: for each class the cell of the column ``class_name``; None without that column.
        notes: what a reader of numbers must know.
    """

    concepts: ConceptSet | None
    truth: np.ndarray | None
    titles: tuple[str, ...] | None
    notes: tuple[str, ...]


def read_class_concepts(
    path: Path,
    class_names: Sequence[str],
    key: str = "class",
    categorical: Collection[str] = (),
    ignore: Collection[str] = (),
) -> ClassConcepts:
    """Read a table with a row for each class; its cells are read like those of ``concepts.csv``.

    Args:
        path: of the table.
        class_names: what the C classes are called in the column ``key``.
        key: the column that names the class; it and ``class_name`` are no concepts.
        categorical: columns whose numbers are names of values.
        ignore: columns that are no concepts.

    Raises:
        UserError: two rows for a class, a class without a row, what :class:`ConceptColumns` refuses.
    """
    table = open_table(path)
    table.require(key)
    no_concepts = {key, "class_name", *ignore}
    columns = ConceptColumns(path, [c for c in table.columns if c not in no_concepts], categorical)
    names, lines = Names(class_names), np.zeros(len(class_names), np.int64)
    places, titles, others = array("q"), [""] * len(class_names), []
    for row in table:
        c = names.find(row[key])
        if c is None:
            others.append((row.line, row[key]))
            continue
        if lines[c]:
            raise UserError(
                f"{table.where(row)}: the class '{row[key]}' has a row already, in line {lines[c]}",
                "keep one of the two",
            )
        lines[c] = row.line
        places.append(c)
        titles[c] = row.cells.get("class_name", "") or class_names[c]
        columns.add(row)
    _refuse_missing(path, class_names, lines, others)
    notes = []
    if others:
        named = ", ".join(f"'{name}'" for _, name in others[:3]) + (" ..." if len(others) > 3 else "")
        notes.append(f"{len(others)} rows of {path.name} are about classes without images: {named}")
    given = tuple(titles) if "class_name" in table.columns else None
    if not columns:
        return ClassConcepts(None, None, given, tuple(notes))
    concepts, truth, more = columns.finish(np.array(places), len(class_names), per_class=True)
    return ClassConcepts(concepts, truth, given, (*notes, *more))


def _refuse_missing(path: Path, class_names: Sequence[str], lines: np.ndarray, others: list[tuple[int, str]]) -> None:
    """Each class needs a row; one that names no class may be meant."""
    missing = [name for name, line in zip(class_names, lines, strict=True) if not line]
    if not missing:
        return
    cure = "add it; leave cells empty that nobody knows"
    if others:
        line, name = others[0]
        cure = f"line {line} is about '{name}', which is no class: {closest(name, missing)}"
    raise UserError(f"{path} has no row for the class '{missing[0]}'", cure)


def grouped_by_prefix(concepts: ConceptSet, truth: np.ndarray) -> tuple[ConceptSet, np.ndarray]:
    """Yes/no concepts that exclude each other as categorical groups: shape_circle, shape_octagon -> shape.

    Concepts are grouped only if their names share what stands before the first underscore and, for every class, exactly
    one of them is true and the others are false. A group takes the place of its first concept.

    Args:
        concepts: yes/no concepts.
        truth: (C, K) their values for each class.

    Returns:
        The concept set and its truth, both in the new order.
    """
    prefixes = [name.partition("_")[0] if "_" in name else "" for name in concepts.names]
    groups: list[ConceptGroup] = []
    order: list[int] = []
    for k, name in enumerate(concepts.names):
        if k in order:
            continue
        members = [m for m, prefix in enumerate(prefixes) if prefix and prefix == prefixes[k]]
        values = truth[:, members]
        exclusive = len(members) > 1 and bool(np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all())
        members = members if exclusive else [k]
        places = tuple(range(len(order), len(order) + len(members)))
        words = tuple(concepts.names[m].partition("_")[2] for m in members) if exclusive else ("yes",)
        groups.append(ConceptGroup(prefixes[k] if exclusive else name, places, words, exclusive))
        order += members
    return ConceptSet(tuple(groups), concepts.per_class), truth[:, order]
