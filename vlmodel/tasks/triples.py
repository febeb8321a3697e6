"""Task ``triples``: learns facts by heart; the language encoder embeds head and relation of a fact near its tail.

What a model knows so is in its weights: an edit of a fact needs a training. It is for facts that are too many to be
looked up, or for a service without a store; ``model.knowledge`` is for those that are edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from vlmodel.answers import Normalizer
from vlmodel.judging import AnsweredRows, BaselineScores, ExampleAnswer, Judgement, NoScorableRowsError
from vlmodel.metrics.scores import ExampleScores
from vlmodel.metrics.triples import HITS, filtered_ranks, link_metrics
from vlmodel.sample import TEXTS, Sample, SampleTexts
from vlmodel.task import Task, TaskRow

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vlmodel.facts import LinkedFact
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Answers, Decoder
    from vlmodel.processor import Example, VLProcessor
    from vlmodel.tokens import DecoderInput

_TAIL = "tail"


class Config(Task):
    """Settings of learning facts: head and relation are a question, "strawberry has property", and the tail is its
    answer, "red". They come from samples with questions and no inputs, as the importer ``facts`` makes them. Both are
    encoded by ``model.language``, which other tasks share. It is KEPLER (Wang et al. 2021, arXiv:1911.06136) without
    masked words, with the softmax over the batch's tails of SimKGC (Wang et al. 2022, arXiv:2203.02167).
    """

    kind: Literal["triples"] = "triples"
    width: int = Field(256, ge=1)
    """Width of the space in which both are compared."""
    temperature: float = Field(0.05, gt=0, allow_inf_nan=False)
    """Initial temperature of the softmax; it is learned, and never falls below 0.01."""

    @property
    def learning_requirement(self) -> str:
        return "questions without inputs, as facts are"

    @property
    def embedded_input(self) -> str:
        return "text"

    def reads_joint_stream(self) -> bool:
        return False

    def unfused_stream_names(self) -> frozenset[str]:
        return frozenset({"language"})

    def can_answer(self, present: frozenset[str]) -> bool:
        return "questions" in present and present <= TEXTS

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        return [
            [TaskRow(q.question, q.answer) for q in sample.texts.questions if q.answer is not None]
            for sample in samples
        ]

    def rows_to_answer(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Make a row of each question, and one of each distinct tail, as questions are compared with tails."""
        return [
            [*rows, *(TaskRow(tail, id=_TAIL) for tail in dict.fromkeys(str(row.target) for row in rows))]
            for rows in self.training_rows(samples)
        ]

    def texts_to_read(self, texts: SampleTexts) -> Iterable[str]:
        return [text for q in texts.questions if q.answer is not None for text in (q.question, q.answer)]

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        from vlmodel.decoder.triples import TriplesDecoder

        return TriplesDecoder(widths["language"], self.width, self.temperature)

    def collate(self, examples: Sequence[Example], processor: VLProcessor) -> dict[str, NDArray[np.generic]]:
        """Collate the rows: with targets those of all questions, then as many of their tails; without targets only
        those of the questions.
        """
        if not any(example.targets for example in examples):
            return super().collate(examples, processor)
        texts = [text for example in examples for text in example.texts]
        told = [target for e in examples for target in e.targets or (None,) * len(e.texts)]
        tails = [
            replace(e, texts=tuple(t or "" for t in e.targets or ("",) * len(e.texts)), targets=(), facts=None)
            for e in examples
        ]
        arrays = super().collate([*examples, *tails], processor)
        sample_N = np.asarray(arrays["sample_N"], np.int64) % len(examples)
        # The tails are counted with their questions.
        known_N = np.array([t is not None for t in told] + [False] * len(told), np.float32)
        weights_N = np.asarray(arrays["weights_N"], np.float32) * known_N
        keys_N = _number_distinct_texts([*texts, *(t or "" for t in told)])
        return arrays | {"sample_N": sample_N, "weights_N": weights_N, "text_key_N": keys_N}

    def collate_texts(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Collate the texts without facts, even for a model that reads facts, as facts are what is learned here."""
        return processor.tokenize(texts)

    def collate_targets(
        self, targets: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        return {}

    def predict_answers(
        self, head: Decoder, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """Return no answers: the caller compares the question's vector with candidates of its choice (``embed``)."""
        return [[("embedded", 1.0)]] * len(encoded.rows["language"])

    def embed_batch(self, head: Decoder, encoded: DecoderInput) -> tuple[Tensor | None, Tensor]:
        """Embed each text as a question and, concatenated, as a tail: (N, 2 D); there is no other input."""
        import torch

        from vlmodel.decoder.triples import TriplesDecoder

        assert isinstance(head, TriplesDecoder)
        return None, torch.cat(head.embed(encoded), dim=1)

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each question by the reciprocal rank of its tail."""
        row_N, rank_N = _tail_ranks(answered)
        return ExampleScores.with_one_group(1 / rank_N, answered.sample_N, row_N, binary=False)

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute the rank of each right tail among all tails of the split, leaving out other right tails of the same
        question; and the ranks of a random order.
        """
        row_N, rank_N = _tail_ranks(answered)
        if not len(row_N):
            raise NoScorableRowsError("fact", "a tail")
        count = len(set(_tail_rows(answered).values()))
        chance_R = 1 / np.arange(1, count + 1)
        chance = {"mrr": float(chance_R.mean())} | {f"hits_at_{k}": min(1.0, k / count) for k in HITS}
        scores = self.score_rows(answered, normalizer)
        floor = replace(scores, score_N=np.full(len(scores), chance["mrr"]))
        baselines = [BaselineScores("chance", "a random order", chance, floor, scores)]
        notes = (f"ranked among {count} tails",)
        return Judgement("facts", len(row_N), "mrr", link_metrics(rank_N), scores, baselines, notes)

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        """Show each question with its nearest tail."""
        row_N, query_ND, tail_TD, tails = _question_and_tail_vectors(answered)
        found = []
        for row, query_D in zip(row_N.tolist(), query_ND, strict=True):
            similarity_T = tail_TD @ query_D
            best, of = int(similarity_T.argmax()), answered.rows[row]
            right = tails[best] == of.target
            found.append(ExampleAnswer(row, of.text, str(of.target), tails[best], float(similarity_T[best]), right))
        return found


def _tail_rows(answered: AnsweredRows) -> dict[int, str]:
    """Select the answered rows that are tails, with their texts."""
    return {n: row.text for n, row in enumerate(answered.rows) if row.id == _TAIL}


def _question_and_tail_vectors(
    answered: AnsweredRows,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Return the rows of the questions, their vectors, the vectors of the T tails, and the tails' texts."""
    row_N = np.array([n for n, row in enumerate(answered.rows) if row.id != _TAIL], np.int64)
    place = {text: n for n, text in reversed(_tail_rows(answered).items())}
    both_ND = np.stack([np.asarray(answered.text_embedding[n], np.float32) for n in (*row_N.tolist(), *place.values())])
    width = both_ND.shape[1] // 2
    return row_N, both_ND[: len(row_N), :width], both_ND[len(row_N) :, width:], list(place)


def _tail_ranks(answered: AnsweredRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the questions, and the rank of each question's tail."""
    if not _tail_rows(answered):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    row_N, query_ND, tail_TD, tails = _question_and_tail_vectors(answered)
    place = {tail: n for n, tail in enumerate(tails)}
    target_N = np.array([place[str(answered.rows[n].target)] for n in row_N.tolist()], np.int64)
    known: dict[str, set[int]] = {}
    for row, target in zip(row_N.tolist(), target_N.tolist(), strict=True):
        known.setdefault(answered.rows[row].text, set()).add(target)
    of_query = [known[answered.rows[n].text] for n in row_N.tolist()]
    return row_N, filtered_ranks(query_ND, tail_TD, target_N, of_query)


def _number_distinct_texts(texts: Sequence[str]) -> NDArray[np.int64]:
    """Number the texts so that equal texts have equal numbers."""
    numbers = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    return np.array([numbers[text] for text in texts], np.int64)
