"""The sample: named inputs of one key, each optional, and all texts about them.

torch is not imported here: processes that only read and collate stay small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vlmodel.conversation import Conversation

TEXTS = frozenset({"captions", "questions", "conversations", "class"})
"""The names in ``Sample.present`` that stand for texts; the others are inputs."""


@dataclass(frozen=True)
class Question:
    """A question about the sample, with its answers if known.

    Attributes:
        question: never blank.
        answer: the answer to learn, or None where it is unknown (a test set).
        answers: every annotator's answer (ten in VQA v2), for soft targets and consensus metrics; may be empty.
        id: the source's own identifier.
    """

    question: str
    answer: str | None = None
    answers: tuple[str, ...] = ()
    id: str | None = None


@dataclass(frozen=True)
class SampleTexts:
    """All texts of one sample, in the source's order; ``SampleTexts()`` if it has none.

    Attributes:
        label: the sample's class ("class" in its JSON, or ``KEY.cls``), never blank; None where it is unknown.
        conversations: valid ones (``conversation.find_turn_fault``), with at least one turn of the user.
    """

    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    label: str | None = None
    conversations: tuple[Conversation, ...] = ()

    @property
    def present_kinds(self) -> tuple[str, ...]:
        """The kinds of texts that the sample has, by their names in ``TEXTS``."""
        has = {
            "captions": self.captions,
            "questions": self.questions,
            "conversations": self.conversations,
            "class": self.label,
        }
        return tuple(name for name, texts in has.items() if texts)


class Sample(NamedTuple):
    """One sample: its key, inputs and texts.

    Attributes:
        inputs: the encoded bytes of each input that was read, by its name, such as "image".
        texts: its texts, if they were read.
        present: what it has, read or not: the names of its inputs, and those of ``TEXTS``.
        split: train, val or test; samples of different splits may share a key.
    """

    key: str
    inputs: Mapping[str, bytes]
    texts: SampleTexts
    present: frozenset[str]
    split: str = ""
