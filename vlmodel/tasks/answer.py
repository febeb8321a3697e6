"""Visual question answering by generation: the answer is generated, and not chosen from a list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vlmodel.sample import Texts
from vlmodel.tasks._answering import QuestionTask
from vlmodel.tasks._generation import GenerationTask
from vlmodel.tasks._texts import answers_of


class Config(QuestionTask, GenerationTask):
    """A decoder that generates answers."""

    kind: Literal["answer"] = "answer"

    def texts_written(self, texts: Texts) -> Iterable[str]:
        return answers_of(texts)
