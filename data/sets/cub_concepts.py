"""Which concepts a CUB layout gives under the options that were chosen, and their truth for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.sets.cub_attributes import constant, count_votes, group, koh112, present_from, weigh
from vitrarium.data.sets.cub_labels import NONE, ImageLabels, read_certainties, read_image_labels
from vitrarium.data.sets.cub_layout import Listing, first_of
from vitrarium.data.sets.cub_matrix import read_class_matrix
from vitrarium.data.sets.cub_tables import Names, read_names

IMAGE_LABELS, CLASS_LABELS = "image_attribute_labels.txt", "class_attribute_labels_continuous.txt"

TRUTHS, ATTRIBUTES, VOTERS = ("instance", "class"), ("all", "koh112"), ("train", "train_val")

UNCERTAIN = {"instance": ("weight", "soft", "ignore"), "class": ("ignore", "soft")}
"""By truth what ``uncertain`` may be; the first is taken where nothing is said."""


@dataclass(frozen=True)
class Wanted:
    """The options of :func:`vitrarium.data.sets.cub.cub` that are about concepts."""

    truth: str | None = None
    attributes: str = "all"
    min_classes: int = 10
    voters: str = "train"
    threshold: float = 0.5
    uncertain: str | None = None


@dataclass(frozen=True)
class Known:
    """What is known about the images.

    Attributes:
        concepts: the concept set, or None without annotated attributes.
        truth: (N, K) float32 in [0, 1], NaN where nobody knows, or None.
        weight: (N, K) float32, or None where every annotation counts the same.
        notes: what a reader of numbers must know.
    """

    concepts: ConceptSet | None = None
    truth: np.ndarray | None = None
    weight: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Files:
    """The files that are there."""

    images: Path | None
    matrix: Path | None

    @staticmethod
    def of(place: Path) -> _Files:
        folders = [place / "attributes", place]
        images = next((f / IMAGE_LABELS for f in folders if (f / IMAGE_LABELS).exists()), None)
        matrices = [path for f in folders for path in sorted(f.glob("class_attribute_labels*.txt"))]
        matrices.sort(key=lambda path: path.name != CLASS_LABELS)
        return _Files(images, matrices[0] if matrices else None)


def read_concepts(listing: Listing, splits: np.ndarray, wanted: Wanted) -> Known:
    """Read the attributes and make concepts of them.

    Args:
        listing: images and classes.
        splits: (N,) split of each image; the training images vote about their classes.
        wanted: the options.

    Raises:
        UserError: whatever is wrong in the tables, by line; options that do not fit them or each other.
    """
    _check(wanted)
    files = _Files.of(listing.place)
    path = first_of(listing.place, "attributes.txt", "attributes/attributes.txt")
    if files.images is None and files.matrix is None:
        if wanted != Wanted():
            raise UserError(
                f"'{listing.place}' has no labels of attributes, but options about them are set",
                f"add attributes/{IMAGE_LABELS} or attributes/{CLASS_LABELS}",
            )
        named = f"{path.name} names attributes, but there are no labels of them: " if path else ""
        return Known(notes=(f"{named}no concepts",))
    if path is None:
        raise UserError(
            f"'{listing.place}' has labels of attributes, but no attributes.txt",
            "put it there, into attributes/, or one folder up; its lines read like '34 has_wing_color::blue'",
        )
    attributes = read_names(path, "attribute", "34 has_wing_color::blue")
    truth, uncertain = _chosen(wanted, files)
    if files.images is None:
        assert files.matrix is not None
        return _from_matrix(files.matrix, listing, attributes, wanted, uncertain)
    levels = read_certainties(files.images.parent / "certainties.txt")
    annotated = read_image_labels(files.images, listing.images, attributes, levels)
    notes = _notes_on(files.images, annotated)
    voters = (splits == "train") | ((splits == "val") & (wanted.voters == "train_val"))
    votes = count_votes(listing.labels, annotated, voters, len(listing.classes))
    present, kept, told = _kept(votes.share, votes.asked, attributes, wanted)
    notes += told
    if truth == "class":
        of_class = votes.share if uncertain == "soft" else present
        who = wanted.voters.replace("_", " and ")
        notes.append(f"concepts are those of the class, by the votes of its {who} images")
        return _by_class(of_class, listing, attributes, kept, uncertain, notes)
    values, weight = weigh(annotated, uncertain)
    made = group(attributes, kept, values, per_class=False, soft=uncertain == "soft")
    values = values[:, made.order]
    for members, odd in made.freed:
        values[np.ix_(odd, np.array(members))] = np.nan
    weight = None if weight is None else np.ascontiguousarray(weight[:, made.order])
    return _finished(made.concepts, values, weight, [*notes, *made.notes])


def _check(wanted: Wanted) -> None:
    for what, value, known in (
        ("truth", wanted.truth, (None, *TRUTHS)),
        ("attributes", wanted.attributes, ATTRIBUTES),
        ("voters", wanted.voters, VOTERS),
        ("uncertain", wanted.uncertain, (None, *UNCERTAIN["instance"])),
    ):
        if value not in known:
            raise UserError(f"cub has no {what} '{value}'", closest(str(value), [k for k in known if k]))
    count, threshold = wanted.min_classes, wanted.threshold
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"cub with min_classes={count!r}", "give a number of classes, at least 1")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
        raise UserError(f"cub with threshold={threshold!r}", "give a share above 0, up to 1")


def _chosen(wanted: Wanted, files: _Files) -> tuple[str, str]:
    """Truth and treatment of certainty; options that would change nothing are refused."""
    truth = wanted.truth or ("class" if files.images is None else "instance")
    if truth == "instance" and files.images is None:
        raise UserError(f"truth=instance needs attributes/{IMAGE_LABELS}, which is not there", "set truth=class")
    uncertain = wanted.uncertain or UNCERTAIN[truth][0]
    if uncertain not in UNCERTAIN[truth]:
        raise UserError(
            f"uncertain={uncertain} needs the certainty of single images, but truth={truth}",
            f"set truth=instance, or uncertain to one of: {', '.join(UNCERTAIN[truth])}",
        )
    koh, plain = wanted.attributes == "koh112", Wanted()
    voted = truth == "class" or koh
    idle = {
        "min_classes": (wanted.min_classes != plain.min_classes and not koh, "attributes=koh112"),
        "threshold": (wanted.threshold != plain.threshold and not voted, "truth=class or attributes=koh112"),
        "voters": (
            wanted.voters != plain.voters and not (voted and files.images),
            "labels of images, and truth=class or attributes=koh112",
        ),
    }
    for name, (useless, needs) in idle.items():
        if useless:
            raise UserError(f"{name} changes nothing here", f"it needs {needs}; leave it out otherwise")
    return truth, uncertain


def _kept(
    share: np.ndarray, asked: np.ndarray, attributes: Names, wanted: Wanted
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What is present in each class (C, A), the attributes that are kept, and notes."""
    if wanted.attributes == "all":
        return present_from(share, wanted.threshold), np.arange(len(attributes)), []
    present, kept = koh112(share, asked, wanted.threshold, wanted.min_classes)
    if not len(kept):
        raise UserError(
            f"attributes=koh112 keeps none of the {len(attributes)} attributes: none is present in min_classes="
            f"{wanted.min_classes} of the {len(share)} classes",
            "lower data.min_classes, or set attributes=all",
        )
    notes = [
        f"koh112 keeps {len(kept)} of {len(attributes)} attributes: those present in at least {wanted.min_classes} of "
        f"the {len(share)} classes"
    ]
    invisible = int((np.isnan(share) & asked)[:, kept].sum())
    if invisible:
        notes.append(f"{invisible} pairs of class and attribute have no vote: present, as in the released processing")
    return present, kept, notes


