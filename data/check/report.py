"""The whole check of a data set, as one object."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vitrarium.configs.compose import options
from vitrarium.data.check.classes import class_findings, class_table, imbalance
from vitrarium.data.check.concepts import concept_findings, concept_table
from vitrarium.data.check.copies import copy_findings, duplicates_of
from vitrarium.data.check.examples import Progress, Tally, look_at_all
from vitrarium.data.check.findings import Finding, by_severity
from vitrarium.data.check.pixels import part_findings, part_table, pixel_findings
from vitrarium.data.check.rules import lookup, rule_findings
from vitrarium.data.check.values import value_findings
from vitrarium.data.duplicates import Duplicates
from vitrarium.data.source import DataSource


@dataclass
class DataCheck:
    """What a data set is and what is wrong with it.

    Attributes:
        spec: ``{name, root, **options}`` it was built from.
        because: what its folder was recognised by, empty if it was named.
        decoded: whether every example was decoded.
        source: size, what it gives, fingerprint, notes, credit; empty if it could not be built.
        splits: name, images, and images with a copy in another split (None if nobody has looked).
        classes: name and images in each split.
        imbalance: training images of the largest class over those of the smallest.
        concepts: name, group, prevalence, unknown and soft share of each, over the training images.
        concept_summary: how many concepts and groups, whose truth, shares over all, and the ceiling: the training
            accuracy of a look-up from complete concept rows to classes.
        parts: name, share of images with a visible keypoint, share with a mask.
        images: how many are broken, have a map, come from files; smallest and largest; kinds of files.
        findings: errors first, then warnings, then notes.
        command: the line that trains on it; empty if it could not be built.
    """

    spec: dict[str, Any]
    because: str = ""
    decoded: bool = False
    source: dict[str, Any] = field(default_factory=dict)
    splits: list[dict[str, Any]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    imbalance: float | None = None
    concepts: list[dict[str, Any]] = field(default_factory=list)
    concept_summary: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    command: str = ""

    @property
    def clean(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity == "note" for finding in self.findings)

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind ("rare_class")."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {"clean": self.clean, **asdict(self), "findings": [finding.to_dict() for finding in self.findings]}


def check_source(
    source: DataSource, spec: Mapping[str, Any], fast: bool = False, progress: Progress | None = None
) -> DataCheck:
    """Look at everything a data set holds.

    Args:
        source: the data set.
        spec: what it was built from.
        fast: leave the examples undecoded; nothing is then said of pixels, maps, keypoints and masks.
        progress: told how many examples are decoded, of how many.
    """
    tally = None if fast else look_at_all(source, progress)
    duplicates = duplicates_of(source, tally)
    classes = class_table(source)
    check = DataCheck(
        spec=dict(spec),
        decoded=not fast,
        source=_about(source),
        splits=_splits(source, duplicates),
        classes=classes,
        imbalance=imbalance(classes),
        command=command(spec, source.concepts is not None),
    )
    findings = [] if tally is None else pixel_findings(tally, source.size)
    findings += class_findings(classes)
    findings += [] if duplicates is None else copy_findings(source, duplicates)
    findings += _concepts(source, check)
    if tally is not None:
        check.parts, check.images = part_table(source, tally), _images(tally)
        findings += part_findings(check.parts)
    told = None if duplicates is None else duplicates.note
    findings += [Finding("note", "said", note) for note in source.notes if note != told]
    check.findings = by_severity(findings)
    return check


def _splits(source: DataSource, duplicates: Duplicates | None) -> list[dict[str, Any]]:
    leaked = {} if duplicates is None else {name: int(mask.sum()) for name, mask in duplicates.leaked.items()}
    return [{"name": name, "images": len(split), "leaked": leaked.get(name)} for name, split in source.splits.items()]


def _about(source: DataSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "size": source.size,
        "gives": sorted(source.gives),
        "fingerprint": source.fingerprint,
        "credit": source.pictures,
    }


def _concepts(source: DataSource, check: DataCheck) -> list[Finding]:
    """Fill in what is known of the concepts, and say what is wrong with them."""
    train = source.splits["train"]
    if source.concepts is None or train.truth is None:
        return []
    check.concepts = concept_table(source.concepts, train.truth)
    known = ~(train.truth != train.truth)
    ceiling = lookup(train.truth, train.labels)
    check.concept_summary = {
        "concepts": len(source.concepts),
        "groups": len(source.concepts.groups),
        "categorical": sum(group.categorical for group in source.concepts.groups),
        "per_class": source.concepts.per_class,
        "unknown": float(1 - known.mean()) if known.size else 0.0,
        "soft": float(((train.truth > 0) & (train.truth < 1)).sum() / max(known.sum(), 1)),
        "ceiling": ceiling,
    }
    found = concept_findings(source.concepts, train.truth, train.labels, len(source.class_names))
    found += value_findings(source.concepts, train.truth)
    return found + rule_findings(source.concepts, train.truth, train.labels, source.class_names, ceiling)


def _images(tally: Tally) -> dict[str, Any]:
    return {
        "images": tally.images,
        "broken": len(tally.broken),
        "files": tally.files,
        "smallest": tally.smallest,
        "largest": tally.largest,
        "kinds": dict(tally.kinds),
        "maps": tally.maps,
        "empty_maps": len(tally.empty_maps),
        "constant_maps": len(tally.constant_maps),
    }


def command(spec: Mapping[str, Any], concepts: bool) -> str:
    """The line for the shell that trains on a data set: a concept bottleneck, or the black box without concepts.

    Args:
        spec: ``{name, **options}``.
        concepts: whether the set has any.
    """
    name = str(spec["name"])
    chosen = f"data={name}" if name in options("data") else f"data.name={name}"
    given = [f"data.{key}={shlex.quote(_text(value))}" for key, value in spec.items() if key != "name"]
    return " ".join(["vitrarium train", f"model={'cbm' if concepts else 'blackbox'}", chosen, *given])


def _text(value: Any) -> str:
    """A value as an override reads it back: words as they are where that is safe, in quotes elsewhere."""
    if isinstance(value, str):
        # An interpolation is none of ours: a folder may be called so.
        escaped = value.replace("${", "\\${")
        try:
            read = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={escaped}"]))["v"]  # type: ignore[index,call-overload]
        except (YAMLError, OmegaConfBaseException):
            read = None
        quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\\\${") + '"'
        return escaped if read == value and "," not in value else quoted
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(one) for one in value) + "]"
    return "null" if value is None else str(value)
