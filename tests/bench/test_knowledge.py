"""K2: is knowledge used? Edit the fact, and the answer must follow (docs/KNOWLEDGE.md has the figures).

python -m tests.bench.test_knowledge KIND SEEDS STORE STEPS SPLIT edits|plain
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipelines.data.texts.corpus import train_tokenizer
from pipelines.knowledge import snapshot
from pipelines.knowledge.encoder import open_encoder
from pipelines.knowledge.linking import FactLinker, QueryVectorCache
from pipelines.knowledge.snapshot import Snapshot
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import Triple, triple_to_fact
from tests.bench.colour_facts import COLOURS, RELATION, UNKNOWN, Asked, Colours, Form, conceptnet, make
from tests.bench.fact_training import train
from tests.real_weights import minilm
from vlmodel.config import parse_config
from vlmodel.facts import Fact, FactLinkingConfig, FoundFacts, LinkedFact
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

KNOWLEDGE: dict[str, dict[str, Any]] = {
    # A fact that was found by nothing but its vector is of another head.
    "injection": {
        "kind": "injection",
        "max_fact_tokens": 40,
        "link": {"by": "both", "top": 4, "least_similarity": 1.0},
    },
    "before": {
        "kind": "injection",
        "layout": "before",
        "max_fact_tokens": 112,
        "link": {"by": "both", "top": 8, "least_similarity": 1.0},
    },
    "tree": {
        "kind": "injection",
        "layout": "tree",
        "max_fact_tokens": 40,
        "link": {"by": "both", "top": 4, "least_similarity": 1.0},
    },
    "memory": {"kind": "memory", "width": 64, "read": 2, "link": {"by": "both", "top": 8, "least_similarity": 1.0}},
    "none": {"kind": "none"},
}
LABELS = ["yes", "no", UNKNOWN, *COLOURS]
ROWS = 64
FORMS: tuple[Form, ...] = ("same", "same", "fact", "shape")
"""What is asked in training, drawn for each row."""


@dataclass
class Editable:
    """A finder over a store, some facts of which are replaced or withdrawn; the store's own edits are tested elsewhere
    and cost a version each.
    """

    linker: FactLinker
    changed: Callable[[Fact], Fact | None] = lambda fact: fact

    def find_facts(self, texts: Sequence[str], link: FactLinkingConfig) -> FoundFacts:
        found = self.linker.find_facts(texts, link)
        by_text = [
            tuple(replace(one, fact=fact) for one in of_text if (fact := self.changed(one.fact)) is not None)
            for of_text in found.by_text
        ]
        return FoundFacts(found.version, by_text)


def colour_store(folder: Path, made: Colours, data: Path) -> FactStore:
    """All HasProperty facts of ConceptNet-100K but the colours of the heads of which nothing is known."""
    encoder = open_encoder(str(minilm()))
    store = FactStore.create(str(folder), encoder.identity, encoder.width)
    facts = [
        triple_to_fact(Triple(*triple), "conceptnet")
        for triple in conceptnet(data)
        if triple[1] == RELATION and not (triple[0] in made.without and triple[2] in COLOURS)
    ]
    store.put(facts, encoder.encode([fact.text for fact in facts]))
    return store


def model_of(kind: str, facts: Snapshot, made: Colours, seed: int) -> tuple[VLModel, VLProcessor]:
    tree = parse_config(
        ModelConfig,
        {
            "vision": {"name": "resnet18", "stages": 1, "grid": 1, "projection": 64},
            "language": {"width": 64, "depth": 2, "heads": 4, "expansion": 2, "dropout": 0.0, "positions": 144},
            "fusion": {"width": 64, "expansion": 2, "dropout": 0.0, "rounds": 2},
            "knowledge": KNOWLEDGE[kind],
        },
    )
    asked = [replace(one, form=form) for one in made.rows["train"] for form in set(FORMS)]
    texts = [*(one.question for one in asked), *facts.all_facts.texts["text"].to_pylist()]
    tokenizer = train_tokenizer(texts, 4096)
    processor = VLProcessor(
        ProcessorConfig(image_size=16, max_tokens=32),
        tokenizer,
        LABELS,
        tree.task.tasks_by_name(),
        knowledge=tree.knowledge,
    )
    torch.manual_seed(seed)
    return VLModel.create_from_config(tree, processor), processor


def exchanged(
    asked: Asked, example: Example, colour: str | None, made: Colours, rng: np.random.Generator
) -> Example:  # fmt: skip
    """The row with another colour in its fact, or without the fact, and the answer that is right then: what 133 heads
    have could be learned by heart, and would not be read.
    """
    (before,) = example.facts or ((),)
    if colour is None or asked.form == "shape":
        return example
    if all(one.fact.head != asked.head or one.fact.tail != colour for one in before):
        # The fact was not found: nothing says what is right.
        return replace(example, targets=(UNKNOWN,))
    new = None
    if rng.random() >= 1 / 8:
        others = [other for other in COLOURS if other != asked.shape]
        new = asked.shape if rng.random() < 0.5 else str(rng.choice(others))

    def edit(one: LinkedFact) -> LinkedFact | None:
        fact = one.fact
        if fact.head != asked.head or fact.tail != colour:
            return one
        return replace(one, fact=replace(fact, tail=new, text=fact.text.replace(colour, new))) if new else None

    facts = tuple(one for one in map(edit, before) if one is not None)
    return replace(example, facts=(facts,), targets=(made.answer(asked, {asked.head: new}),))


def learn(
    model: VLModel, processor: VLProcessor, made: Colours, steps: int, seed: int, edits: bool,
    say: Callable[[str], object],
) -> None:  # fmt: skip
    """Train on batches of 64 rows: half of them compare picture and fact, the others ask for one of both.

    Args:
        edits: train on edited facts (``exchanged``), as a store is that people edit.
    """
    colours = {h: c for h, c in made.heads["train"].items() if h not in made.without}
    rows, rng = made.rows["train"], np.random.default_rng(seed)
    pixels = {n: {"image": processor.decode_input("image", made.pictures["train"][n])} for n in {r.image for r in rows}}

    questions = sorted({replace(row, form=form).question for row in rows for form in FORMS})
    facts = {one.texts[0]: one.facts for one in processor.link_facts([Example({}, (q,)) for q in questions])}

    def batch(step: int) -> dict[str, Any]:
        chosen = [replace(rows[n], form=FORMS[rng.integers(len(FORMS))]) for n in rng.integers(0, len(rows), ROWS)]
        examples = [Example({}, (a.question,), (made.answer(a, colours),), facts=facts[a.question]) for a in chosen]
        if edits:
            found = zip(chosen, examples, strict=True)
            examples = [exchanged(a, one, colours.get(a.head), made, rng) for a, one in found]
        return processor.collate_tasks([pixels[a.image] for a in chosen], {"": examples})

    train(model, batch, steps, say)


def answers_of(predictor: Predictor, made: Colours, split: str, rows: Sequence[Asked]) -> list[dict[str, float]]:
    """The probabilities of the labels for each row."""
    found: list[dict[str, float]] = []
    rest = iter(rows)
    while batch := list(islice(rest, 64)):
        examples = [Example({"image": made.pictures[split][a.image]}, (a.question,)) for a in batch]
        found += [dict(one.answers) for (one,) in predictor.predict(examples, len(LABELS))]
    return found


def accuracy(answered: Sequence[Mapping[str, float]], right: Sequence[str]) -> float:
    return float(np.mean([max(a, key=a.__getitem__) == r for a, r in zip(answered, right, strict=True)]))


def judge(predictor: Predictor, finder: Editable, made: Colours, split: str) -> dict[str, float]:
    """Accuracy with the store and without, flips of edited facts, and how withdrawn facts are answered."""
    colours, rows = made.heads[split], made.rows[split]
    processor = predictor.processor
    rng = np.random.default_rng(1)
    edited = {head: str(rng.choice([c for c in COLOURS if c != colour])) for head, colour in colours.items()}

    def edit(fact: Fact) -> Fact | None:
        if colours.get(fact.head) != fact.tail:
            return fact
        new = edited[fact.head]
        return replace(fact, tail=new, text=fact.text.replace(fact.tail, new))

    right = [made.answer(a, dict(colours)) for a in rows]
    after = [made.answer(a, dict(edited)) for a in rows]
    processor.finder = finder
    finder.changed = lambda fact: fact
    known = answers_of(predictor, made, split, rows)
    finder.changed = edit
    flipped = answers_of(predictor, made, split, rows)
    finder.changed = lambda fact: None if colours.get(fact.head) == fact.tail else fact
    withdrawn = answers_of(predictor, made, split, rows)
    processor.finder = None
    without = answers_of(predictor, made, split, rows)
    processor.finder = finder
    finder.changed = lambda fact: fact
    must = [n for n, (one, other) in enumerate(zip(right, after, strict=True)) if one != other]
    yes_no = [{k: v for k, v in a.items() if k != UNKNOWN} for a in without]
    unknown = [a[UNKNOWN] for a in known] + [a[UNKNOWN] for a in withdrawn]
    return {
        "with store": accuracy(known, right),
        "edited": accuracy(flipped, after),
        "flips": accuracy([flipped[n] for n in must], [after[n] for n in must]),
        "without store, yes or no": accuracy(yes_no, right),
        "withdrawn: unknown": accuracy(withdrawn, [UNKNOWN] * len(rows)),
        "withdrawn: AUROC": float(roc_auc_score([0] * len(known) + [1] * len(withdrawn), unknown)),
    }


def measure(
    kind: str, seed: int, store: FactStore, made: Colours, steps: int = 400, split: str = "test", edits: bool = True,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, float]:  # fmt: skip
    """Train one model and judge it."""
    linker = FactLinker(snapshot.read_snapshot(store), QueryVectorCache(open_encoder(str(minilm()))))
    model, processor = model_of(kind, linker.snapshot, made, seed)
    finder = Editable(linker)
    processor.finder = finder
    started = time.perf_counter()
    learn(model, processor, made, steps, seed, edits, say)
    seconds = time.perf_counter() - started
    return judge(Predictor(model, processor), finder, made, split) | {"training s": round(seconds, 1)}


@pytest.mark.bench
@pytest.mark.parametrize("kind", ["injection", "memory"])
def test_answers_follow_edited_facts(kind: str, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    shared_data("conceptnet-100k")
    data = shared_data("easy-vqa").parent
    made = make(data)
    figures = measure(kind, 0, colour_store(tmp_path / "store", made, data), made, say=print)
    print(figures)
    assert figures["with store"] >= 0.9
    assert figures["flips"] >= 0.9
    assert abs(figures["without store, yes or no"] - 0.5) <= 0.08


if __name__ == "__main__":
    torch.set_num_threads(1)
    _kind, _seeds, _store = sys.argv[1:4]
    _steps, _split, _edits = int(sys.argv[4]), sys.argv[5], sys.argv[6] == "edits"
    _data = Path(__file__).parents[3] / "shared" / "data"
    _made = make(_data)
    for _seed in _seeds.split(","):
        _found = measure(
            _kind,
            int(_seed),
            FactStore(_store),
            _made,
            _steps,
            _split,
            _edits,
            lambda line: print(line, flush=True),
        )
        print(json.dumps({"kind": _kind, "seed": int(_seed), **_found}), flush=True)
