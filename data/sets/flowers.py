"""``flowers``: drawn flowers whose every part, concept and rule is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np

from vitrarium.configs.errors import UserError, closest
from vitrarium.data.batch import Sample
from vitrarium.data.sets import flowers_annotation as annotation
from vitrarium.data.sets.flowers_drawing import draw_flower
from vitrarium.data.sets.flowers_marks import NEUTRAL, stamp
from vitrarium.data.sets.flowers_rules import (
    ATTRIBUTES,
    MOST_CLASSES,
    PARTS,
    Species,
    concept_set,
    encode,
    species,
)
from vitrarium.data.source import DATASETS, GENERATED, SPLITS, DataSource, Split

VERSION = 1
"""Part of the fingerprint: raised whenever the same options give other pixels or labels."""

SHORTCUT_TESTS = ("none", "neutral", "swapped")

_LABELS, _LOOKS, _NOTES, _MARKS, _SCENE = range(5)


@dataclass(frozen=True)
class FlowerOptions:
    """All that decides a set of flowers, as told at :func:`flowers`."""

    size: int = 64
    seed: int = 0
    train: int = 4000
    val: int = 800
    test: int = 1600
    classes: int = 12
    concept_noise: float = 0.0
    class_level: bool = False
    missing_concepts: float = 0.0
    imbalance: float = 1.0
    map_blur: float = 0.0
    shortcut: float = 0.0
    shortcut_test: str = "none"
    difficulty: float = 0.62

    def __post_init__(self) -> None:
        annotation.check_range("classes", self.classes, 2, MOST_CLASSES, whole=True)
        annotation.check_range("size", self.size, 32, 256, whole=True)
        for name in ("concept_noise", "missing_concepts", "shortcut", "difficulty"):
            annotation.check_range(name, getattr(self, name), 0, 1)
        annotation.check_range("map_blur", self.map_blur, 0, 32)
        annotation.check_range("imbalance", self.imbalance, 1, 1000)
        annotation.check_range("seed", self.seed, 0, 2**63 - 1, whole=True)
        for name in SPLITS:
            annotation.check_range(name, getattr(self, name), 1, 10_000_000, whole=True)
        if not isinstance(self.class_level, bool):
            raise UserError(f"flowers cannot have class_level={self.class_level!r}", "give true or false")
        if self.shortcut_test not in SHORTCUT_TESTS:
            raise UserError(
                f"flowers cannot have shortcut_test='{self.shortcut_test}'", closest(self.shortcut_test, SHORTCUT_TESTS)
            )
        if annotation.class_counts(self.train, self.classes, self.imbalance).min() < 1:
            raise UserError(
                f"{self.train} training images with imbalance={self.imbalance} leave a class of {self.classes} empty",
                "raise train, or lower imbalance or classes",
            )

    @property
    def marked(self) -> bool:
        """Whether marks occur anywhere, so that masks and keypoints have a last part "mark"."""
        return self.shortcut > 0 or self.shortcut_test != "none"

    @property
    def fingerprint(self) -> str:
        """Short hash of the options and of the version of the drawing."""
        # As the type of the default, so that 0 and 0.0 are one set.
        plain = {name: type(getattr(FlowerOptions, name))(value) for name, value in asdict(self).items()}
        text = json.dumps({"flowers": VERSION, **plain}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def stream(self, split: str, purpose: int, index: int = 0) -> np.random.Generator:
        """The random numbers for one purpose in one split, for the scenes one stream per image."""
        return np.random.Generator(np.random.PCG64([self.seed, SPLITS.index(split), purpose, index]))


@dataclass(kw_only=True)
class FlowerSplit(Split):
    """One split; see :class:`~vitrarium.data.source.Split`.

    Attributes:
        labels: (N,) int64.
        truth: (N, 22) float32, the concepts as annotated.
        options: what it was made from.
        name: "train", "val" or "test".
        looks: (N, 8) int64, the attribute values that the pictures show, whatever the annotation says.
        marks: (N,) int64, class of the mark, ``NEUTRAL`` for the grey one; None without marks.
        kinds: the species of the C classes.
    """

    labels: np.ndarray
    truth: np.ndarray
    options: FlowerOptions
    name: str
    looks: np.ndarray
    marks: np.ndarray | None = None
    kinds: tuple[Species, ...] = field(default=(), repr=False)

    def look(self, index: int) -> dict[str, str]:
        """What picture ``index`` shows: attribute to value."""
        row = self.looks[index]
        return {name: values[row[a]] for a, (name, values) in enumerate(ATTRIBUTES.items())}

    def sample(self, index: int) -> Sample:
        """Draw example ``index``; the same picture whenever, wherever and in whatever order it is asked for."""
        if not 0 <= index < len(self.labels):
            raise IndexError(f"no example {index} in a split of {len(self.labels)}")
        o = self.options
        rng = o.stream(self.name, _SCENE, index)
        picture = draw_flower(self.look(index), rng, o.size, o.difficulty)
        label = int(self.labels[index])
        wanted = [PARTS.index(part) for part in self.kinds[label].parts]
        human_map = _blurred(picture.masks[wanted].max(axis=0), o.map_blur * o.size / 64)
        masks, keypoints = picture.masks, picture.keypoints
        if o.marked:
            mask = self._mark(index, picture.image, masks)
            masks = np.concatenate([masks, mask[None]])
            keypoints = np.concatenate([keypoints, _centre(mask)[None]])
        return Sample(
            image=picture.image,
            label=label,
            concepts=self.truth[index].copy(),
            human_map=human_map,
            part_masks=masks,
            keypoints=keypoints,
            index=index,
        )

    def origin(self, index: int) -> str:
        """Split, index and the attributes that the picture shows."""
        shown = ", ".join(f"{name}={value}" for name, value in self.look(index).items())
        return f"flowers {self.name} #{index} (seed {self.options.seed}): {shown}"

    def _mark(self, index: int, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Stamp the mark into ``image`` and give its mask, empty where this image has none."""
        if self.marks is None:
            return np.zeros(image.shape[:2], np.uint8)
        corner = int(self.options.stream(self.name, _MARKS, index + 1).integers(4))
        return stamp(image, np.asarray(masks.any(axis=0)), int(self.marks[index]), corner)


