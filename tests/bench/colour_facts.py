"""K2: pictures of easy-VQA and colours of ConceptNet, asked together: "is a strawberry the same color as the shape?".

The picture has the colour of the shape, a fact has that of the strawberry; heads of training, validation and test are
disjoint, and each head has as many yes as no, so that nothing but picture and fact together can answer. Training may
ask for each colour alone, too.
"""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
Form = Literal["same", "fact", "shape"]
QUESTIONS: dict[Form, str] = {
    "same": "is {} the same color as the shape?",
    "fact": "what color is {}?",
    "shape": "what color is the shape?",
}
UNKNOWN = "unknown"
RELATION = "HasProperty"


@dataclass(frozen=True)
class Asked:
    """One row: an image by its number, a head, the colour of the shape, and what is asked."""

    image: int
    head: str
    shape: str
    form: Form = "same"

    @property
    def question(self) -> str:
        return QUESTIONS[self.form].format(self.head)


@dataclass(frozen=True)
class Colours:
    """The heads by split with their colours, those of training of which nothing is known, and the rows by split."""

    heads: dict[str, dict[str, str]]
    without: frozenset[str]
    rows: dict[str, list[Asked]]
    pictures: dict[str, dict[int, bytes]]

    def answer(self, asked: Asked, colours: Mapping[str, str | None]) -> str:
        colour = colours.get(asked.head)
        if asked.form == "shape":
            return asked.shape
        if asked.form == "fact":
            return colour or UNKNOWN
        return UNKNOWN if colour is None else "yes" if colour == asked.shape else "no"


def conceptnet(data: Path) -> list[tuple[str, str, str]]:
    """All (head, relation, tail) of ConceptNet-100K."""
    folder, found = data / "conceptnet-100k/data/ConceptNet", []
    for name in ("train", "valid", "test"):
        for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            relation, head, tail = line.split("\t")[:3]
            found.append((head, relation, tail))
    return list(dict.fromkeys(found))


def make(data: Path, seed: int = 0, rows_per_head: int = 40) -> Colours:
    """The rows; heads with two colours are left out.

    Args:
        data: folder of easy-vqa and conceptnet-100k.
    """
    colours = defaultdict(set)
    for head, relation, tail in conceptnet(data):
        if relation == RELATION and tail in COLOURS:
            colours[head].add(tail)
    single = sorted((head, next(iter(of_head))) for head, of_head in colours.items() if len(of_head) == 1)
    rng = np.random.default_rng(seed)
    order = [single[n] for n in rng.permutation(len(single))]
    heads = {"test": dict(order[:39]), "val": dict(order[39:63]), "train": dict(order[63:])}
    # Of one head in eight nothing is known: the right answer is that.
    without = frozenset([head for head, _ in order[63:]][::8])
    pictures = {split: _pictures(data, "test" if split == "test" else "train") for split in heads}
    shapes = {"train": _shapes(data, "train"), "test": _shapes(data, "test")}
    rows: dict[str, list[Asked]] = {}
    for split, of_split in heads.items():
        colour_of = shapes["test" if split == "test" else "train"]
        # No picture of the validation rows is trained on.
        numbers = [n for n in colour_of if split == "test" or (n % 10 == 0) == (split == "val")]
        by_colour = {c: [n for n in numbers if colour_of[n] == c] for c in COLOURS}
        rows[split] = []
        for head, colour in of_split.items():
            others = [n for c in COLOURS if c != colour for n in by_colour[c]]
            half = rows_per_head // 2
            for chosen in (rng.choice(by_colour[colour], half), rng.choice(others, half)):
                rows[split] += [Asked(int(n), head, colour_of[int(n)]) for n in chosen]
    return Colours(heads, without, rows, pictures)


def write_tars(made: Colours, folder: Path) -> None:
    """A tar a split, of samples with one question for each row of a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in made.rows.items():
        colours = {h: c for h, c in made.heads[split].items() if h not in made.without}
        by_image: dict[int, list[Asked]] = defaultdict(list)
        for asked in rows:
            by_image[asked.image].append(asked)
        with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
            for image, of_image in sorted(by_image.items()):
                questions = [{"question": a.question, "answer": made.answer(a, colours)} for a in of_image]
                _add(tar, f"{split}{image:05d}.png", made.pictures[split][image])
                _add(tar, f"{split}{image:05d}.json", json.dumps({"questions": questions}).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


def _shapes(data: Path, split: str) -> dict[int, str]:
    questions = json.loads((data / f"easy-vqa/data/{split}/questions.json").read_text())
    return {int(image): answer for question, answer, image in questions if question == "what color is the shape?"}


def _pictures(data: Path, split: str) -> dict[int, bytes]:
    found = {}
    with tarfile.open(data / f"easy-vqa/{split}_images.tar") as tar:
        for member in tar:
            if member.name.endswith(".png"):
                opened = tar.extractfile(member)
                assert opened is not None
                found[int(Path(member.name).stem)] = opened.read()
    return found
