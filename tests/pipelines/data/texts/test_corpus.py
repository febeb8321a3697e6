"""Texts and answers of a split, and a tokenizer that is the same in every run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.texts.corpus import count_labels, iterate_texts_of_split, most_frequent_answers, train_tokenizer
from pipelines.errors import DataError
from tests.pipelines.data.tar_maker import photo, write_tar
from vlmodel.tasks import vqa

SENTENCES = [
    f"The {color} {shape} is {place} the box, isn't it? Ça va {n}"
    for n, (color, shape, place) in enumerate(
        (c, s, p) for c in ("red", "green", "bluish") for s in ("circle", "triangle") for p in ("above", "beneath")
    )
]


@pytest.fixture(scope="module")
def index(ray_local, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("tars")

    def sample(n: int, answers: list[str | None]):
        questions = [{"question": f"q{n}.{i}", "answer": answer} for i, answer in enumerate(answers)]
        tree = {"captions": [f"c{n}"], "questions": questions}
        return [(f"{n}.jpg", photo(n)), (f"{n}.json", json.dumps(tree).encode())]

    write_tar(folder, "train-000001.tar", [*sample(3, ["no", "red"]), *sample(4, ["no", "no"])])
    write_tar(folder, "train-000000.tar", [*sample(1, ["yes", None]), *sample(2, ["red", "blue"])])
    write_tar(folder, "test-000000.tar", sample(5, ["green"]))
    write_tar(folder, "val-000000.tar", [("6.jpg", photo(6)), ("6.txt", b"c6")])
    return build_index(str(folder), IndexConfig())


def test_corpus_is_the_texts_in_the_order_of_the_index(index):
    assert list(iterate_texts_of_split(index)) == [t for n in (1, 2, 3, 4) for t in (f"c{n}", f"q{n}.0", f"q{n}.1")]
    assert list(iterate_texts_of_split(index, "val")) == ["c6"]
    with pytest.raises(DataError, match=r"no samples of split 'dev' .*train: 4"):
        list(iterate_texts_of_split(index, "dev"))


def test_answers_are_counted(index):
    counts = count_labels(index, [vqa.Config()])
    assert counts == Counter({"no": 3, "red": 2, "blue": 1, "yes": 1})
    assert list(counts) == ["no", "red", "blue", "yes"]
    assert count_labels(index, [vqa.Config()], "val") == Counter()


def test_answer_vocabulary():
    counter = Counter({"b": 2, "a": 2, "z": 5, "rare": 1})
    assert most_frequent_answers(counter) == ["z", "a", "b", "rare"]
    assert most_frequent_answers(counter, 2) == ["z", "a"]
    assert most_frequent_answers(counter, None, min_count=2) == ["z", "a", "b"]


def test_answers_that_mean_the_same_are_one_answer():
    spelled = Counter({"yes": 1, "Yes": 1, "YES": 1, "yes.": 1, "no": 3, "No": 1, "Two": 1})
    assert most_frequent_answers(spelled) == ["no", "yes", "Two"]
    assert most_frequent_answers(spelled, min_count=2) == ["no", "yes"]
    assert most_frequent_answers(Counter({"Paris": 2, "paris": 1})) == ["Paris"]  # as most people wrote it
    assert most_frequent_answers(Counter("ABCA")) == ["A", "B", "C"]  # choices, of which one is an article
    assert most_frequent_answers(spelled, normalizer="none") == ["no", "No", "Two", "YES", "Yes", "yes", "yes."]


def test_tokenizer_knows_its_corpus():
    tokenizer = train_tokenizer(SENTENCES, vocab_size=500)
    ids = tokenizer("The RED circle", "is it?")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "red", "circle", "[SEP]", "is", "it", "?", "[SEP]"]
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert tokenizer("ça")["input_ids"] == tokenizer("CA")["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("日")["input_ids"]
    assert tokenizer.decode(tokenizer("circlet", add_special_tokens=False)["input_ids"]) == "circlet"
    assert tokenizer("a", padding="max_length", max_length=5)["input_ids"][-1] == tokenizer.pad_token_id
    cased = train_tokenizer(SENTENCES, vocab_size=500, lowercase=False)
    assert cased.convert_ids_to_tokens(cased("The")["input_ids"]) == ["[CLS]", "The", "[SEP]"]
    assert len(train_tokenizer(SENTENCES, vocab_size=80)) <= 80
    with pytest.raises(DataError, match="no texts"):
        train_tokenizer([])


def test_words_of_too_many_letters_teach_nothing():
    """The trainer would take minutes for a word of a million letters, which the tokenizer reads as [UNK] anyway."""
    noise = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (2, 200_000))
    long = ["".join(letters) for letters in noise]
    tokenizer = train_tokenizer([*SENTENCES, *long, "x" * 101], vocab_size=500)
    assert tokenizer.get_vocab() == train_tokenizer(SENTENCES, vocab_size=500).get_vocab()
    ids = tokenizer(f"red {'e' * 101} red")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "red", "[UNK]", "red", "[SEP]"]
    ids = tokenizer("e" * 100)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert set(train_tokenizer(long).get_vocab()) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(SENTENCES)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded(SENTENCES, padding=True)["input_ids"] == tokenizer(SENTENCES, padding=True)["input_ids"]


def test_tokenizer_is_the_same_in_every_process_and_order():
    """The trainer of the library alone gives another vocabulary in every process."""
    code = (
        "import hashlib, json, sys; from pipelines.data.texts.corpus import train_tokenizer;"
        "vocabulary = train_tokenizer(json.loads(sys.argv[1]), vocab_size=120).get_vocab();"
        "print(hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest())"
    )
    vocabulary = train_tokenizer(SENTENCES, vocab_size=120).get_vocab()
    expected = hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()
    command = [sys.executable, "-c", code, json.dumps(SENTENCES[::-1])]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert found.stdout.strip() == expected
