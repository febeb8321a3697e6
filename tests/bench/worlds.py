"""K1: a scene shows one thing, and facts that are drawn anew for each scene say to whom each thing belongs.

The question names nothing, so the facts of its words do not answer it: what is seen has to be looked up. Nothing can be
learned by heart, as in the next scene all things belong to others.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from vlmodel.facts import Fact, LinkedFact

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (240, 220, 50),
    "purple": (150, 50, 190), "orange": (250, 140, 30), "pink": (250, 150, 200), "white": (250, 250, 250),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "bar", "pillar", "ring", "frame")
PLACES = (
    "sand", "snow", "grass", "water", "stone", "wood", "mud", "ice", "glass", "iron", "paper", "wool", "coal", "clay",
    "moss", "salt",
)  # fmt: skip
NAMES = (
    "mara", "otto", "ines", "paul", "lena", "hugo", "vera", "karl", "nora", "emil", "ruth", "theo", "anna", "jens",
    "olga", "finn",
)  # fmt: skip
QUESTIONS = {"owner": "whose is it?", "colour": "what colour is it?", "shape": "what shape is it?"}
LABELS = [*NAMES, *COLOURS, *SHAPES]
THINGS = tuple(product(COLOURS, SHAPES))
SIDE = 24


@dataclass(frozen=True)
class Scene:
    """A thing, as it is drawn, and what is said of it and of others.

    Attributes:
        colour, shape: of the thing that is seen.
        owner: whom it belongs to.
        facts: about it and about things that are not seen, in any order.
    """

    picture: bytes
    colour: str
    shape: str
    owner: str
    facts: tuple[LinkedFact, ...]

    def edited(self, owner: str) -> Scene:
        """The scene after the fact that decides was edited."""
        facts = tuple(
            _fact(one.fact.head, owner) if one.fact.head == f"{self.colour} {self.shape}" else one for one in self.facts
        )
        return Scene(self.picture, self.colour, self.shape, owner, facts)

    def answer(self, question: str) -> str:
        return {"owner": self.owner, "colour": self.colour, "shape": self.shape}[question]


def draw_scene(rng: np.random.Generator, count: int) -> Scene:
    """A scene with ``count`` facts, of which one decides. The others are about the 63 things that are not seen, and
    about these at one of 16 places, such as "red circle on sand".
    """
    colour, shape = THINGS[rng.integers(len(THINGS))]
    others = [f"{c} {s}" for c, s in THINGS if (c, s) != (colour, shape)]
    others += [f"{thing} on {place}" for thing, place in product(others, PLACES)]
    heads = [others[n] for n in rng.permutation(len(others))[: count - 1]]
    owner = str(rng.choice(NAMES))
    said = [_fact(head, str(rng.choice(NAMES))) for head in heads] + [_fact(f"{colour} {shape}", owner)]
    facts = tuple(said[n] for n in rng.permutation(len(said)))
    return Scene(draw(colour, shape, rng), colour, shape, owner, facts)


def draw(colour: str, shape: str, rng: np.random.Generator) -> bytes:
    """A picture of a thing, somewhere on a grey ground, as PNG."""
    image = Image.new("RGB", (SIDE, SIDE), (int(rng.integers(20, 60)),) * 3)
    size = int(rng.integers(11, 16))
    left, top = (int(n) for n in rng.integers(1, SIDE - size, 2))
    right, bottom, third = left + size, top + size, size // 3
    pen, fill = ImageDraw.Draw(image), COLOURS[colour]
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill)
    elif shape == "ring":
        pen.ellipse((left, top, right, bottom), None, fill, 3)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill)
    elif shape == "frame":
        pen.rectangle((left, top, right, bottom), None, fill, 3)
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill)
    else:
        if shape in ("cross", "bar"):
            pen.rectangle((left, top + third, right, bottom - third), fill)
        if shape in ("cross", "pillar"):
            pen.rectangle((left + third, top, right - third, bottom), fill)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _fact(head: str, owner: str) -> LinkedFact:
    return LinkedFact(Fact(head, head, "BelongsTo", owner, f"the {head} belongs to {owner}"), 1.0)
