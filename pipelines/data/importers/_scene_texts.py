"""Generates captions and questions about a scene that are true and unambiguous by construction."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import permutations

from pipelines.data.importers._scene import COLORS, MARGIN, RELATIONS, SHAPES, Scene, SceneObject, describe_position
from vlmodel.sample import Question

_NUMBERS = ("zero", "one", "two", "three")
_Ask = Callable[[Scene, random.Random], tuple[str, str] | None]


def caption_scene(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Write two captions of a scene: one lists all objects, one relates two of them; only the first if no two are far
    enough apart.
    """
    listed = [f"a {obj.size} {_object_name(obj)}" for obj in rng.sample(scene.objects, len(scene.objects))]
    named = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
    full = f"{_NUMBERS[len(listed)]} object{'s' if len(listed) > 1 else ''}: {named}"
    pairs = [(a, relation, b) for a, relation, b, distance in _object_relations(scene) if distance >= MARGIN]
    if not pairs:
        return (full,)
    a, relation, b = rng.choice(pairs)
    return full, f"a {a.size} {_object_name(a)} {relation} a {b.size} {_object_name(b)}"


def make_questions(scene: Scene, rng: random.Random, key: str) -> tuple[Question, ...]:
    """Make one question of each kind that a scene allows, no text twice; a question's id is ``KEY#KIND``."""
    asked: dict[str, Question] = {}
    for kind, ask in _KINDS.items():
        pair = ask(scene, rng)
        if pair is not None and pair[0] not in asked:
            text, answer = pair
            asked[text] = Question(text, answer, id=f"{key}#{kind}")
    return tuple(asked.values())


def _object_name(obj: SceneObject) -> str:
    return f"{obj.color} {obj.shape}"


def _prepend_article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _object_relations(scene: Scene) -> list[tuple[SceneObject, str, SceneObject, float]]:
    return [
        (a, relation, b, distance(a, b))
        for a, b in permutations(scene.objects, 2)
        for relation, distance in RELATIONS.items()
    ]


def _existence_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    present = {(obj.color, obj.shape) for obj in scene.objects}
    if rng.random() < 0.5:
        color, shape = rng.choice(sorted(present))
        return f"is there {_prepend_article(color)} {color} {shape}?", "yes"
    # Mostly near misses: another object has the colour or the shape.
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in present]
    colors, shapes = {color for color, _ in present}, {shape for _, shape in present}
    near = [pair for pair in absent if pair[0] in colors or pair[1] in shapes]
    color, shape = rng.choice(near if rng.random() < 0.7 else absent)
    return f"is there {_prepend_article(color)} {color} {shape}?", "no"


def _color_question(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    shapes = [obj.shape for obj in scene.objects]
    unique = [obj for obj in scene.objects if shapes.count(obj.shape) == 1]
    if not unique:
        return None
    obj = rng.choice(unique)
    return f"what color is the {obj.shape}?", obj.color


def _shape_question(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    colors = [obj.color for obj in scene.objects]
    unique = [obj for obj in scene.objects if colors.count(obj.color) == 1]
    if not unique:
        return None
    obj = rng.choice(unique)
    return f"what shape is the {obj.color} object?", obj.shape


def _total_count_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "how many objects are there?", str(len(scene.objects))


def _count_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    by_count: dict[int, list[str]] = {}
    for shape in SHAPES:
        by_count.setdefault(sum(obj.shape == shape for obj in scene.objects), []).append(
            f"{shape}{'es' if shape.endswith('s') else 's'}"
        )
    for color in COLORS:
        by_count.setdefault(sum(obj.color == color for obj in scene.objects), []).append(f"{color} objects")
    # Counts that are rare over all scenes are asked for more often.
    counts = sorted(by_count)
    count = rng.choices(counts, weights=[(1, 1, 2, 4)[count] for count in counts])[0]
    what = rng.choice(by_count[count])
    return f"how many {what} are there?", str(count)


def _size_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    obj = rng.choice(scene.objects)
    return f"is the {_object_name(obj)} small or large?", obj.size


def _position_question(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    placed = [(obj, position) for obj in scene.objects if (position := describe_position(obj))]
    if not placed:
        return None
    obj, position = rng.choice(placed)
    return f"where is the {_object_name(obj)}?", position


def _relation_question(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    answer = rng.choice(("yes", "no"))
    sign = 1 if answer == "yes" else -1
    candidates = [
        (a, relation, b) for a, relation, b, distance in _object_relations(scene) if sign * distance >= MARGIN
    ]
    if not candidates:
        return None
    a, relation, b = rng.choice(candidates)
    return f"is the {_object_name(a)} {relation} the {_object_name(b)}?", answer


def _neighbour_question(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """Ask for the only object that lies in a direction from another one, at any distance."""
    candidates = []
    for b in scene.objects:
        for relation, distance in RELATIONS.items():
            neighbours = [a for a in scene.objects if a is not b and distance(a, b) > 0]
            if len(neighbours) == 1 and distance(neighbours[0], b) >= MARGIN:
                candidates.append((neighbours[0], relation, b))
    if not candidates:
        return None
    a, relation, b = rng.choice(candidates)
    return f"what color is the object {relation} the {_object_name(b)}?", a.color


_KINDS: dict[str, _Ask] = {
    "exists": _existence_question,
    "color": _color_question,
    "shape": _shape_question,
    "count-all": _total_count_question,
    "count": _count_question,
    "size": _size_question,
    "place": _position_question,
    "related": _relation_question,
    "neighbour": _neighbour_question,
}
