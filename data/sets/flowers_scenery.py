"""All that is not the flower: backgrounds, other plants and insects behind it, things that hide it."""

from __future__ import annotations

import cv2
import numpy as np

from vitrarium.data.sets.flowers_brush import Brush, Colour, Dice, ellipse, mix, place, shade
from vitrarium.data.sets.flowers_plant import DISC_COLOURS, PETAL_COLOURS, Pose, leaf_outline

GRID = 64
"""Backgrounds are made on a grid of this side, whatever the size of the picture."""

TONES: tuple[tuple[Colour, Colour], ...] = (
    ((62, 98, 52), (122, 156, 84)),  # meadow
    ((30, 58, 46), (70, 104, 78)),  # undergrowth
    ((150, 190, 226), (206, 224, 238)),  # sky
    ((98, 76, 56), (156, 130, 100)),  # soil
    ((118, 120, 122), (186, 184, 178)),  # stone
    ((86, 104, 132), (136, 150, 166)),  # dusk
    ((206, 198, 168), (176, 168, 130)),  # straw
    ((40, 46, 60), (78, 84, 92)),  # night
)


def background(dice: Dice, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """A background (GRID, GRID, 3) float32, 0 to 255: a gradient with one of six textures and blurred blooms."""
    one, other = dice.pick(TONES), dice.pick(TONES)
    top = np.array(dice.blend(*one), np.float32)
    bottom = np.array(dice.blend(*(other if dice.chance(0.6) else one)), np.float32)
    y, x = np.mgrid[0 : 1 : GRID * 1j, 0 : 1 : GRID * 1j].astype(np.float32)
    angle = dice.between(-0.8, 0.8)
    ramp = np.clip((y - 0.5) * np.cos(angle) + (x - 0.5) * np.sin(angle) + 0.5, 0, 1)
    texture = dice.count(0, 5)
    if texture == 1:  # a horizon, more or less sharp
        ramp = 1 / (1 + np.exp((0.5 - ramp) * dice.between(8, 40)))
    elif texture == 2:  # patches
        ramp = ramp + dice.between(0.6, 1.2) * _clouds(rng, dice.count(4, 8))
    elif texture == 3:  # foliage
        ramp = ramp + dice.between(0.5, 0.9) * _clouds(rng, dice.count(12, 26))
    elif texture == 4:  # stalks, upright or leaning
        wave = x + dice.between(-0.4, 0.4) * y + 0.06 * _clouds(rng, 5)
        ramp = ramp + dice.between(0.15, 0.35) * np.sin(2 * np.pi * dice.between(7, 15) * wave)
    picture = top + np.clip(ramp, -0.35, 1.35)[:, :, None] * (bottom - top)
    if texture == 5:  # lights out of focus
        _lights(picture, dice)
    for _ in range(round(dice.between(0, 1 + 4 * difficulty))):
        _far_bloom(picture, dice)
    picture = cv2.GaussianBlur(picture, (0, 0), dice.between(0.6, 1.6))
    grain = dice.between(2, 4 + 5 * difficulty)
    return picture + grain * rng.standard_normal((GRID, GRID, 1), np.float32)


def _clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise (GRID, GRID) of about ``cells`` hills to a side, standard deviation about 0.5."""
    coarse = rng.standard_normal((cells + 1, cells + 1), np.float32) * 0.7
    return cv2.resize(coarse, (GRID, GRID), interpolation=cv2.INTER_CUBIC)


def _lights(picture: np.ndarray, dice: Dice) -> None:
    for _ in range(dice.count(5, 10)):
        centre = (int(dice.between(0, GRID)), int(dice.between(0, GRID)))
        colour = mix(dice.blend(*dice.pick(TONES)), (255, 250, 220), dice.between(0, 0.5))
        cv2.circle(picture, centre, dice.count(2, 7), colour, -1)


def _far_bloom(picture: np.ndarray, dice: Dice) -> None:
    """A flower out of focus, in one of the petal colours."""
    x, y, r = dice.between(0, GRID), dice.between(0, GRID), dice.between(2.5, 5.5)
    colour = shade(dice.blend(*dice.pick(list(PETAL_COLOURS.values()))), dice.between(0.7, 1))
    middle = dice.blend(*dice.pick(list(DISC_COLOURS.values())))
    for angle in np.arange(5) * 1.257 + dice.between(0, 1):
        cv2.circle(
            picture, (int(x + r * 0.7 * np.cos(angle)), int(y + r * 0.7 * np.sin(angle))), int(r / 2), colour, -1
        )
    cv2.circle(picture, (int(x), int(y)), max(1, int(r / 3)), middle, -1)


def draw_behind(brush: Brush, stand: Pose, dice: Dice, difficulty: float) -> None:
    """Grass, buds and other people's leaves behind the flower."""
    for _ in range(round(dice.between(0, 2 + 5 * difficulty))):
        _blade(brush, dice, dice.between(0.35, 0.85))
    for _ in range(round(dice.between(0, 2.4 * difficulty))):
        _bud(brush, stand, dice)


def draw_before(brush: Brush, stand: Pose, dice: Dice, difficulty: float) -> None:
    """Things that hide a part of the flower: grass, a stray leaf, an insect."""
    for _ in range(round(dice.between(-0.5, 8 * difficulty))):
        _blade(brush, dice, dice.between(0.1, 0.3 + 0.4 * difficulty))
    if dice.chance(0.7 * difficulty):
        _stray_leaf(brush, stand, dice)
    if dice.chance(0.6 * difficulty):
        draw_insect = dice.pick((_ladybird, _bee, _butterfly))
        away, angle = dice.between(0.75, 1.9) * stand.radius, dice.between(0, 2 * np.pi)
        x, y = stand.head[0] + away * np.cos(angle), stand.head[1] + away * np.sin(angle)
        draw_insect(brush, dice, x, y, dice.between(0.035, 0.055))


def _blade(brush: Brush, dice: Dice, height: float) -> None:
    """A blade of grass that grows from the lower edge."""
    foot, lean, half = dice.between(-0.1, 1.1), dice.between(-0.35, 0.35), dice.between(0.008, 0.02)
    t = np.linspace(0, 1, 7)
    middle = np.stack([foot + lean * t**1.6 * height, 1.03 - t * height * 1.1], axis=1)
    wide = np.stack([half * (1 - t**1.5), np.zeros(7)], axis=1)
    colour = shade(dice.blend((70, 124, 46), (150, 172, 76)), dice.between(0.6, 1.1))
    brush.fill(np.concatenate([middle - wide, (middle + wide)[::-1]]), colour)
    brush.line(middle, shade(colour, 0.8), 0.005)


def _bud(brush: Brush, stand: Pose, dice: Dice) -> None:
    """A closed bud in one of the petal colours on a thin stalk of its own."""
    side = dice.sign()
    x, y = stand.head[0] + side * dice.between(1.15, 1.9) * stand.radius, dice.between(0.25, 0.75)
    size, colour = dice.between(0.035, 0.055), dice.blend(*dice.pick(list(PETAL_COLOURS.values())))
    brush.line(np.array([[x, y], [x + side * 0.03, (y + 1) / 2], [x - side * 0.02, 1.02]]), stand.green, 0.014)
    brush.fill(ellipse(x, y - 0.4 * size, 1.25 * size, 0.8 * size, np.pi / 2), shade(colour, 0.85))
    brush.fill(ellipse(x - 0.2 * size, y - 0.5 * size, size, 0.35 * size, np.pi / 2), colour)
    brush.fill(ellipse(x, y + 0.55 * size, 0.5 * size, 0.75 * size, np.pi / 2), shade(stand.green, 0.9))


def _stray_leaf(brush: Brush, stand: Pose, dice: Dice) -> None:
    """A leaf of another plant that reaches over the flower, from the left or from the right."""
    side = dice.sign()
    length, angle = dice.between(0.28, 0.45), (np.pi if side > 0 else 0.0) + dice.between(-0.7, 0.7)
    outline = leaf_outline(dice.pick(("oval", "narrow", "lobed"))) * length
    away = length + dice.between(-0.14, 0.2)
    x, y = stand.head[0] - away * np.cos(angle), dice.between(0.3, 0.95) - away * np.sin(angle)
    colour = shade(dice.blend((60, 110, 50), (140, 150, 70)), dice.between(0.7, 1.1))
    placed = place(outline, x, y, angle)
    brush.line(np.array([[x, y], [x - np.cos(angle), y - np.sin(angle)]]), shade(colour, 0.8), 0.014)
    brush.fill(placed, colour)
    brush.line(placed, shade(colour, 0.72), 0.007, closed=True)


def _ladybird(brush: Brush, dice: Dice, x: float, y: float, size: float) -> None:
    angle = dice.between(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    brush.dot(x + 0.85 * size * c, y + 0.85 * size * s, 0.5 * size, (28, 24, 26), 0)
    brush.fill(ellipse(x, y, size, 0.82 * size, angle), (206, 40, 34))
    brush.line(np.array([[x - size * c, y - size * s], [x + size * c, y + size * s]]), (40, 20, 24), 0.006)
    for along, across in ((0.3, 0.45), (0.3, -0.45), (-0.4, 0.4), (-0.4, -0.4)):
        spot = place(np.array([[along, across]]) * size, x, y, angle)[0]
        brush.dot(spot[0], spot[1], 0.2 * size, (34, 22, 24))


def _bee(brush: Brush, dice: Dice, x: float, y: float, size: float) -> None:
    angle = dice.between(0, 2 * np.pi)
    for side in (-1, 1):
        wing = place(ellipse(0.1 * size, 0.75 * side * size, 0.35 * size, 0.7 * size), x, y, angle)
        brush.fill(wing, (214, 220, 226))
    brush.fill(ellipse(x, y, size, 0.55 * size, angle), (236, 182, 40))
    for along in (-0.5, 0.0, 0.5):
        brush.fill(place(ellipse(along * size, 0, 0.12 * size, 0.5 * size), x, y, angle), (44, 34, 28))


def _butterfly(brush: Brush, dice: Dice, x: float, y: float, size: float) -> None:
    angle, colour = dice.between(-0.8, 0.8), dice.blend(*dice.pick(list(PETAL_COLOURS.values())))
    for side in (-1, 1):
        upper = place(ellipse(0.75 * side * size, -0.45 * size, 0.8 * size, 0.6 * size, -0.5 * side), x, y, angle)
        lower = place(ellipse(0.6 * side * size, 0.45 * size, 0.5 * size, 0.5 * size), x, y, angle)
        brush.fill(lower, shade(colour, 0.75))
        brush.fill(upper, colour)
        brush.line(upper, shade(colour, 0.5), 0.006, closed=True)
    brush.fill(ellipse(x, y, 0.16 * size, 0.8 * size, angle), (44, 36, 40))
