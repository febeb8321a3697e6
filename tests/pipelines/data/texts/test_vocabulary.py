"""The processor that a training begins with: its labels, and how long a text may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.texts.config import VocabularyConfig
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.data.texts.vocabulary import build_processor, count_text_lengths, share_of_answers_in_vocabulary
from tests.pipelines.data.tar_maker import photo, write_tar
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.task import Task
from vlmodel.tasks import caption, vqa

TASKS: dict[str, Task] = {"": vqa.Config()}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a"], 64)


@pytest.mark.parametrize(
    ("counted", "labels", "share"),
    [
        ({"yes": 6, "no": 3, "mauve": 1}, ["no", "yes", "red"], 0.9),
        ({"Yes": 1, "no.": 1, "mauve": 2}, ["no", "yes"], 0.5),
        ({"mauve": 1}, ["yes"], 0.0),
        ({}, ["yes"], 1.0),
    ],
)
def test_answers_count_as_often_as_they_occur(
    tokenizer: PreTrainedTokenizerFast, counted: dict[str, int], labels: list[str], share: float
) -> None:
    assert (
        share_of_answers_in_vocabulary(counted, VLProcessor(ProcessorConfig(), tokenizer, labels, normalizer="vqa"))
        == share
    )


@pytest.fixture(scope="module")
def index(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Questions of 4 and of 48 words in train, of 90 in val; each word is a token. Answers in several spellings."""
    folder = tmp_path_factory.mktemp("tars")

    def sample(key: str, words: int, answer: str) -> list[tuple[str, bytes]]:
        tree = {"questions": [{"question": " ".join(["cat"] * words), "answer": answer}], "captions": ["cat " * 35]}
        return [(f"{key}.jpg", photo(words)), (f"{key}.json", json.dumps(tree).encode())]

    shards = [("0", 4, "yes"), ("1", 48, "Yes")], [("2", 4, "no"), ("3", 48, "no")]
    for number, samples in enumerate(shards):
        members = [member for sample_ in samples for member in sample(*sample_)]
        write_tar(folder, f"train-{number:06d}.tar", members)
    write_tar(folder, "val-000000.tar", sample("4", 90, "NO"))
    return build_index(str(folder), IndexConfig())


@pytest.fixture
def build(index: Index, tmp_path: Path) -> Callable[..., tuple[VLProcessor, str, list[str]]]:
    """Builds a processor of given settings; it, the line about texts, and what was reported."""

    def make(
        config: ProcessorConfig, tasks: dict[str, Task] = TASKS, most: int | None = None
    ) -> tuple[VLProcessor, str, list[str]]:
        folder, lines = str(tmp_path / "processor"), list[str]()
        made = build_processor(
            [index], VocabularyConfig(size=64), config, tasks, folder, lambda _: (most, None), lines.append
        )
        return made, count_text_lengths([index], made, folder).describe(made.config, config), lines

    return make


def test_the_longest_text_is_the_limit_if_none_is_set(build: Callable[..., tuple[VLProcessor, str, list[str]]]) -> None:
    made, line, _ = build(ProcessorConfig())
    assert made.config.max_tokens == 50
    assert line == "4 texts have up to 50 tokens, and none is cut (processor.max_tokens=50)"
    assert made.are_texts_truncated(["cat " * 48, "cat " * 49]) == [False, True]


def test_a_limit_that_is_set_tells_what_it_cuts(build: Callable[..., tuple[VLProcessor, str, list[str]]]) -> None:
    made, line, _ = build(ProcessorConfig(max_tokens=40))
    assert made.config.max_tokens == 40
    assert line == (
        "2 of 4 texts are longer than 40 tokens and are cut, the longest has 50 "
        "(processor.max_tokens=40; 0 follows the texts as far as the model takes them)"
    )


def test_the_limit_of_the_model_holds(build: Callable[..., tuple[VLProcessor, str, list[str]]]) -> None:
    made, line, _ = build(ProcessorConfig(), most=45)
    assert made.config.max_tokens == 45
    assert "2 of 4 texts are longer than 45 tokens and are cut" in line
    assert "the model takes no more" in line


def test_texts_to_be_written_have_a_limit_of_their_own(
    build: Callable[..., tuple[VLProcessor, str, list[str]]],
) -> None:
    tasks: dict[str, Task] = {"": caption.Config()}
    made, line, _ = build(ProcessorConfig(max_tokens=8), tasks)
    assert (made.config.max_tokens, made.config.max_target_tokens) == (8, 37)
    assert line == "4 texts to be written have up to 37 tokens, and none is cut (processor.max_target_tokens=37)"


def test_answers_that_mean_the_same_are_one_label_and_are_told(
    build: Callable[..., tuple[VLProcessor, str, list[str]]],
) -> None:
    made, _, lines = build(ProcessorConfig())
    assert made.labels == ["no", "yes"]
    assert made.normalizer == "vqa"
    assert lines == [
        "2 answers are 1 labels, as they mean the same by vocabulary.normalizer=vqa ('yes' for 'Yes', 'yes')"
    ]
