"""Reads the texts of a split, counts how often each answer occurs, and trains a tokenizer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data.index.index import Index
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from vlmodel.answers import Normalizer, normalize_for_comparison
from vlmodel.processor import TRAINED_ON_DATA
from vlmodel.sample import SampleTexts
from vlmodel.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SUBWORD = "##"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS_PER_LINE = 1000
_LONGEST_WORD = 100
"""WordPiece turns longer words into [UNK], so they are skipped: the trainer takes minutes for one of a million letters.
"""


def read_texts(index: Index, split: str = "train", shards: Sequence[str] | None = None) -> Iterator[SampleTexts]:
    """Read the texts of each sample of a split, by shard and in tar order; no images are read.

    Args:
        shards: only these; all if not given.

    Raises:
        DataError: a shard cannot be read, or has changed since it was indexed.
    """
    reader = ShardReader(index)
    for name in _shards_of(index, split) if shards is None else shards:
        splits = np.asarray(index.rows(name)["split"].to_pylist())
        yield from reader.read_texts(name, np.flatnonzero(splits == split).tolist())


def iterate_texts_of_split(index: Index, split: str = "train") -> Iterator[str]:
    """Yield every caption, question, conversation turn and class of a split, in the order of the index.

    Raises:
        DataError: as ``read_texts``; also where the split has no samples.
    """
    _require_samples(index, split)
    for texts in read_texts(index, split):
        yield from texts.captions
        for question in texts.questions:
            yield question.question
        yield from (turn.text for turns in texts.conversations for turn in turns)
        if texts.label is not None:
            yield texts.label


def count_labels(index: Index, tasks: Iterable[Task], split: str = "train") -> Counter[str]:
    """Count by Ray Data, one task for each shard, how often each answer that a task may learn as a label occurs in a
    split.

    Raises:
        DataError: as ``iterate_texts_of_split``.
    """
    _require_samples(index, split)
    of_tasks = list(tasks)

    def count_shard_labels(row: dict[str, Any]) -> dict[str, Any]:
        labels: Counter[str] = Counter()
        for texts in read_texts(index, split, [row["item"]]):
            labels.update(merge_texts_of_tasks(task.label_candidates(texts) for task in of_tasks))
        # As JSON: a column of Ray Data takes its type from the first rows.
        return {"counts": json.dumps(labels)}

    total: Counter[str] = Counter()
    for row in map_shards(_shards_of(index, split), count_shard_labels):
        total.update(json.loads(row["counts"]))
    return Counter(dict(sorted(total.items(), key=_sort_by_frequency)))


def merge_texts_of_tasks(of_tasks: Iterable[Iterable[str]]) -> list[str]:
    """Merge the texts of several tasks: each text occurs as often as in the task that has it most often."""
    total: Counter[str] = Counter()
    for texts in of_tasks:
        total |= Counter(texts)
    return list(total.elements())


def most_frequent_answers(
    counter: Mapping[str, int], size: int | None = None, min_count: int = 1, normalizer: Normalizer = "vqa"
) -> list[str]:
    """Return the ``size`` most frequent answers (all if None) that occur at least ``min_count`` times, the most
    frequent first and ties in the order of their characters.

    Args:
        counter: how often each answer occurs.
        normalizer: answers with one normal form are one answer, in its most frequent spelling; among equally frequent
            ones in the normal form, or else in the first.
    """
    counts = Counter[str]()
    for form, spellings in count_spellings(counter, normalizer).items():
        label = min(spellings, key=lambda spelling: (-spellings[spelling], spelling != form, spelling))
        counts[label] = sum(spellings.values())
    ranked = sorted(counts.items(), key=_sort_by_frequency)
    return [answer for answer, count in ranked if count >= min_count][:size]


def count_spellings(counter: Mapping[str, int], normalizer: Normalizer = "vqa") -> dict[str, dict[str, int]]:
    """Count for each normal form of an answer how often each of its spellings occurs."""
    spellings: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for answer, count in counter.items():
        spellings[normalize_for_comparison(answer, normalizer)][answer] = count
    return dict(spellings)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8192, lowercase: bool = True) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer with BERT's special tokens and ``[CLS] x [SEP]`` (``[CLS] a [SEP] b [SEP]`` for
    pairs).

    The same texts, in any order, give the same tokenizer. Words of more than 100 letters are [UNK], as for BERT.

    Args:
        vocab_size: at most; few texts give fewer.

    Raises:
        DataError: there are no texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not words:
        raise DataError("there are no texts to train a tokenizer on; index data with captions or questions first")

    words = Counter({word: count for word, count in words.items() if len(word) <= _LONGEST_WORD})
    alphabet = _most_frequent_letters(words, limit=max(1, vocab_size // 4))
    # The trainer numbers the inner letters (##a) in the order of a hash map, which differs from run to run, and breaks
    # ties between merges by these numbers. Given as special tokens, they are numbered in the order of this list.
    first_tokens = [*_SPECIAL, *(_SUBWORD + letter for letter in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=first_tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_SUBWORD,
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_lines_of_repeated_words(words), trainer)

    vocabulary = learner.get_vocab()
    pieces = models.WordPiece(
        vocabulary,
        unk_token="[UNK]",
        max_input_chars_per_word=_LONGEST_WORD,
        continuing_subword_prefix=_SUBWORD,
    )
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece(prefix=_SUBWORD)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    named = {f"{token.strip('[]').lower()}_token": token for token in _SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, **{TRAINED_ON_DATA: True})


def _most_frequent_letters(words: Mapping[str, int], limit: int) -> list[str]:
    """Return the most frequent letters in the words, sorted."""
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    ranked = sorted(letters.items(), key=_sort_by_frequency)
    return sorted(letter for letter, _ in ranked[:limit])


def _lines_of_repeated_words(words: Mapping[str, int]) -> Iterator[str]:
    """Write lines that repeat each word as often as it occurs, of a length that the trainer handles quickly."""
    for word, count in sorted(words.items()):
        for start in range(0, count, _WORDS_PER_LINE):
            yield " ".join([word] * min(_WORDS_PER_LINE, count - start))


def _require_samples(index: Index, split: str) -> None:
    counts = index.counts()
    if not counts.get(split):
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DataError(f"{index.tars!r} has no samples of split {split!r} (there are {listed}); choose another split")


def _shards_of(index: Index, split: str) -> list[str]:
    return [shard.name for shard in index.shards if split in shard.sample_counts]


def _sort_by_frequency(item: tuple[str, int]) -> tuple[int, str]:
    answer, count = item
    return -count, answer
