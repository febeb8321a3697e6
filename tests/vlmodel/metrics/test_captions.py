"""Caption figures against a second library, by hand, and on captions that are odd."""

from __future__ import annotations

import math
import random

import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
from torchmetrics.functional.text import bleu_score

from vlmodel.metrics.captions import (
    caption_scores,
    consensus_captions,
    drop_wordless_references,
    most_typical_caption,
    tokenize_caption,
)

PREDICTED = [
    "A man's dog runs on the grass.",
    "two people sit at a table",
    "a plate of food with a fork and a knife and a spoon",
    "A red bus, parked.",
]
REFERENCES = [
    ["A dog runs across the grass.", "The man's dog is running on the green grass", "A dog running"],
    ["Two people are sitting at a table.", "People sit at a wooden table in a room"],
    ["A plate of food with a fork.", "a plate with food, a fork and a knife on the side of it"],
    ["A red double-decker bus is parked in the street.", "A parked red bus"],
]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        # as the Java program of the COCO evaluation gives them
        ("Two ducks floating in a green, grassy pond.", "two ducks floating in a green grassy pond"),
        ("The man in the t-shirt isn't riding a bus.", "the man in the t-shirt is n't riding a bus"),
        ('A girl with a "Hello Kitty" backpack & shoes', "a girl with a hello kitty backpack & shoes"),
        ("Two men (one with a hat) play Wii - they're good!", "two men one with a hat play wii they 're good"),
        ("A plate of food... with broccoli; carrots", "a plate of food with broccoli carrots"),
        ("There is a dog. It cannot swim. He's wet.", "there is a dog it can not swim he 's wet"),
        ("A 3-D poster costs $5.99 at 5:30", "a 3-d poster costs $ 5.99 at 5:30"),
        ("A cup of café  au lait\n", "a cup of café au lait"),
        ("cafe\u0301", "café"),
        ("Собака бежит по траве.", "собака бежит по траве"),
        ("कुत्ता दौड़ रहा है।", "कुत्ता दौड़ रहा है"),
        # otherwise than there
        ("一只狗，在草地上跑。", "一 只 狗 在 草 地 上 跑"),
        ("", ""),
        (" ... !? “” ", ""),
    ],
)
def test_words_are_those_of_the_coco_evaluation(caption: str, words: str) -> None:
    assert tokenize_caption(caption) == words


def test_bleu_is_that_of_other_libraries() -> None:
    scores = caption_scores(PREDICTED, REFERENCES)
    words = [tokenize_caption(caption) for caption in PREDICTED]
    truths = [[tokenize_caption(caption) for caption in captions] for captions in REFERENCES]
    assert 0.2 < scores["bleu_4"] < scores["bleu_1"] < 1
    for n in range(1, 5):
        by_nltk = corpus_bleu(
            [[truth.split() for truth in captions] for captions in truths],
            [caption.split() for caption in words],
            weights=[1 / n] * n,
            smoothing_function=SmoothingFunction().method0,
        )
        assert scores[f"bleu_{n}"] == pytest.approx(by_nltk, abs=1e-6)
        assert scores[f"bleu_{n}"] == pytest.approx(bleu_score(words, truths, n_gram=n).item(), abs=1e-6)


def test_bleu_is_shortened_for_short_captions() -> None:
    assert caption_scores(["a dog"], [["a dog runs on grass"]])["bleu_1"] == pytest.approx(math.exp(1 - 5 / 2))


def test_rouge_by_hand() -> None:
    precision, recall = 2 / 4, 2 / 3
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)  # beta 1.2
    assert caption_scores(["A dog runs fast."], [["a dog walks"]])["rouge_l"] == pytest.approx(expected)


def test_cider_by_hand() -> None:
    references = [["red car"], ["blue dog"]]
    # Both words and the pair of them agree, and there are no three or four words: half of ten.
    assert caption_scores(["Red car.", "blue dog"], references)["cider"] == pytest.approx(5)
    # One of two equally rare words, one pair of words fewer than the reference has.
    first = 10 / 4 / math.sqrt(2) * math.exp(-1 / 72)
    assert caption_scores(["red", "green"], references)["cider"] == pytest.approx(first / 2)


def test_words_that_every_image_has_count_nothing_in_cider() -> None:
    assert caption_scores(["a", "a"], [["a car"], ["a dog"]])["cider"] == 0


