"""Task ``answer``: visual question answering in which the answer is generated, and not chosen from a list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from vlmodel.operations.base import Operation
from vlmodel.operations.chat import ChatOperation
from vlmodel.sample import SampleTexts
from vlmodel.tasks._answering import QuestionTask
from vlmodel.tasks._generation import GenerationTask
from vlmodel.tasks._texts import answers_of


class Config(QuestionTask, GenerationTask):
    """Settings of a head that generates answers."""

    operations: ClassVar[tuple[Operation, ...]] = (*QuestionTask.operations, ChatOperation())

    kind: Literal["answer"] = "answer"

    def texts_to_generate(self, texts: SampleTexts) -> Iterable[str]:
        return answers_of(texts)
