"""The flower itself: a bent stem with thorns and leaves, and a tilted head of petals around a disc."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vitrarium.data.sets.flowers_brush import Brush, Colour, Dice, ellipse, mix, place, shade
from vitrarium.data.sets.flowers_rules import PARTS

PETALS, DISC, STEM, LEAVES, THORNS = range(1, len(PARTS) + 1)
"""Part numbers, one more than the position in ``PARTS``."""

PETAL_COLOURS: dict[str, tuple[Colour, Colour]] = {
    "white": ((252, 250, 244), (226, 226, 238)),
    "yellow": ((252, 216, 46), (248, 176, 40)),
    "red": ((212, 30, 52), (236, 84, 66)),
    "violet": ((112, 60, 176), (172, 104, 208)),
}
DISC_COLOURS: dict[str, tuple[Colour, Colour]] = {
    "yellow": ((250, 214, 52), (240, 178, 30)),
    "brown": ((150, 88, 38), (92, 52, 30)),
    "green": ((172, 200, 72), (112, 162, 58)),
}
DISC_SIZES = {"small": (0.21, 0.28), "large": (0.35, 0.44)}
"""Radius of the disc as a share of the radius of the head, from ... to."""


@dataclass
class Pose:
    """Where the flower stands; lengths are shares of the side of the picture.

    Attributes:
        head: x and y of the centre of the head.
        radius: from the centre of the head to the tip of a petal.
        flat: width of the tilted head across ``axis``, as a share of its width along it.
        axis: direction (radians) about which the head is tilted.
        roll: turn of the petals in the plane of the head, radians.
        path: (n, 2) middle of the stem from head to foot.
        bare: share of the path that the head hides.
        green: colour of stem and leaves.
    """

    head: tuple[float, float]
    radius: float
    flat: float
    axis: float
    roll: float
    path: np.ndarray
    bare: float
    green: Colour


@dataclass
class Anchors:
    """Points (x, y) that stand for the parts, best first; the first that is seen becomes the keypoint."""

    points: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, part: int, x: float, y: float) -> None:
        """Offer one more point for a part."""
        self.points.setdefault(part, []).append((float(x), float(y)))


def pose(dice: Dice, difficulty: float) -> Pose:
    """Draw a pose: place, size, tilt and bend spread wider as difficulty goes from 0 to 1."""
    d = difficulty
    radius = dice.between(0.26 - 0.09 * d, 0.27 + 0.01 * d)
    x = 0.5 + dice.between(-0.2, 0.2) * d
    y = dice.between(0.35 - 0.05 * d, 0.36 + 0.06 * d) - 0.25 * (0.26 - radius)
    foot = x + dice.between(-0.26, 0.26) * d
    bend = dice.between(-0.2, 0.2) * d
    t = np.linspace(0, 1, 24)[:, None]
    middle = np.array([(x + foot) / 2 + bend, (y + 1.04) / 2])
    path = (1 - t) ** 2 * np.array([x, y]) + 2 * t * (1 - t) * middle + t**2 * np.array([foot, 1.04])
    away = np.hypot(path[:, 0] - x, path[:, 1] - y)
    return Pose(
        head=(x, y),
        radius=radius,
        flat=dice.between(1 - 0.42 * d, 1),
        axis=dice.between(-0.7, 0.7) + (foot - x),
        roll=dice.between(0, 2 * np.pi),
        path=path,
        bare=float(np.searchsorted(away, radius)) / 23,
        green=dice.blend((96, 150, 52), (44, 108, 60)),
    )


def draw_plant(brush: Brush, look: dict[str, str], stand: Pose, dice: list[Dice]) -> Anchors:
    """Paint the whole flower, back to front.

    Args:
        brush: what to paint with.
        look: attribute to value.
        stand: the pose.
        dice: one set each for leaves, thorns and head.
    """
    anchors = Anchors()
    _leaves(brush, look, stand, dice[0], anchors)
    if look["thorns"] == "yes":
        _thorns(brush, stand, dice[1], anchors)
    _stem(brush, stand, anchors)
    _petals(brush, look, stand, dice[2], anchors)
    _disc(brush, look, stand, dice[3], anchors)
    return anchors


def _along(path: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Point at ``share`` of the path and the unit direction towards its start."""
    at = min(share, 1.0) * (len(path) - 1)
    low = min(int(at), len(path) - 2)
    point = path[low] + (at - low) * (path[low + 1] - path[low])
    up = path[low] - path[low + 1]
    return point, up / np.hypot(*up)


