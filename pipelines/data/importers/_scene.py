"""Draws random scenes: which objects lie where, and what is true of them.

Lengths and positions are fractions of the picture's width; x grows to the right, y downwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross")
MIN_OBJECTS, MAX_OBJECTS = 1, 3
"""Of a scene; at most as many large objects as are placed quickly."""
RADII = {"small": 0.13, "large": 0.2}
"""Radius of the circle around an object, by size: a small one has 16 pixels of 64, enough to tell its shape."""
MARGIN = 0.15
"""Two objects are called left, right, above or below of each other only if this far apart, and an object is called top,
bottom, left or right only if half this far from the middle, so that answers are unambiguous."""

_GAP = 0.03
_EDGE = 0.03


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene; no two objects share both colour and shape, so that ``red circle`` names one."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    angle: float
    """Degrees, clockwise."""

    @property
    def radius(self) -> float:
        return RADII[self.size]


@dataclass(frozen=True)
class Scene:
    """A drawn scene of objects that do not touch. ``ground`` is the hue of the background, in [0, 1)."""

    objects: tuple[SceneObject, ...]
    ground: float

    def as_dict(self) -> dict[str, Any]:
        """Convert the scene to plain JSON values."""
        return {"objects": [asdict(obj) for obj in self.objects], "ground": self.ground}


RELATIONS: dict[str, Callable[[SceneObject, SceneObject], float]] = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
"""How far the first object lies in that direction from the second."""


def describe_position(obj: SceneObject) -> str | None:
    """Describe where an object lies: ``top left``, ``top right``, ``bottom left`` or ``bottom right``; None near the
    middle lines.
    """
    if min(abs(obj.x - 0.5), abs(obj.y - 0.5)) < MARGIN / 2:
        return None
    return f"{'top' if obj.y < 0.5 else 'bottom'} {'left' if obj.x < 0.5 else 'right'}"


def draw_scene(rng: random.Random) -> Scene:
    """Draw a random scene of ``MIN_OBJECTS`` to ``MAX_OBJECTS`` objects, each number equally likely."""
    appearances = _draw_distinct_appearances(rng, rng.randint(MIN_OBJECTS, MAX_OBJECTS))
    sizes = [rng.choice(tuple(RADII)) for _ in appearances]
    # Sizes are drawn before places, else crowded scenes would have few large objects.
    positions = _place_objects_apart(rng, [RADII[size] for size in sizes])
    objects = (
        SceneObject(shape, color, size, x, y, round(rng.uniform(-5, 5), 1))
        for (shape, color), size, (x, y) in zip(appearances, sizes, positions, strict=True)
    )
    return Scene(tuple(objects), round(rng.random(), 3))


def _place_objects_apart(rng: random.Random, radii: list[float]) -> list[tuple[float, float]]:
    """Draw random positions for objects of these radii such that none touch."""
    while True:
        positions: list[tuple[float, float]] = []
        for radius in radii:
            position = _find_free_position(rng, radius, list(zip(positions, radii, strict=False)))
            if position is None:
                break  # the objects before it leave no place: start again
            positions.append(position)
        else:
            return positions


def _find_free_position(
    rng: random.Random, radius: float, placed: list[tuple[tuple[float, float], float]], tries: int = 40
) -> tuple[float, float] | None:
    reach = radius + _EDGE
    for _ in range(tries):
        position = round(rng.uniform(reach, 1 - reach), 3), round(rng.uniform(reach, 1 - reach), 3)
        if all(math.dist(position, other) >= radius + other_radius + _GAP for other, other_radius in placed):
            return position
    return None


def _draw_distinct_appearances(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draw a different pair of shape and colour for each object. Often one shape or colour is repeated, as otherwise
    few counts would exceed one.
    """
    theme = rng.choice(("shape", "color", "none")) if count > 1 else "none"
    repeats = rng.randint(2, count) if theme != "none" else 0
    shape, color = rng.choice(SHAPES), rng.choice(COLORS)
    appearances: list[tuple[str, str]] = []
    while len(appearances) < count:
        themed = len(appearances) < repeats
        appearance = (
            shape if themed and theme == "shape" else rng.choice(SHAPES),
            color if themed and theme == "color" else rng.choice(COLORS),
        )
        if appearance not in appearances:
            appearances.append(appearance)
    rng.shuffle(appearances)
    return appearances
