"""What a task reads of a sample, as each decoder's ``Config`` declares it for data workers and servers.

torch is not imported here: processes that only decode and collate stay small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

from vlmodel.config import Section

V = TypeVar("V")

MATCH, NO_MATCH = "match", "no match"
"""The answers of a matching task."""

MATCHES = frozenset({MATCH, "matched", "yes", "true", "1", "entailment", "entailed"})
"""Answers that mean that a text belongs to its image, in lower case; all others mean that it does not."""


def is_match(answer: str) -> bool:
    """Whether an answer means that a text belongs to its image."""
    return answer.strip().lower() in MATCHES


class TaskSpec(Section):
    """What a task reads of a sample."""

    reads: Literal["questions", "captions"]
    """The texts of the sample that make one row each."""
    text: bool = True
    """Whether the model gets the text of a row. A captioner gets the image only."""
    target: Literal["answer", "tokens", "match", "none"] = "answer"
    """What the model predicts: one of the known answers; a text, token by token; whether text and image belong
    together; or nothing beyond the pairing of images and texts itself."""

    @property
    def needs_image(self) -> bool:
        """Whether the task can use no text without an image."""
        return not self.text or self.target in ("match", "none")

    @property
    def uses_unpaired_images(self) -> bool:
        """Whether the task can use an image without text: to caption it, or as a contrastive negative."""
        return not self.text or self.target == "none"


def stays_on_host(name: str) -> bool:
    """Whether the model takes the array ``name`` of a batch as Python numbers (``tolist``): it decides shapes, and
    reading a tensor would wait for the device.
    """
    return name.rpartition(".")[2] == "distinct_groups_G3"


def split(arrays: Mapping[str, V], task: str) -> dict[str, V]:
    """The arrays of a batch for ``task``, by their plain names. A single task is called "" and has no prefix."""
    if not task:
        return {name: value for name, value in arrays.items() if "." not in name}
    prefix = f"{task}."
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def join(task: str, arrays: Mapping[str, V]) -> Iterator[tuple[str, V]]:
    """The inverse of ``split``."""
    prefix = f"{task}." if task else ""
    for name, value in arrays.items():
        yield prefix + name, value
