"""Scenes: every answer is derived again here, from the objects and the words of the question alone."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.importers.scenes import Config
from pipelines.data.importing.importer import SourceSample
from vlmodel.config import ConfigError, parse_config

RGB = {
    "red": (226, 59, 59),
    "orange": (245, 139, 31),
    "yellow": (246, 208, 47),
    "green": (56, 168, 84),
    "blue": (47, 111, 224),
    "purple": (138, 69, 201),
    "pink": (242, 127, 181),
    "black": (43, 45, 56),
}
AXES = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
RELATION = "|".join(AXES)


@pytest.fixture(scope="module")
def texts_only() -> list[SourceSample]:
    """1,500 train and 500 test scenes; their texts take no time, only drawing does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.data.importers.scenes.render_scene", lambda scene, size: b"not drawn")
        config = Config()
        return [config.scene_sample("train", n) for n in range(1500)] + [
            config.scene_sample("test", n) for n in range(500)
        ]


def _objects(record: SourceSample) -> list[dict[str, Any]]:
    assert record.extra is not None
    return record.extra["scene"]["objects"]


def _the(objects: list[dict[str, Any]], **look: str) -> dict[str, Any]:
    """The one object that looks so; a question that names none or several is a bad question."""
    found = [thing for thing in objects if all(thing[name] == value for name, value in look.items())]
    assert len(found) == 1, look
    return found[0]


def _gap(a: dict[str, Any], b: dict[str, Any], relation: str) -> float:
    axis, sign = AXES[relation]
    return sign * (a[axis] - b[axis])


def answer(question: str, objects: list[dict[str, Any]]) -> str:
    """The right answer; fails where people could argue about it."""
    if m := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return "yes" if any((o["color"], o["shape"]) == m.groups() for o in objects) else "no"
    if m := re.fullmatch(r"what color is the (\w+)\?", question):
        return _the(objects, shape=m[1])["color"]
    if m := re.fullmatch(r"what shape is the (\w+) object\?", question):
        return _the(objects, color=m[1])["shape"]
    if question == "how many objects are there?":
        return str(len(objects))
    if m := re.fullmatch(r"how many (\w+) objects are there\?", question):
        assert m[1] in RGB
        return str(sum(o["color"] == m[1] for o in objects))
    if m := re.fullmatch(r"how many (\w+) are there\?", question):
        shapes = {
            "circles": "circle",
            "squares": "square",
            "triangles": "triangle",
            "crosses": "cross",
            "stars": "star",
        }
        return str(sum(o["shape"] == shapes[m[1]] for o in objects))
    if m := re.fullmatch(r"is the (\w+) (\w+) small or large\?", question):
        return _the(objects, color=m[1], shape=m[2])["size"]
    if m := re.fullmatch(r"where is the (\w+) (\w+)\?", question):
        thing = _the(objects, color=m[1], shape=m[2])
        assert min(abs(thing["x"] - 0.5), abs(thing["y"] - 0.5)) > 0.05
        return f"{'top' if thing['y'] < 0.5 else 'bottom'} {'left' if thing['x'] < 0.5 else 'right'}"
    if m := re.fullmatch(rf"is the (\w+) (\w+) ({RELATION}) the (\w+) (\w+)\?", question):
        gap = _gap(_the(objects, color=m[1], shape=m[2]), _the(objects, color=m[4], shape=m[5]), m[3])
        assert abs(gap) > 0.1
        return "yes" if gap > 0 else "no"
    if m := re.fullmatch(rf"what color is the object ({RELATION}) the (\w+) (\w+)\?", question):
        other = _the(objects, color=m[2], shape=m[3])
        there = [o for o in objects if o is not other and _gap(o, other, m[1]) > 0]
        assert len(there) == 1
        assert _gap(there[0], other, m[1]) > 0.1
        return there[0]["color"]
    raise AssertionError(f"unknown question {question!r}")


def test_every_answer_is_right_and_every_question_unambiguous(texts_only: list[SourceSample]) -> None:
    asked: Counter[str] = Counter()
    for record in texts_only:
        for question in record.texts.questions:
            assert question.answer == answer(question.question, _objects(record)), (record.key, question)
            asked[str(question.id).partition("#")[2]] += 1
        assert len({question.question for question in record.texts.questions}) == len(record.texts.questions) >= 6
    assert len(asked) == 9
    assert min(asked.values()) > 0.5 * len(texts_only)


def test_captions_are_true(texts_only: list[SourceSample]) -> None:
    words = ("zero", "one", "two", "three")
    related = 0
    for record in texts_only:
        objects, (full, *rest) = _objects(record), record.texts.captions
        listed = re.findall(r"an? (\w+) (\w+) (\w+)", full)
        assert full.startswith(f"{words[len(objects)]} object{'' if len(objects) == 1 else 's'}: ")
        assert sorted(listed) == sorted((o["size"], o["color"], o["shape"]) for o in objects)
        for caption in rest:
            m = re.fullmatch(rf"a (\w+) (\w+) (\w+) ({RELATION}) a (\w+) (\w+) (\w+)", caption)
            assert m is not None
            a = _the(objects, size=m[1], color=m[2], shape=m[3])
            b = _the(objects, size=m[5], color=m[6], shape=m[7])
            assert _gap(a, b, m[4]) > 0.1
            related += 1
    assert related > 0.6 * len(texts_only)


