"""dSprites, drawn by its published recipe (Matthey, Higgins, Hassabis and Lerchner, 2017).

A white sprite on black, 64 x 64: 3 shapes (square, ellipse, heart), 6 sizes from 0.5 to 1, 40 turns of a full circle,
32 places from left to right and 32 from top to bottom. The original files are not needed, nor matched pixel by pixel.
"""

from __future__ import annotations

import math
import random
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fxtune.data.samples import Data, Sample, Split
from fxtune.data.spec import Sprites
from fxtune.libraries import library

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE, CLASSES = 64, 16
SHAPES = ("square", "ellipse", "heart")
SCALES, TURNS, PLACES = 6, 40, 32
POSSIBLE = len(SHAPES) * SCALES * TURNS * PLACES * PLACES


class Latents(NamedTuple):
    """What a picture is drawn from: numbers of the shape, size, turn and place."""

    shape: int
    scale: int
    turn: int
    x: int
    y: int


def sprites(spec: Sprites) -> Data:
    """As many different pictures as asked for, drawn at random by the seed."""
    count = sum(spec.count.values())
    drawn = iter(random.Random(spec.seed).sample(range(POSSIBLE), min(count, POSSIBLE)))
    splits = {
        name: Split(tuple(_sample(next(drawn), spec.label) for _ in range(many))) for name, many in spec.count.items()
    }
    return Data(f"dSprites, {spec.label}", "images", tuple(map(str, range(CLASSES))), splits)


def latents(number: int) -> Latents:
    """The latents of one of the `POSSIBLE` pictures, in the order of the original file."""
    found = []
    for size in (PLACES, PLACES, TURNS, SCALES, len(SHAPES)):
        number, rest = divmod(number, size)
        found.append(rest)
    y, x, turn, scale, shape = found
    return Latents(shape, scale, turn, x, y)


def label(of: Latents, kind: str) -> int:
    """Its class of 16, as VTAB has it: neighbouring places, or turns, are one class."""
    return of.x * CLASSES // PLACES if kind == "location" else of.turn * CLASSES // TURNS


def drawn(of: Latents) -> Image:
    """The picture."""
    image = library("PIL.Image", what="An image", extra="train")
    draw = library("PIL.ImageDraw", what="An image", extra="train")
    made = image.new("L", (SIZE, SIZE))
    draw.Draw(made).polygon(_outline(of), fill=255)
    return made.convert("RGB")  # type: ignore[no-any-return]


def _sample(number: int, kind: str) -> Sample:
    of = latents(number)
    return Sample(f"dSprites {number}", label(of, kind), picture=partial(drawn, of))


def _outline(of: Latents) -> list[tuple[float, float]]:
    """Corners in pixels; the largest sprite in a corner is still whole."""
    reach = SIZE / 6 * (0.5 + 0.5 * of.scale / (SCALES - 1))
    angle = 2 * math.pi * of.turn / TURNS
    margin = SIZE / 4
    step = (SIZE - 2 * margin) / (PLACES - 1)
    x, y = margin + of.x * step, margin + of.y * step
    turned = ((u * math.cos(angle) - v * math.sin(angle), u * math.sin(angle) + v * math.cos(angle)) for u, v in
              _unit(SHAPES[of.shape]))  # fmt: skip
    return [(x + reach * u, y + reach * v) for u, v in turned]


def _unit(shape: str) -> list[tuple[float, float]]:
    """The outline of a shape of size one around (0, 0), not turned."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    around = [2 * math.pi * i / 48 for i in range(48)]
    if shape == "ellipse":
        return [(1.2 * math.cos(t), 0.6 * math.sin(t)) for t in around]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in around
    ]
