"""Baselines that are learned from the texts of a training split, as its tasks define them.

They are stored with the model, so that it can be evaluated where only a test set is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pipelines.data.index.index import Index
from pipelines.data.texts.corpus import read_texts
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from vlmodel.answers import Normalizer
from vlmodel.sample import SampleTexts
from vlmodel.task import Task

FILE = "baselines.json"


@dataclass(frozen=True)
class Baselines:
    """Learned baselines of several tasks: they guess answers from texts alone, without a model.

    Attributes:
        tasks: what each task learned (``Task.learn_baseline``), of those that learn something.
        trained_on: hashes of the indexes whose training split the model was trained on; empty if unknown.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()

    @classmethod
    def learn(
        cls,
        texts: Iterable[SampleTexts],
        tasks: Mapping[str, Task],
        normalizer: Normalizer,
        trained_on: Sequence[str] = (),
    ) -> Self:
        """Learn the baselines from the texts of a training split, which are read once for each task that learns.

        Raises:
            DataError: there is nothing that a task could learn from.
        """
        try:
            learned = {
                name: task.learn_baseline(iter(texts), normalizer)
                for name, task in tasks.items()
                if task.learns_baseline
            }
        except ValueError as error:
            raise DataError(str(error)) from None
        return cls(learned, tuple(trained_on))

    @classmethod
    def learn_from_training_split(
        cls, evaluated: Index, trained: Iterable[Index], tasks: Mapping[str, Task], normalizer: Normalizer
    ) -> Self:
        """Learn the baselines of a model from the training split of the data that it is evaluated on; if that lacks
        texts for a task, from the data that it is trained on.

        Raises:
            DataError: as ``learn``; also if a shard cannot be read.
        """
        sources = list(trained)
        enough = all(evaluated.count(task.can_learn, "train") for task in tasks.values() if task.learns_baseline)
        texts = _TrainingTexts([evaluated] if enough else sources)
        return cls.learn(texts, tasks, normalizer, [index.hash for index in sources])

    def save(self, folder: str | Path) -> Path:
        """Write the baselines into a model's folder. Returns the file."""
        tree = json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, indent=1)
        StorageFolder(folder).write(FILE, tree.encode())
        return Path(folder) / FILE

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Load the baselines from a model's folder; None if it has none.

        Raises:
            DataError: the file is of another version.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        tree = json.loads(file.read_text(encoding="utf-8"))
        if not {"tasks", "trained_on"} <= set(tree):
            raise DataError(f"{str(file)!r} is of another version; train the model anew with this one")
        return cls(tree["tasks"], tuple(tree["trained_on"]))


def check_baselines_are_learnable(index: Index, tasks: Mapping[str, Task]) -> None:
    """Raise DataError if the training split lacks the texts from which a task's baselines are learned.

    Raises:
        DataError: no training sample has the texts of the task.
    """
    for name, task in tasks.items():
        if task.learns_baseline and not index.count(task.can_learn, "train"):
            raise DataError(
                f"no train sample of {index.tars} has {task.learning_requirement}, from which is learned what "
                f"{f'task {name!r}' if name else 'the model'} is compared with, and the model has no {FILE}; train it "
                "anew with this version, or choose data that has some"
            )


@dataclass(frozen=True)
class _TrainingTexts:
    """The texts of the training splits, read anew in each iteration."""

    indexes: Sequence[Index]

    def __iter__(self) -> Iterator[SampleTexts]:
        return (texts for index in self.indexes for texts in read_texts(index, "train"))