def _blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    """A mask blurred by a Gaussian of ``sigma`` pixels and scaled so that its maximum is 255 again."""
    if sigma == 0 or not mask.any():
        return mask
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)
    return (soft * (255 / soft.max()) + 0.5).astype(np.uint8)


def _centre(mask: np.ndarray) -> np.ndarray:
    """Keypoint (3,) in the middle of a mask, zeros if it is empty."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros(3, np.float32)
    return np.array([int(columns.mean()), int(rows.mean()), 1], np.float32)


def _split(name: str, options: FlowerOptions, table: np.ndarray | None) -> FlowerSplit:
    """Draw labels, looks, annotations and marks of a split; ``table`` (C, 8) replaces the looks in the annotation."""
    o = options
    counts = annotation.class_counts(getattr(o, name), o.classes, 1.0 if name == "test" else o.imbalance)
    labels = annotation.draw_labels(o.stream(name, _LABELS), counts)
    looks = annotation.draw_looks(o.stream(name, _LOOKS), labels, o.classes)
    known = looks if table is None else table[labels]
    noise = 0.0 if name == "test" else o.concept_noise
    missing = o.missing_concepts if name == "train" else 0.0
    written = annotation.annotate(o.stream(name, _NOTES), known, noise, missing)
    return FlowerSplit(
        labels=labels,
        truth=encode(written),
        options=o,
        name=name,
        looks=looks,
        marks=_marks(name, o, labels),
        kinds=species(o.classes),
    )


def _marks(name: str, options: FlowerOptions, labels: np.ndarray) -> np.ndarray | None:
    if name == "test":
        swapped = (labels + 1) % options.classes
        return {"none": None, "neutral": np.full_like(labels, NEUTRAL), "swapped": swapped}[options.shortcut_test]
    if options.shortcut == 0:
        return None
    rng = options.stream(name, _MARKS)
    return annotation.draw_marks(rng, labels, options.classes, options.shortcut)


def _class_table(options: FlowerOptions) -> np.ndarray:
    """What the majority of a class's training images show (C, 8)."""
    train = _split("train", options, None)
    return annotation.majority(train.looks, train.labels, options.classes)


