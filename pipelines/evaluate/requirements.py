"""What data must have so that models can be evaluated on it. Neither Ray nor torch is imported: jobs ask this first."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.data.index.index import Index
from pipelines.errors import DataError
from vlmodel.sample import TEXTS
from vlmodel.task import Task


def check_data_is_evaluable(index: Index, tasks: Mapping[str, Task], split: str) -> None:
    """Raise DataError for data on which models cannot be evaluated: samples need inputs, and the texts or class of each
    task.

    Args:
        split: the evaluated split; "" for all samples.

    Raises:
        DataError: the samples have no inputs, or none of the split has the texts of a task.
    """
    if not index.count(lambda present: bool(present & TEXTS) and bool(present - TEXTS)):
        raise DataError(
            f"models are judged on inputs with texts or a class, and no sample of {index.tars} is such a pair (it was "
            f"indexed as {index.validity_settings['inputs']}); name pairs in data.tars, and this in data.mix to train "
            "on it too"
        )
    for name, task in tasks.items():
        if not index.count(task.can_learn, split):
            raise DataError(
                f"no {split or 'indexed'} sample of {index.tars} has {task.learning_requirement}, by which "
                f"{f'task {name!r}' if name else 'the model'} is judged; choose data or a split that has some"
                f"{', or leave the task out' if name else ''}"
            )
