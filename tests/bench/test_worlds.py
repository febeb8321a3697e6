"""K1: can what is seen be looked up among facts that are drawn anew for each scene? (docs/KNOWLEDGE.md: figures.)

python -m tests.bench.test_worlds memory|injection|none SEEDS STEPS FACTS val|test
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data.texts.corpus import train_tokenizer
from tests.bench.fact_training import train
from tests.bench.worlds import LABELS, NAMES, PLACES, QUESTIONS, SIDE, THINGS, Scene, draw_scene
from vlmodel.config import parse_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

FACTS = 64
ROWS = 32
KNOWLEDGE: dict[str, dict[str, Any]] = {
    "memory": {"kind": "memory", "width": 64, "read": 1, "max_fact_tokens": 14, "link": {"by": "names", "top": 1024}},
    "injection": {
        "kind": "injection",
        "layout": "before",
        "max_fact_tokens": 14 * FACTS,
        "link": {"by": "names", "top": FACTS},
    },
    "none": {"kind": "none"},
}


def model_of(kind: str, seed: int) -> tuple[VLModel, VLProcessor]:
    positions = 14 * FACTS + 16 if kind == "injection" else 32
    tree = parse_config(
        ModelConfig,
        {
            "vision": {"name": "resnet18", "stages": 1, "grid": 1, "projection": 64},
            "language": {"width": 64, "depth": 1, "heads": 4, "expansion": 2, "dropout": 0.0, "positions": positions},
            "fusion": {"width": 64, "expansion": 2, "dropout": 0.0, "rounds": 1},
            "knowledge": KNOWLEDGE[kind],
        },
    )
    heads = [f"{colour} {shape} on {place}" for colour, shape in THINGS for place in PLACES]
    texts = [*QUESTIONS.values(), *(f"the {head} belongs to {name}" for head in heads for name in NAMES)]
    tokenizer = train_tokenizer(texts, 1024)
    config = ProcessorConfig(image_size=SIDE, max_tokens=12)
    processor = VLProcessor(config, tokenizer, LABELS, tree.task.tasks_by_name(), knowledge=tree.knowledge)
    torch.manual_seed(seed)
    return VLModel.create_from_config(tree, processor), processor


def asked(scenes: Sequence[Scene], questions: Sequence[str]) -> list[Example]:
    return [
        Example({"image": scene.picture}, (QUESTIONS[question],), (scene.answer(question),), facts=(scene.facts,))
        for scene, question in zip(scenes, questions, strict=True)
    ]


def learn(
    model: VLModel, processor: VLProcessor, steps: int, seed: int, facts: int, say: Callable[[str], object]
) -> None:
    """Train on scenes that are drawn as they are needed, with 2 to ``facts`` facts: among few the one that decides is
    found sooner. A quarter of the questions is about colour or shape.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = ("owner",) * 6 + ("colour", "shape")

    def batch(step: int) -> dict[str, Any]:
        count = int(round(2 ** rng.uniform(1, np.log2(facts)))) if step < 0.8 * steps else facts
        scenes = [draw_scene(rng, count) for _ in range(ROWS)]
        examples = asked(scenes, [drawn[n] for n in rng.integers(0, len(drawn), ROWS)])
        return processor.collate_tasks([processor.decode_inputs(one) for one in examples], {"": examples})

    train(model, batch, steps, say)


def accuracy(predictor: Predictor, examples: Sequence[Example]) -> float:
    right = []
    for start in range(0, len(examples), ROWS):
        batch = examples[start : start + ROWS]
        found = predictor.predict(batch, 1)
        right += [one.answers[0][0] == of.targets[0] for (one,), of in zip(found, batch, strict=True)]
    return float(np.mean(right))


def judge(predictor: Predictor, split: str, rows: int = 512) -> dict[str, float]:
    """Accuracy with as many facts as in training, with 1,024, with edited ones and without any; and of what is asked of
    the picture alone.
    """
    rng = np.random.default_rng({"val": 7001, "test": 7002}[split])
    scenes = [draw_scene(rng, FACTS) for _ in range(rows)]
    owner = ["owner"] * rows
    edited = [scene.edited(str(rng.choice([n for n in NAMES if n != scene.owner]))) for scene in scenes]
    found = {
        "with 64 facts": accuracy(predictor, asked(scenes, owner)),
        "edited": accuracy(predictor, asked(edited, owner)),
        "colour": accuracy(predictor, asked(scenes, ["colour"] * rows)),
        "shape": accuracy(predictor, asked(scenes, ["shape"] * rows)),
        "without": accuracy(
            predictor, [Example(e.inputs, e.texts, e.targets, facts=((),)) for e in asked(scenes, owner)]
        ),
    }
    if predictor.processor.knowledge.gives_stream:
        more = [draw_scene(rng, 1024) for _ in range(rows // 2)]
        found["with 1,024 facts"] = accuracy(predictor, asked(more, owner[: len(more)]))
    return found


def measure(
    kind: str, seed: int, steps: int, facts: int = FACTS, split: str = "test",
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, float]:  # fmt: skip
    """Train one model and judge it."""
    model, processor = model_of(kind, seed)
    started = time.perf_counter()
    learn(model, processor, steps, seed, facts, say)
    seconds = time.perf_counter() - started
    return judge(Predictor(model, processor), split) | {"training s": round(seconds, 1)}


@pytest.mark.bench
def test_what_is_seen_is_looked_up() -> None:
    figures = measure("memory", 0, 1500, say=print)
    print(figures)
    assert figures["with 64 facts"] >= 0.95
    assert figures["edited"] >= 0.95
    assert figures["with 64 facts"] - figures["with 1,024 facts"] <= 0.05
    assert abs(figures["without"] - 1 / len(NAMES)) <= 0.04


if __name__ == "__main__":
    torch.set_num_threads(1)
    _kind, _seeds, _steps, _facts, _split = sys.argv[1:6]
    for _seed in _seeds.split(","):
        _found = measure(_kind, int(_seed), int(_steps), int(_facts), _split, lambda line: print(line, flush=True))
        print(json.dumps({"kind": _kind, "seed": int(_seed), **_found}), flush=True)
