"""Baselines: answers and captions without looking at the image, learned from the training split.

They are stored with the model, so that it can be evaluated where only a test set is.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.data.texts.corpus import read_texts
from pipelines.errors import DataError
from pipelines.evaluate.metrics.captions import constant_caption
from pipelines.storage.folder import Folder
from vlmodel.answers import Normalizer, normal_form
from vlmodel.sample import Texts
from vlmodel.task_spec import TaskSpec

FILE = "baselines.json"


@dataclass(frozen=True)
class AnswerPrior:
    """Answers from the question alone.

    Attributes:
        majority: the most frequent answer.
        by_question: the most frequent answer to each exact question; other questions get ``majority``.
        normalizer: answers with the same normal form are one answer, in its most frequent spelling.
    """

    majority: str
    by_question: dict[str, str]
    normalizer: Normalizer = "none"

    @classmethod
    def learn(cls, pairs: Iterable[tuple[str, str]], normalizer: Normalizer = "none") -> AnswerPrior:
        """From (question, answer) pairs. Of equally frequent answers the alphabetically first counts."""
        spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
        to_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            form = normal_form(answer, normalizer)
            spellings[form][answer] += 1
            to_question[question][form] += 1
        if not spellings:
            raise DataError("no answered question to learn from; the training split needs at least one")
        spelling = {form: _most_frequent(counts) for form, counts in spellings.items()}
        forms = Counter({form: counts.total() for form, counts in spellings.items()})
        by_question = {question: spelling[_most_frequent(counts)] for question, counts in to_question.items()}
        return cls(spelling[_most_frequent(forms)], by_question, normalizer)

    def predict(self, questions: pa.ChunkedArray) -> list[str]:
        """The answer to each question."""
        return [self.by_question.get(question, self.majority) for question in questions.to_pylist()]


@dataclass(frozen=True)
class Baselines:
    """The baselines of a model.

    Attributes:
        answers: to questions; None if no task answers any.
        caption: the one caption for all images; None if no task writes captions.
        trained_on: hashes of the indexes whose training split the model was trained on; empty if unknown.
    """

    answers: AnswerPrior | None = None
    caption: str | None = None
    trained_on: tuple[str, ...] = ()

    @classmethod
    def learn(
        cls, texts: Iterable[Texts], tasks: Iterable[TaskSpec], normalizer: Normalizer, trained_on: Sequence[str] = ()
    ) -> Self:
        """From the texts of a training split.

        Raises:
            DataError: a task needs answers or captions, and there are none.
        """
        specs = list(tasks)
        answers: AnswerPrior | None = None
        caption: str | None = None
        captions: list[str] = []
        writes_captions = any(map(_writes_captions, specs))

        def pairs() -> Iterator[tuple[str, str]]:
            for sample in texts:
                if writes_captions:
                    captions.extend(sample.captions)
                yield from ((q.question, q.answer) for q in sample.questions if q.answer is not None)

        if any(map(_answers_questions, specs)):
            answers = AnswerPrior.learn(pairs(), normalizer)
        else:
            deque(pairs(), maxlen=0)  # only the captions are of use
        if writes_captions:
            try:
                caption = constant_caption(captions)
            except ValueError as error:
                raise DataError(f"captions stand beside the most typical one of the training split: {error}") from None
        return cls(answers, caption, tuple(trained_on))

    @classmethod
    def of_training(
        cls, evaluated: Index, trained: Iterable[Index], tasks: Mapping[str, TaskSpec], normalizer: Normalizer
    ) -> Self:
        """For a model of ``tasks``: learned from the training split of the data that it is evaluated on; if that lacks
        texts for a task, from the data that it is trained on.

        Raises:
            DataError: as ``learn``; also if a shard cannot be read.
        """
        sources = list(trained)
        needed = {spec.reads for spec in tasks.values() if _answers_questions(spec) or _writes_captions(spec)}
        enough = all(evaluated.count_with(reads, "train") for reads in needed)
        read = ([evaluated] if enough else sources) if needed else []
        texts = (sample for index in read for sample in read_texts(index, "train"))
        return cls.learn(texts, tasks.values(), normalizer, [index.hash for index in sources])

    def save(self, folder: str | Path) -> Path:
        """Write them into a model's folder. Returns the file."""
        prior = self.answers
        if prior is not None:  # questions with the majority's answer need no entry
            by_question = {q: answer for q, answer in prior.by_question.items() if answer != prior.majority}
            prior = replace(prior, by_question=by_question)
        tree = asdict(replace(self, answers=prior))
        Folder(folder).write(FILE, json.dumps(tree, ensure_ascii=False, sort_keys=True, indent=1).encode())
        return Path(folder) / FILE

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Those in a model's folder; None for a model of an earlier version, which has none."""
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        tree = json.loads(file.read_text(encoding="utf-8"))
        answers = None if tree["answers"] is None else AnswerPrior(**tree["answers"])
        return cls(answers, tree["caption"], tuple(tree["trained_on"]))


def check_learnable(index: Index, tasks: Mapping[str, TaskSpec]) -> None:
    """Refuse data from whose training split the baselines of a task cannot be learned.

    Raises:
        DataError: no training sample has the texts of the task.
    """
    for task, spec in tasks.items():
        if (_answers_questions(spec) or _writes_captions(spec)) and not index.count_with(spec.reads, "train"):
            raise DataError(
                f"no train sample of {index.tars} has {spec.reads}, from which is learned what "
                f"{f'task {task!r}' if task else 'the model'} is compared with, and the model has no {FILE}; train it "
                "anew with this version, or choose data that has some"
            )


def _answers_questions(spec: TaskSpec) -> bool:
    """Whether a task answers questions in words."""
    return spec.target == "answer" or (spec.target == "tokens" and spec.text)


def _writes_captions(spec: TaskSpec) -> bool:
    return spec.target == "tokens" and not spec.text


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
