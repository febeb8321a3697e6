"""Measures how long the training texts are in tokens, and how many of them the processor truncates."""

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
from pipelines.data.texts.corpus import merge_texts_of_tasks, read_texts
from pipelines.storage.folder import StorageFolder
from vlmodel.processor import ProcessorConfig
from vlmodel.sample import SampleTexts
from vlmodel.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE = "count_text_lengths.json"
_CHUNK = 4096
"""Samples whose texts are tokenized at a time."""


@dataclass(frozen=True)
class TextLengths:
    """A histogram of the texts' lengths in tokens, special tokens included.

    Attributes:
        read: texts that are inputs of the model.
        written: texts that it learns to generate.
    """

    read: Counter[int] = field(default_factory=Counter)
    written: Counter[int] = field(default_factory=Counter)

    @classmethod
    def count(cls, indexes: Iterable[Index], tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task]) -> Self:
        """Count the lengths of the texts of the indexes' training split by Ray Data, one task for each shard.

        Raises:
            DataError: a shard cannot be read, or has changed since it was indexed.
        """
        total = cls()
        for index in indexes:

            def count(row: dict[str, Any], index: Index = index) -> dict[str, Any]:
                lengths = cls()
                samples = read_texts(index, "train", [row["item"]])
                while chunk := list(islice(samples, _CHUNK)):
                    read, written = _split_read_and_written_texts(chunk, tasks.values())
                    lengths.read.update(_count_tokens(tokenizer, read, special=True))
                    lengths.written.update(n + 2 for n in _count_tokens(tokenizer, written, special=False))
                # As JSON: a column of Ray Data takes its type from the first rows.
                return {"lengths": lengths.to_json()}

            for row in map_shards([shard.name for shard in index.shards if "train" in shard.sample_counts], count):
                of_shard = cls.from_json(row["lengths"])
                total.read.update(of_shard.read)
                total.written.update(of_shard.written)
        return total

    def set_inferred_limits(
        self, config: ProcessorConfig, longest: int | None, longest_written: int | None, extra: int = 0
    ) -> ProcessorConfig:
        """Return the processor's settings with limits of 0 replaced by what these texts need.

        Args:
            longest, longest_written: most tokens that the model can read and can write; None for no limit.
            extra: tokens that are written beside these texts.
        """
        written = max(self.written, default=0) + extra
        return config.resolve_settings(max(self.read, default=0), written, longest, longest_written)

    def describe(self, processor: ProcessorConfig, wanted: ProcessorConfig) -> str:
        """Describe in one line how many texts are truncated, and how to change that.

        Args:
            processor: with resolved limits.
            wanted: as configured, where limits may be 0.
        """
        kinds = ((self.read, "texts", "max_tokens"), (self.written, "texts to be written", "max_target_tokens"))
        return "; ".join(
            _describe_lengths(lengths, what, setting, getattr(processor, setting), follows=not getattr(wanted, setting))
            for lengths, what, setting in kinds
            if lengths
        )

    def to_json(self) -> str:
        return json.dumps({"read": self.read, "written": self.written})

    @classmethod
    def from_json(cls, text: str) -> Self:
        tree = json.loads(text)
        return cls(*(Counter({int(n): count for n, count in tree[kind].items()}) for kind in ("read", "written")))

    def save(self, folder: str | Path) -> None:
        """Save the lengths beside a saved processor."""
        StorageFolder(folder).write(_FILE, self.to_json().encode())

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Load the lengths that ``save`` wrote; None if there are none."""
        file = Path(folder) / _FILE
        return cls.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def _split_read_and_written_texts(samples: Sequence[SampleTexts], tasks: Iterable[Task]) -> tuple[list[str], list[str]]:
    """Return the texts that a model of the tasks reads, and those that it learns to generate; each once."""
    of_tasks = list(tasks)
    read = [text for texts in samples for text in merge_texts_of_tasks(task.texts_to_read(texts) for task in of_tasks)]
    return read, [
        text for texts in samples for text in merge_texts_of_tasks(task.texts_to_generate(texts) for task in of_tasks)
    ]


def _count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[int]:
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=special, padding=False, truncation=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    return [len(ids) for ids in encoded["input_ids"]]


def _describe_lengths(lengths: Counter[int], what: str, setting: str, limit: int, *, follows: bool) -> str:
    longest, total = max(lengths), lengths.total()
    truncated = sum(count for length, count in lengths.items() if length > limit)
    if not truncated:
        return f"{total} {what} have up to {longest} tokens, and none is cut (processor.{setting}={limit})"
    remedy = "the model takes no more" if follows else "0 follows the texts as far as the model takes them"
    return (
        f"{truncated} of {total} {what} are longer than {limit} tokens and are cut, the longest has {longest} "
        f"(processor.{setting}={limit}; {remedy})"
    )