def _notes(options: FlowerOptions) -> list[str]:
    """What a reader of numbers must know."""
    o, notes = options, []
    if o.class_level:
        notes.append("concepts are those of the majority of the class's training images, in all splits")
    if o.concept_noise:
        notes.append(f"{o.concept_noise:.0%} of the concept groups of train and val show a wrong value; test is clean")
    if o.missing_concepts:
        notes.append(f"{o.missing_concepts:.0%} of the concept groups of train are unknown")
    if o.imbalance > 1:
        notes.append(f"train and val hold {o.imbalance:g} times more of the first class than of the last; test is even")
    if o.shortcut:
        notes.append(f"train and val images carry a mark, with probability {o.shortcut:g} that of their class")
    if o.shortcut_test != "none":
        notes.append(f"test images carry marks: {o.shortcut_test}")
    return notes


@DATASETS.register("flowers")
def flowers(
    size: int = 64,
    seed: int = 0,
    train: int = 4000,
    val: int = 800,
    test: int = 1600,
    classes: int = 12,
    concept_noise: float = 0.0,
    class_level: bool = False,
    missing_concepts: float = 0.0,
    imbalance: float = 1.0,
    map_blur: float = 0.0,
    shortcut: float = 0.0,
    shortcut_test: str = "none",
    difficulty: float = 0.62,
) -> DataSource:
    """Drawn flowers with known parts, concepts and class rule; every picture is a function of (seed, split, index).

    Eight attributes of petals, disc, stem and leaves make 22 concepts; a class is a species that asks for three of them
    (:mod:`~vitrarium.data.sets.flowers_rules`). The idea of flowers whose discriminative part is known pixel by pixel
    is that of an8Flower (Oramas, Wang, Tuytelaars, ICLR 2019); drawing and rule are our own.

    Args:
        size: height and width in pixels, 32 to 256; the same seed shows the same scenes at every size.
        seed: another seed, another set.
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        classes: 2 to 16 species; from 4 on no single attribute tells the class.
        concept_noise: probability in [0, 1] that an annotated group of train or val shows another value than the
            picture; the concepts of the test split stay true.
        class_level: give each image the attributes that most training images of its class show, in all splits,
            instead of its own. The noise comes on top, image by image.
        missing_concepts: probability in [0, 1] that a group of a training image is unknown (NaN).
        imbalance: how many times more frequent the first class is than the last in train and val, geometric in
            between; test is even.
        map_blur: standard deviation of the Gaussian that blurs the human map, in pixels of a 64 pixel image.
        shortcut: strength in [0, 1] of a planted shortcut. Above 0 all train and val images carry a mark in a
            corner: with this probability the mark of their class, else that of a class drawn from all. At 0 they
            carry none.
        shortcut_test: marks of the test images: "none", "neutral" (grey) or "swapped" (that of class
            (y + 1) mod C).
        difficulty: from 0 (large, centred, unhidden, in even light) to 1. A small convolutional network told nothing
            but the classes gets about 89 % right at 0.5 and 82 % at 0.62 after 12 epochs of ``train=standard``.

    Returns:
        A data source whose samples give concepts, human map (visible pixels of the parts that tell the
        species), part masks and keypoints; with marks there is a last part "mark".

    Raises:
        UserError: an option outside its range, or a class without a training image.
    """
    options = FlowerOptions(
        size, seed, train, val, test, classes, concept_noise, class_level, missing_concepts, imbalance, map_blur,
        shortcut, shortcut_test, difficulty,
    )  # fmt: skip
    table = _class_table(options) if class_level else None
    return DataSource(
        name="flowers",
        splits={name: _split(name, options, table) for name in SPLITS},
        class_names=tuple(kind.name for kind in species(classes)),
        concepts=concept_set(per_class=class_level),
        gives=frozenset({"concepts", "human_map", "part_masks", "keypoints"}),
        size=size,
        fingerprint=options.fingerprint,
        part_names=(*PARTS, "mark") if options.marked else PARTS,
        notes=_notes(options),
        pictures=GENERATED,
    )