def _from_matrix(path: Path, listing: Listing, attributes: Names, wanted: Wanted, uncertain: str) -> Known:
    share, note = read_class_matrix(path, listing.classes, attributes)
    present, kept, notes = _kept(share, ~np.isnan(share), attributes, wanted)
    of_class = share if uncertain == "soft" else present
    taken = "as they are" if uncertain == "soft" else f"present from {wanted.threshold:g}"
    return _by_class(
        of_class, listing, attributes, kept, uncertain, [f"concepts are those of the class: {note}, {taken}", *notes]
    )


def _by_class(
    of_class: np.ndarray, listing: Listing, attributes: Names, kept: np.ndarray, uncertain: str, notes: Sequence[str]
) -> Known:
    """Concepts of classes (C, A), handed to their images."""
    made = group(attributes, kept, of_class, per_class=True, soft=uncertain == "soft")
    values = of_class[:, made.order]
    for members, odd in made.freed:
        values[np.ix_(odd, np.array(members))] = np.nan
    return _finished(made.concepts, values[listing.labels], None, [*notes, *made.notes])


def _notes_on(path: Path, annotated: ImageLabels) -> list[str]:
    nobody = int((annotated.present == NONE).all(1).sum())
    if nobody == len(annotated.present):
        raise UserError(f"{path} is empty", "fill it, or remove it to have the labels of classes read")
    notes = []
    if nobody:
        notes.append(f"{nobody} of {len(annotated.present)} images have no annotated attribute")
    if annotated.longer:
        notes.append(
            f"{annotated.longer} lines of {path.name} have more than five fields (line {annotated.first_longer} "
            "first): those too many were passed over"
        )
    return notes


def _finished(concepts: ConceptSet, values: np.ndarray, weight: np.ndarray | None, notes: Sequence[str]) -> Known:
    same = constant(concepts, values)
    more = f" and {len(same) - 5} more" if len(same) > 5 else ""
    told = [f"{len(same)} concepts are the same wherever they are known: {', '.join(same[:5])}{more}"] if same else []
    return Known(concepts, np.ascontiguousarray(values, dtype=np.float32), weight, (*notes, *told))
