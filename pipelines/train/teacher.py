"""Distillation: trains a model on the answers of another one, such as one that reads facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.data.stream.loader import TEACHER
from pipelines.train.config import TeacherConfig
from vlmodel.array_names import select_task_arrays
from vlmodel.config import ConfigError
from vlmodel.model import VLModel
from vlmodel.processor import VLProcessor


class Teacher:
    """A frozen model in evaluation mode, and the loss of differing from its answers.

    Args:
        model: on the device of the training.
    """

    def __init__(self, model: VLModel, config: TeacherConfig) -> None:
        self.model, self.config = model.eval().requires_grad_(False), config

    def loss_sum(self, right: Tensor, logits_NK: Tensor, micro_batch: Mapping[str, Any]) -> Tensor:
        """Compute the distillation loss of a micro-batch, summed over its counted rows.

        Args:
            right: the sum of the losses by the right answers.
            logits_NK: the student's.
        """
        with torch.no_grad():
            told_NK = self.model(**self._arrays(micro_batch)).logits_NK
        t = self.config.temperature
        # The product with t^2 keeps the gradient's size whatever t is (section 2 of the paper).
        divergence_N = t * t * F.kl_div(
            (logits_NK.float() / t).log_softmax(-1), (told_NK.float() / t).log_softmax(-1), reduction="none",
            log_target=True,
        ).sum(-1)  # fmt: skip
        counted_N = (micro_batch["labels_N"] >= 0) * micro_batch["weights_N"]
        return (1 - self.config.weight) * right + self.config.weight * (divergence_N * counted_N).sum()

    def _arrays(self, micro_batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the student's inputs, with the rows as the teacher reads them."""
        inputs = {
            name: value for name, value in micro_batch.items() if "." in name and not name.startswith(f"{TEACHER}.")
        }
        return inputs | select_task_arrays(micro_batch, TEACHER)


def select_student_arrays(micro_batch: Mapping[str, Any]) -> dict[str, Any]:
    """Select the arrays of a micro-batch that the student takes."""
    return {name: value for name, value in micro_batch.items() if not name.startswith(f"{TEACHER}.")}


def check_teacher(teacher: VLProcessor, student: VLProcessor, *, has_cached_features: bool) -> None:
    """Raise ConfigError for a teacher whose answers the student cannot learn from.

    Raises:
        ConfigError: naming what differs, and the remedy.
    """
    tasks = list(student.tasks.values())
    if len(tasks) != 1 or not tasks[0].chooses_label:
        raise ConfigError(
            "train.teacher teaches one task that chooses among answers, such as model.task.kind=vqa; leave it out, or "
            "train that task alone"
        )
    if [task.compatibility_key() for task in teacher.tasks.values()] != [tasks[0].compatibility_key()]:
        kinds = ", ".join(task.kind for task in teacher.tasks.values())
        raise ConfigError(f"train.teacher names a model of task {kinds}, and model.task.kind={tasks[0].kind!r}")
    if teacher.labels != student.labels:
        raise ConfigError(
            f"train.teacher chooses among other answers ({len(teacher.labels)}, here {len(student.labels)}); train "
            "both on the same data with the same settings of vocabulary"
        )
    same = ("inputs", "reads_images")
    if teacher.config.image_resizing != student.config.image_resizing or any(
        getattr(teacher, n) != getattr(student, n) for n in same
    ):
        raise ConfigError(
            f"train.teacher reads {', '.join(teacher.input_names)} ({teacher.config.image_resizing}), and this model "
            f"{', '.join(student.input_names)} ({student.config.image_resizing}); give both "
            "the same inputs and settings of processor"
        )
    if has_cached_features:
        raise ConfigError(
            "train.teacher reads the inputs themselves, and train.feature_cache keeps features in their place; set "
            "train.feature_cache=off"
        )
