"""How long the texts of a training are in tokens, and how many of them the processor cuts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.data.index.index import Index
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.tars.sample import Texts
from pipelines.data.texts.corpus import read_texts
from vlmodel.processor import ProcessorConfig
from vlmodel.task_spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE = "text_lengths.json"
_AT_ONCE = 4096
"""Samples whose texts are tokenized at a time."""


@dataclass(frozen=True)
class TextLengths:
    """How many texts have each number of tokens, special tokens included.

    Attributes:
        read: texts that go into the model.
        written: texts that it learns to write.
    """

    read: Counter[int] = field(default_factory=Counter)
    written: Counter[int] = field(default_factory=Counter)

    @classmethod
    def count(cls, indexes: Iterable[Index], tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, TaskSpec]) -> Self:
        """Those of the training split of the indexes, counted by Ray Data, a task a shard.

        Raises:
            DataError: a shard cannot be read, or has changed since it was indexed.
        """
        total = cls()
        for index in indexes:

            def count(row: dict[str, Any], index: Index = index) -> dict[str, Any]:
                lengths = cls()
                samples = read_texts(index, "train", [row["item"]])
                while some := list(islice(samples, _AT_ONCE)):
                    read, written = _texts(some, tasks.values())
                    lengths.read.update(_lengths(tokenizer, read, special=True))
                    lengths.written.update(n + 2 for n in _lengths(tokenizer, written, special=False))
                # As JSON: a column of Ray Data takes its type from the first rows.
                return {"lengths": lengths.dump()}

            for row in map_shards([shard.name for shard in index.shards if "train" in shard.samples], count):
                of_shard = cls.parse(row["lengths"])
                total.read.update(of_shard.read)
                total.written.update(of_shard.written)
        return total

    def resolve(self, config: ProcessorConfig, longest: int | None, longest_written: int | None) -> ProcessorConfig:
        """The settings with limits that follow these texts where they are to.

        Args:
            longest, longest_written: most tokens that the model takes, and that it can write; None where there is no
                limit.
        """
        return config.resolve(max(self.read, default=0), max(self.written, default=0), longest, longest_written)

    def describe(self, processor: ProcessorConfig, wanted: ProcessorConfig) -> str:
        """One line that says how many texts are cut, and how to change that.

        Args:
            processor: with the limits.
            wanted: as it was configured, where limits may be to follow the data.
        """
        kinds = ((self.read, "texts", "max_tokens"), (self.written, "texts to be written", "max_target_tokens"))
        return "; ".join(
            _describe(lengths, what, setting, getattr(processor, setting), follows=not getattr(wanted, setting))
            for lengths, what, setting in kinds
            if lengths
        )

    def dump(self) -> str:
        """As JSON."""
        return json.dumps({"read": self.read, "written": self.written})

    @classmethod
    def parse(cls, text: str) -> Self:
        """What ``dump`` gave."""
        tree = json.loads(text)
        return cls(*(Counter({int(n): count for n, count in tree[kind].items()}) for kind in ("read", "written")))

    def save(self, folder: str | Path) -> None:
        """Keep them beside a saved processor."""
        partial = Path(folder) / f".{_FILE}.partial"
        partial.write_text(self.dump(), encoding="utf-8")
        partial.rename(Path(folder) / _FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """What ``save`` kept; None where there is nothing."""
        file = Path(folder) / _FILE
        return cls.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def _texts(samples: Sequence[Texts], tasks: Iterable[TaskSpec]) -> tuple[list[str], list[str]]:
    """The texts that go into a model of the tasks, and those that it learns to write."""
    kinds = list(tasks)
    read = {spec.reads for spec in kinds if spec.text}
    written = {spec.reads for spec in kinds if spec.target == "tokens"}
    captions = [caption for texts in samples for caption in texts.captions]
    questions = [question for texts in samples for question in texts.questions]
    return (
        [*(captions if "captions" in read else ()), *(q.question for q in questions if "questions" in read)],
        [
            *(captions if "captions" in written else ()),
            *(q.answer for q in questions if q.answer is not None and "questions" in written),
        ],
    )


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[int]:
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=special, padding=False, truncation=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    return [len(ids) for ids in encoded["input_ids"]]


def _describe(lengths: Counter[int], what: str, setting: str, limit: int, *, follows: bool) -> str:
    longest, total = max(lengths), lengths.total()
    cut = sum(count for length, count in lengths.items() if length > limit)
    if not cut:
        return f"{total} {what} have up to {longest} tokens, and none is cut (processor.{setting}={limit})"
    remedy = "the model takes no more" if follows else "0 follows the texts as far as the model takes them"
    return (
        f"{cut} of {total} {what} are longer than {limit} tokens and are cut, the longest has {longest} "
        f"(processor.{setting}={limit}; {remedy})"
    )
