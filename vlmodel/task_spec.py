"""What a task reads of a sample, as data workers and servers need to know it; told by each decoder's ``Config``.

No torch here: processes that only decode and collate stay small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

from vlmodel.config import Section

V = TypeVar("V")

MATCH, NO_MATCH = "match", "no match"
"""Whether a text belongs to its image, as it is written down here."""

MATCHES = frozenset({MATCH, "matched", "yes", "true", "1", "entailment", "entailed"})
"""Answers that say that a text belongs to its image, in any case of letters; every other one says that it does not."""


def is_match(answer: str) -> bool:
    """Whether an answer says that a text belongs to its image."""
    return answer.strip().lower() in MATCHES


class TaskSpec(Section):
    """What a task reads of a sample."""

    reads: Literal["questions", "captions"]
    """The texts of the sample that make one row each."""
    text: bool = True
    """Whether the text of a row goes into the model. A captioner is given the image only."""
    target: Literal["answer", "tokens", "match", "none"] = "answer"
    """What comes out: one of the known answers; a text, token by token; whether text and image belong together; or
    nothing that the sample would have to say (the pairing is what is learned)."""

    @property
    def needs_image(self) -> bool:
        """Whether a row is about an image, so that texts without one make none."""
        return not self.text or self.target in ("match", "none")

    @property
    def uses_unpaired_images(self) -> bool:
        """Whether an image without texts is of use: something is written about it, or it is one that no text means."""
        return not self.text or self.target == "none"


def stays_on_host(name: str) -> bool:
    """Whether the array ``name`` of a batch goes into the model as numbers (``tolist``) and not as a tensor: it decides
    shapes, and would else have to be waited for.
    """
    return name.rpartition(".")[2] == "distinct_groups_G3"


def split(arrays: Mapping[str, V], task: str) -> dict[str, V]:
    """What a batch holds for ``task``, by its plain names. One task alone is called "" and has no prefix."""
    if not task:
        return {name: value for name, value in arrays.items() if "." not in name}
    prefix = f"{task}."
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def join(task: str, arrays: Mapping[str, V]) -> Iterator[tuple[str, V]]:
    """The inverse of ``split``."""
    prefix = f"{task}." if task else ""
    for name, value in arrays.items():
        yield prefix + name, value
