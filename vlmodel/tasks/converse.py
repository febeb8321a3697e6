"""Task ``converse``: the model generates each turn of the assistant, given the turns before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.answers import Normalizer
from vlmodel.config import part_field
from vlmodel.conversation import (
    Conversation,
    conversation_from_text,
    conversation_to_json,
    drop_oldest_turns,
    format_transcript,
)
from vlmodel.judging import AnsweredRows, ExampleAnswer, Judgement, Metrics
from vlmodel.metrics.scores import ExampleScores
from vlmodel.operations.ask import VQAOperation
from vlmodel.operations.base import Operation
from vlmodel.operations.chat import ChatOperation
from vlmodel.sample import Sample, SampleTexts
from vlmodel.task import TaskRow
from vlmodel.tasks._generation import GenerationTask
from vlmodel.tasks._judging import BaselineComparisons, example_answers, rows_with_target
from vlmodel.tasks._texts import answers_of, question_rows, questions_of


class Config(GenerationTask):
    """Settings of a language model that replies in conversations. A question of the data is a conversation of
    one turn.
    """

    learns_baseline: ClassVar[bool] = True
    operations: ClassVar[tuple[Operation, ...]] = (VQAOperation(), ChatOperation())

    kind: Literal["converse"] = "converse"
    head: part_field("vlmodel.heads", "llm") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """The language model."""
    history: int = Field(4000, ge=1)
    """Letters of a conversation of the data that a reply is given: of a longer one the oldest turns are left out. Those
    of a request are all read, or it is refused."""

    @model_validator(mode="after")
    def _check_head(self) -> Config:
        if not self.text_head.accepts_conversations():
            raise ValueError(
                f"head.kind={self.text_head.kind!r} reads no conversation; use head.kind='llm', or task.kind='answer'"
            )
        return self

    @property
    def learning_requirement(self) -> str:
        return "conversations or questions"

    def can_answer(self, present: frozenset[str]) -> bool:
        return not present.isdisjoint(("conversations", "questions"))

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Make a row of each turn of the assistant, and of each question."""
        return [
            [row for turns in sample.texts.conversations for row in self._replies(turns)] + questions
            for sample, questions in zip(samples, question_rows(samples), strict=True)
        ]

    def rows_to_answer(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Make the rows of training, and one for a last turn of the user that has no reply."""
        asked = [
            [self._reply_row(turns, None) for turns in sample.texts.conversations if turns[-1].role == "user"]
            for sample in samples
        ]
        return [rows + last for rows, last in zip(self.training_rows(samples), asked, strict=True)]

    def texts_to_read(self, texts: SampleTexts) -> Iterable[str]:
        yield from questions_of(texts)
        yield from (turn.text for turns in texts.conversations for turn in turns if turn.role != "assistant")

    def texts_to_generate(self, texts: SampleTexts) -> Iterable[str]:
        yield from answers_of(texts)
        yield from (turn.text for turns in texts.conversations for turn in turns if turn.role == "assistant")

    def learn_baseline(self, samples: Iterable[SampleTexts], normalizer: Normalizer) -> dict[str, Any]:
        """Find the most typical reply, which the baseline gives to everything."""
        from vlmodel.metrics.captions import most_typical_caption

        try:
            return {"reply": most_typical_caption(text for texts in samples for text in self.texts_to_generate(texts))}
        except ValueError as error:
            raise ValueError(f"replies stand beside the most typical one of the training split: {error}") from None

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each reply by ROUGE-L; rows whose right reply has no words are left out."""
        from vlmodel.metrics.captions import rouge_l_per_text, tokenize_caption

        row_N = np.flatnonzero([bool(row.target) and bool(tokenize_caption(row.target or "")) for row in answered.rows])
        targets = [[answered.rows[n].target or ""] for n in row_N.tolist()]
        score_N = rouge_l_per_text([answered.predicted[n] for n in row_N.tolist()], targets)
        return ExampleScores.with_one_group(score_N, answered.sample_N, row_N, binary=False)

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute ROUGE-L, BLEU and CIDEr-D of the replies."""
        from vlmodel.metrics.captions import caption_scores, tokenize_caption

        assert baseline is not None
        with_target = rows_with_target(answered, "turn")
        with_words = [n for n, target in enumerate(with_target.targets) if tokenize_caption(target or "")]
        known = rows_with_target(with_target.select_rows(with_words), "turn")

        def metrics_of(given: AnsweredRows) -> Metrics:
            return caption_scores(given.predicted, [[target or ""] for target in given.targets])

        compared = BaselineComparisons(known, metrics_of, partial(self.score_rows, normalizer=normalizer))
        compared.add_baseline("constant_reply", "one reply to everything", [baseline["reply"]] * len(known))
        compared.add_shuffled_baseline()
        notes = [f'constant reply: "{baseline["reply"]}"', f"{len(set(known.predicted))} different replies"]
        return compared.to_judgement("turns", "rouge_l", metrics_of(known), notes)

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        titles = [format_transcript(conversation_from_text(row.text)).removeprefix("user: ") for row in answered.rows]
        made = example_answers(answered, lambda target, best: None)
        return [replace(example, title=titles[example.row]) for example in made]

    def _replies(self, turns: Conversation) -> Iterable[TaskRow]:
        for n, turn in enumerate(turns):
            if turn.role == "assistant":
                yield self._reply_row(turns[:n], turn.text)

    def _reply_row(self, before: Conversation, reply: str | None) -> TaskRow:
        references = () if reply is None else (reply,)
        return TaskRow(conversation_to_json(drop_oldest_turns(before, self.history)), reply, references)
