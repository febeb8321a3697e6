"""What a model is compared with, learned from the training split and kept with the model, so that it can be evaluated
where only a test set is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.data.index.index import Index
from pipelines.data.tars.sample import Texts
from pipelines.data.texts.corpus import read_texts
from pipelines.errors import DataError
from pipelines.evaluate.floors import AnswerPrior
from pipelines.evaluate.metrics.captions import constant_caption
from vlmodel.answers import Normalizer
from vlmodel.task_spec import TaskSpec

FILE = "baselines.json"


@dataclass(frozen=True)
class Baselines:
    """Answers that need no image.

    Attributes:
        answers: to questions; None where no task answers any.
        caption: the one caption for all images; None where no task writes captions.
        trained_on: hashes of the indexes whose training split the model was trained on; empty if that is unknown.
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
        kinds = list(tasks)
        captions: list[str] = []
        writes_captions = any(map(_writes_captions, kinds))

        def pairs() -> Iterator[tuple[str, str]]:
            for of_sample in texts:
                if writes_captions:
                    captions.extend(of_sample.captions)
                yield from ((q.question, q.answer) for q in of_sample.questions if q.answer is not None)

        if any(map(_answers, kinds)):
            answers = AnswerPrior.learn(pairs(), normalizer)
        else:
            answers = None
            for _ in pairs():
                pass
        if not writes_captions:
            return cls(answers, None, tuple(trained_on))
        try:
            return cls(answers, constant_caption(captions), tuple(trained_on))
        except ValueError as error:
            raise DataError(f"captions stand beside the most typical one of the training split: {error}") from None

    @classmethod
    def of_training(
        cls, judged: Index, trained: Iterable[Index], tasks: Mapping[str, TaskSpec], normalizer: Normalizer
    ) -> Self:
        """For a model of ``tasks``: learned from the training split of the data that it is judged on, and where that
        has no texts for a task, of the data that it is trained on.

        Raises:
            DataError: as ``learn``; also where a shard cannot be read.
        """
        sources = list(trained)
        needed = {fields.reads for fields in tasks.values() if _answers(fields) or _writes_captions(fields)}
        enough = all(judged.count_with(reads, "train") for reads in needed)
        read = ([judged] if enough else sources) if needed else []
        texts = (of_sample for index in read for of_sample in read_texts(index, "train"))
        return cls.learn(texts, tasks.values(), normalizer, [index.hash for index in sources])

    def save(self, folder: str | Path) -> Path:
        """Write them into a model's folder. Returns the file."""
        tree = {
            "answers": None if self.answers is None else self.answers.to_tree(),
            "caption": self.caption,
            "trained_on": list(self.trained_on),
        }
        file = Path(folder) / FILE
        partial = file.with_name(f".{FILE}.partial")
        partial.write_text(json.dumps(tree, ensure_ascii=False, sort_keys=True, indent=1), encoding="utf-8")
        return partial.rename(file)

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
        DataError: no training sample has its texts.
    """
    for task, fields in tasks.items():
        if (_answers(fields) or _writes_captions(fields)) and not index.count_with(fields.reads, "train"):
            raise DataError(
                f"no train sample of {index.tars} has {fields.reads}, from which is learned what "
                f"{f'task {task!r}' if task else 'the model'} is compared with, and the model has no {FILE}; train it "
                "anew with this version, or choose data that has some"
            )


def _answers(fields: TaskSpec) -> bool:
    """Whether a task answers questions in words."""
    return fields.target == "answer" or (fields.target == "tokens" and fields.text)


def _writes_captions(fields: TaskSpec) -> bool:
    return fields.target == "tokens" and not fields.text