def test_objects_are_apart_inside_and_distinct(texts_only: list[SourceSample]) -> None:
    counts: Counter[int] = Counter()
    for record in texts_only:
        objects = _objects(record)
        counts[len(objects)] += 1
        reach = {"small": 0.13, "large": 0.2}
        for number, a in enumerate(objects):
            assert reach[a["size"]] <= min(a["x"], a["y"]) <= max(a["x"], a["y"]) <= 1 - reach[a["size"]]
            for b in objects[:number]:
                assert math.dist((a["x"], a["y"]), (b["x"], b["y"])) > reach[a["size"]] + reach[b["size"]]
                assert (a["color"], a["shape"]) != (b["color"], b["shape"])
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 0.28 * len(texts_only)


def test_the_text_alone_gives_little_away(texts_only: list[SourceSample]) -> None:
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    for record in texts_only:
        for question in record.texts.questions:
            assert question.answer is not None
            kind = str(question.id).partition("#")[2]
            by_kind[kind][question.answer] += 1
            if record.split == "train":
                by_question[question.question][question.answer] += 1
                total[question.answer] += 1
    majority = total.most_common(1)[0]
    assert majority[1] < 0.15 * total.total()
    test = [q for record in texts_only if record.split == "test" for q in record.texts.questions]
    guesses = [(by_question[q.question] or total).most_common(1)[0][0] for q in test]
    assert sum(guess == q.answer for guess, q in zip(guesses, test, strict=True)) < 0.40 * len(test)
    for kind, most in {
        "exists": 0.55,
        "related": 0.55,
        "size": 0.57,
        "place": 0.30,
        "color": 0.17,
        "shape": 0.26,
    }.items():
        assert by_kind[kind].most_common(1)[0][1] < most * by_kind[kind].total(), kind
    assert set(by_kind["count"]) == {"0", "1", "2", "3"}


def test_pictures_show_the_objects() -> None:
    config = Config(image_size=96)
    for number in range(12):
        record = config.scene_sample("train", number)
        with Image.open(io.BytesIO(record.inputs["image"][0])) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))
            pixels = np.asarray(image, dtype=float)
        palette = np.array(list(RGB.values()))
        for thing in _objects(record):
            row, column = int(thing["y"] * 96), int(thing["x"] * 96)
            distances = np.linalg.norm(palette - pixels[row, column], axis=1)
            assert list(RGB)[distances.argmin()] == thing["color"]
        # Soft ground in the corners, and edges of mixed colour: drawn large and shrunk.
        assert min(pixels[corner].min() for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1))) > 170
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 150


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "cross"])
def test_shapes_fill_their_share(shape: str) -> None:
    from pipelines.data.importers._scene import Scene, SceneObject
    from pipelines.data.importers._scene_image import render_scene

    expected = {
        "circle": math.pi * 0.92**2,
        "square": 2.0,
        "triangle": 3 * math.sqrt(3) / 4,
        "star": 10 * 0.5 * 0.46 * math.sin(math.radians(36)),
        "cross": 2 * 0.68 * 2 * math.cos(math.asin(0.34)) - 0.68**2,
    }
    with Image.open(
        io.BytesIO(render_scene(Scene((SceneObject(shape, "black", "large", 0.4, 0.6, 7.0),), 0.5), 256))
    ) as image:
        dark = np.asarray(image.convert("L")) < 100
    assert dark.sum() / (0.2 * 256) ** 2 == pytest.approx(expected[shape], rel=0.03)
    rows, columns = np.nonzero(dark)
    assert (columns.mean() / 256, rows.mean() / 256) == pytest.approx((0.4, 0.6), abs=0.01)


def test_a_scene_depends_on_its_number_alone() -> None:
    config = Config(train=3, val=1, test=1, image_size=32)
    records = [record for record in config.read().samples if isinstance(record, SourceSample)]
    assert [record.key for record in records] == [
        "train-000000",
        "train-000001",
        "train-000002",
        "val-000000",
        "test-000000",
    ]
    assert records[2] == config.scene_sample("train", 2) == Config(train=900, image_size=32).scene_sample("train", 2)
    assert len({record.inputs["image"][0] for record in records}) == 5
    assert Config(seed=1, image_size=32).scene_sample("train", 2).inputs != records[2].inputs
    code = (
        "from pipelines.data.importers.scenes import Config; import json;"
        "r = Config(image_size=32).scene_sample('train', 2); "
        "print(json.dumps([r.inputs['image'][0].hex(), r.texts.captions]))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(other.stdout) == [records[2].inputs["image"][0].hex(), list(records[2].texts.captions)]


def test_of_texts_alone_nothing_is_drawn() -> None:
    said = Config(image_size=32, inputs="text").scene_sample("train", 2)
    assert said == Config(image_size=32).scene_sample("train", 2)._replace(inputs={})


def test_unfit_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size = 8"):
        parse_config(Config, {"image_size": 8})