def test_equal_captions_are_perfect() -> None:
    scores = caption_scores([captions[0] for captions in REFERENCES], REFERENCES)
    assert [scores[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
    assert scores["rouge_l"] == pytest.approx(1)
    alone = caption_scores(
        ["a dog runs on grass", "the cat sits in there"], [["A dog runs on grass!"], ["The cat sits in there"]]
    )
    assert alone["cider"] == pytest.approx(10)


@pytest.mark.parametrize("nothing", ["", "  ", "...", "\ufffd"])
def test_a_caption_without_words_counts_nothing(nothing: str) -> None:
    assert caption_scores([nothing] * 4, REFERENCES) == {
        "bleu_1": 0, "bleu_2": 0, "bleu_3": 0, "bleu_4": 0, "rouge_l": 0, "cider": 0
    }  # fmt: skip
    one = caption_scores([PREDICTED[0], nothing, *PREDICTED[2:]], REFERENCES)
    both = caption_scores(PREDICTED, REFERENCES)
    assert all(0 < one[name] < both[name] for name in both)


def test_another_script_is_scored() -> None:
    references = [["一只狗在草地上跑。", "狗在跑"], ["Собака бежит по траве."]]
    scores = caption_scores(["一只狗在跑", "собака бежит"], references)
    assert scores["bleu_1"] > 0.4
    assert scores["rouge_l"] > 0.5
    assert scores["cider"] > 1
    assert caption_scores(["cat", "dog"], references)["rouge_l"] == 0


def test_references_without_words_are_left_out() -> None:
    assert caption_scores(["", "a dog"], [["...", "a cat"], ["a dog"]])["rouge_l"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("predicted", "references", "message"),
    [
        (["a", "b"], [["a"], []], r"references\[1\] is \[\]; 1 of 2 images"),
        (["a"], [["?!"]], r"references\[0\] is \['\?!'\]"),
    ],
)
def test_input_that_cannot_be_scored(predicted: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption_scores(predicted, references)


CAPTIONS = ["A man on a horse.", "a man rides a horse", "A man rides a brown horse", "zebras graze", "pizza"]


def test_the_constant_caption_is_the_one_most_like_all() -> None:
    assert most_typical_caption(CAPTIONS) == "a man rides a horse"
    assert most_typical_caption(CAPTIONS[::-1]) == "a man rides a horse"
    assert most_typical_caption([*CAPTIONS, *["zebras graze on dry grass"] * 6]) == "zebras graze on dry grass"
    assert most_typical_caption(["zebra", "apple"]) == most_typical_caption(["apple", "zebra"]) == "apple"


def test_the_consensus_is_what_most_neighbours_say() -> None:
    dogs = ["a cat", "a dog runs on grass", "a dog runs on the grass", "a dog runs"]
    assert consensus_captions([dogs, ["two men"], [], ["!", "?"]]) == ["a dog runs on grass", "two men", "", "!"]
    assert consensus_captions([["..."], []]) == ["...", ""]
    assert consensus_captions([dogs[::-1]])[0] in dogs[1:]


def test_the_constant_caption_is_a_better_baseline_than_most() -> None:
    rng = random.Random(0)
    kinds = (["a man", "a man", "a dog"], ["on", "on", "under"], ["a bench", "a bench", "a table", "the grass"])
    images = [[" ".join(map(rng.choice, kinds)) for _ in range(2)] for _ in range(30)]
    captions = sorted({caption for pair in images for caption in pair})
    cider = {caption: caption_scores([caption] * 30, images)["cider"] for caption in captions}
    chosen = cider[most_typical_caption(caption for pair in images for caption in pair)]
    assert sum(value >= chosen for value in cider.values()) <= len(captions) // 4


def test_of_many_captions_a_sample_is_looked_at() -> None:
    captions = [f"caption number {n}" for n in range(50)]
    chosen = [most_typical_caption(captions, limit=1, seed=seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(chosen) < set(captions)


@pytest.mark.parametrize("captions", [[], ["", "..."]])
def test_a_constant_caption_needs_words(captions: list[str]) -> None:
    with pytest.raises(ValueError, match=f"none of the {len(captions)} captions has a word"):
        most_typical_caption(captions)


def test_references_without_a_word_are_left_out() -> None:
    assert drop_wordless_references([["...", "a dog"], ["?!"], [], ["a", "b"]]) == [["a dog"], [], [], ["a", "b"]]