def _stem(brush: Brush, stand: Pose, anchors: Anchors) -> None:
    path = stand.path
    step = np.gradient(path, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.hypot(step[:, 0], step[:, 1])[:, None]
    half = (stand.radius * np.linspace(0.066, 0.085, len(path)))[:, None]
    brush.fill(np.concatenate([path - half * normal, (path + half * normal)[::-1]]), stand.green, STEM)
    brush.line(path - 0.45 * half * normal, shade(stand.green, 1.25), 0.006)
    brush.line(path + 0.95 * half * normal, shade(stand.green, 0.7), 0.006)
    for share in (0.5, 0.35, 0.65, 0.2, 0.8, 0.05, 0.92):
        anchors.add(STEM, *_along(path, stand.bare + share * (0.96 - stand.bare))[0])


def leaf_outline(shape: str) -> np.ndarray:
    """Outline (n, 2) of a leaf about 1 long that starts at the origin and points along x; symmetric, n is even."""
    u = np.linspace(0, 1, 12)
    if shape == "oval":
        half = 0.29 * np.sin(np.pi * u**0.85) ** 0.85
    elif shape == "narrow":
        u, half = 1.15 * u, 0.095 * np.sin(np.pi * u) ** 0.75
    else:  # one lobe to each side and one at the tip, like ivy
        u = np.array([0.0, 0.17, 0.17, 0.23, 0.36, 0.5, 0.56, 0.53, 0.5, 0.6, 0.74, 0.88, 1.0, 1.06])
        half = np.array([0.03, 0.04, 0.18, 0.32, 0.41, 0.42, 0.38, 0.24, 0.11, 0.14, 0.18, 0.16, 0.08, 0.0])
    side = np.stack([u, half], axis=1)
    return np.concatenate([side, side[::-1] * (1, -1)])


def _leaves(brush: Brush, look: dict[str, str], stand: Pose, dice: Dice, anchors: Anchors) -> None:
    count = int(look["leaf_count"])
    outline = leaf_outline(look["leaf_shape"])
    side = dice.sign()
    first, last = stand.bare + 0.36 * (1 - stand.bare), 0.9
    shares = np.linspace(first, last, count) if count > 1 else [dice.between(first, last)]
    for share in shares:
        point, up = _along(stand.path, share + dice.between(-0.02, 0.02))
        length = stand.radius * dice.between(0.92, 1.12)
        angle = np.arctan2(up[1], up[0]) + side * dice.between(0.95, 1.3)
        bent = outline + np.stack(
            [np.zeros(len(outline)), -side * dice.between(0.0, 0.22) * outline[:, 0] ** 2], axis=1
        )
        colour = shade(mix(stand.green, (120, 170, 60), dice.between(0, 0.5)), dice.between(0.9, 1.15))
        placed = place(bent * length, point[0], point[1], angle)
        brush.fill(placed, colour, LEAVES)
        brush.line(placed, shade(colour, 0.72), 0.007, closed=True)
        half = len(placed) // 2
        rib = (placed[:half] + placed[half:][::-1]) / 2
        brush.line(rib, shade(colour, 1.3), 0.007)
        anchors.add(LEAVES, *rib[half // 2])
        anchors.add(LEAVES, *rib[3 * half // 4])
        side = -side


def _thorns(brush: Brush, stand: Pose, dice: Dice, anchors: Anchors) -> None:
    side = dice.sign()
    length, colour = dice.between(0.26, 0.34) * stand.radius, dice.blend((126, 52, 40), (92, 40, 34))
    shares = stand.bare + np.array([0.08, 0.22, 0.36, 0.52, 0.66, 0.8, 0.93]) * (1 - stand.bare)
    for share in shares + dice.between(-0.02, 0.02):
        point, up = _along(stand.path, share)
        out = np.array([-up[1], up[0]]) * side
        tip = point + out * length + up * 0.3 * length
        brush.fill(np.stack([point + up * 0.42 * length, tip, point - up * 0.42 * length]), colour, THORNS)
        anchors.add(THORNS, *(point + 0.55 * (tip - point)))
        side = -side


def petal_outline(shape: str, count: int) -> np.ndarray:
    """Outline (n, 2) of a petal that starts near the origin and points along x to 1, ``count`` of them to a head."""
    widest = min(0.6 * np.tan(np.pi / count), 0.42)
    if shape == "notched":
        u = np.array([0.0, 0.25, 0.5, 0.7, 0.86, 0.97, 1.02, 0.98, 0.9, 0.77])
        half = np.array([0.22, 0.52, 0.86, 1.0, 1.02, 0.9, 0.68, 0.45, 0.24, 0.0]) * widest * 1.05
    elif shape == "round":
        turn = np.linspace(0, np.pi, 12)
        u = (1 - np.cos(turn)) / 2
        half = widest * np.sin(turn) ** 0.7 * (0.5 + 0.62 * u)
    else:
        u = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.06])
        half = np.array([0.3, 0.62, 0.86, 0.92, 0.8, 0.56, 0.26, 0.0]) * widest
    side = np.stack([0.08 + 0.92 * u, half], axis=1)
    return np.concatenate([side, side[::-1] * (1, -1)])


def _tilted(stand: Pose) -> np.ndarray:
    """Matrix (2, 2) for row vectors: from the plane of the head to the picture, times its radius."""
    c, s = np.cos(stand.axis), np.sin(stand.axis)
    turn = np.array([[c, s], [-s, c]])
    return stand.radius * (turn.T * (1.0, stand.flat)) @ turn


def _petals(brush: Brush, look: dict[str, str], stand: Pose, dice: Dice, anchors: Anchors) -> None:
    count = int(look["petal_count"])
    colour = dice.blend(*PETAL_COLOURS[look["petal_colour"]])
    deep = mix(colour, (70, 20, 60), 0.24)
    outline, tilted = petal_outline(look["petal_shape"], count), _tilted(stand)
    # From the edge inwards: brighter, and darker again towards the disc.
    inner = (outline - (0.62, 0)) * (0.78, 0.7) + (0.62, 0)
    throat = (outline - (0.08, 0)) * (0.52, 0.42) + (0.08, 0)
    vein = np.array([[0.3, 0.0], [0.84, 0.0]])
    order = []
    for k in range(count):
        angle = stand.roll + 2 * np.pi * k / count + dice.between(-0.18, 0.18) / count
        stretch, light = dice.between(0.92, 1.04), dice.between(0.9, 1.03)
        order.append((np.sin(angle), k % 2, angle, stretch, light))
    for _, _, angle, stretch, light in sorted(order, key=lambda entry: entry[1]):
        c, s = np.cos(angle), np.sin(angle)
        matrix = stretch * np.array([[c, s], [-s, c]]) @ tilted
        shape = outline @ matrix + stand.head
        brush.fill(shape, shade(mix(colour, deep, 0.35), light), PETALS)
        brush.fill(inner @ matrix + stand.head, shade(colour, light), None)
        brush.fill(throat @ matrix + stand.head, shade(mix(colour, deep, 0.5), light), None)
        brush.line(vein @ matrix + stand.head, shade(mix(colour, deep, 0.6), light), 0.005)
        brush.line(shape, shade(deep, 0.72), 0.008, closed=True)
    for _, _, angle, stretch, _ in sorted(order):  # the uppermost petal first
        spot = 0.68 * stretch * np.array([np.cos(angle), np.sin(angle)]) @ tilted + stand.head
        anchors.add(PETALS, *spot)


def _disc(brush: Brush, look: dict[str, str], stand: Pose, dice: Dice, anchors: Anchors) -> None:
    colour = dice.blend(*DISC_COLOURS[look["disc_colour"]])
    size, tilted = dice.between(*DISC_SIZES[look["disc_size"]]), _tilted(stand)
    ring = ellipse(0, 0, 1, 1)
    brush.fill(size * ring @ tilted + stand.head, shade(colour, 0.62), DISC)
    brush.fill(0.84 * size * ring @ tilted + stand.head, colour, None)
    brush.fill((0.42 * size * ring - 0.2 * size) @ tilted + stand.head, shade(colour, 1.22), None)
    turn = 2.4 * np.arange(2, 16) + dice.between(0, 6)  # the golden angle, as seeds grow
    seeds = (0.8 * size * np.sqrt(np.arange(2, 16) / 16))[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)
    for x, y in seeds @ tilted + stand.head:
        brush.dot(x, y, 0.07 * size * stand.radius, shade(colour, 0.72))
    anchors.add(DISC, *stand.head)
    for x, y in 0.55 * size * ring[::5] @ tilted + stand.head:
        anchors.add(DISC, x, y)
