"""A student learns what a teacher with facts answers, and answers so without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.data.stream.loader import TEACHER
from pipelines.train.config import OptimizerConfig, StepConfig, TeacherConfig
from pipelines.train.step import TrainStep
from pipelines.train.teacher import Teacher, check_teacher, select_student_arrays
from tests.pipelines.train.conftest import TINY, images_and_texts
from vlmodel.array_names import prefix_array_names
from vlmodel.config import ConfigError, load_config
from vlmodel.explain import list_settings
from vlmodel.facts import Fact, LinkedFact
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, VLProcessor


def taught(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch with the same rows for a teacher that reads as its student does."""
    rows = {name: value for name, value in batch.items() if "." not in name}
    return batch | dict(prefix_array_names(TEACHER, rows))


def test_the_loss_by_hand(tiny_model: Callable[[], VLModel]) -> None:
    batch = taught(images_and_texts(2, [2, 1]))
    batch["weights_N"] = torch.tensor([1.0, 0.5, 1.0])
    batch["labels_N"] = torch.tensor([0, 1, -1])
    teacher = Teacher(tiny_model(), TeacherConfig(model="x", weight=0.25, temperature=3.0))
    told = teacher.model(**select_student_arrays(batch)).logits_NK
    mine = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]], requires_grad=True)
    loss = teacher.loss_sum(torch.tensor(5.0), mine, batch)
    p, q = (told / 3).softmax(-1), (mine / 3).softmax(-1)
    divergence = 9 * (p * (p.log() - q.log())).sum(-1)
    assert loss.item() == pytest.approx((0.75 * 5 + 0.25 * (divergence[0] + 0.5 * divergence[1])).item(), abs=1e-5)
    loss.backward()
    assert mine.grad is not None
    assert mine.grad[2].eq(0).all(), "a row without a right answer is not counted"
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_only_a_step_with_a_teacher_reads_its_rows(tiny_model: Callable[[], VLModel]) -> None:
    batch = images_and_texts(2, [2, 1])

    def totals(teacher: Teacher | None, given: dict[str, Any]) -> list[float]:
        step = TrainStep(tiny_model(), OptimizerConfig(), StepConfig(), steps=10, seed=0, teacher=teacher)
        found: list[float] = step(0, [given], 1).totals.tolist()
        return found

    plain = totals(None, batch)
    assert totals(None, taught(batch)) == plain, "count and loss are the student's"
    with_teacher = totals(Teacher(tiny_model(), TeacherConfig(model="x")), taught(batch))
    assert with_teacher[1:] == plain[1:]
    assert with_teacher[0] != plain[0]


def reading(processor: VLProcessor, by: dict[str, Any]) -> tuple[VLModel, VLProcessor]:
    tree = load_config(ModelConfig, None, [*TINY, *(f"knowledge.{name}={value}" for name, value in by.items())])
    made = VLProcessor(
        processor.config, processor.tokenizer, processor.labels, tree.task.tasks_by_name(), knowledge=tree.knowledge
    )
    return VLModel.create_from_config(tree, made), made


def test_a_student_without_facts_learns_what_the_facts_say(tiny_processor: VLProcessor) -> None:
    """Two questions about one picture, of which only the teacher has the facts. Its weights are as they are drawn: what
    it answers means nothing, and depends on the facts.
    """
    torch.manual_seed(0)
    teacher, its = reading(tiny_processor, {"kind": "injection", "max_fact_tokens": 4})
    student, own = reading(tiny_processor, {"kind": "none"})
    with torch.no_grad():
        for parameter in teacher.decoder.parameters():
            parameter.mul_(20)  # sure of its answers, and another one for each question
    facts = tuple((LinkedFact(Fact("1", "this", "is", text, text), 1.0),) for text in ("colour colour", "what"))
    asked = [Example({}, ("what is this", "what colour"), ("red", "red"), facts=facts)]
    arrays = own.collate_rows({"": asked}) | dict(prefix_array_names(TEACHER, its.collate_rows({"": asked})))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), np.uint8)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()} | {
        "image.pixels_BHWC": torch.from_numpy(pixels)
    }
    told = Teacher(teacher, TeacherConfig(model="x", weight=1.0, temperature=1.0))
    step = TrainStep(
        student,
        OptimizerConfig(head_lr=1e-2, warmup=0.0, weight_decay=0.0),
        StepConfig(),
        steps=60,
        seed=0,
        teacher=told,
    )
    losses = [step(number, [batch], 1).totals[0].item() for number in range(60)]
    assert losses[-1] < 0.05 * losses[0]
    with torch.no_grad():
        mine = student.eval()(**select_student_arrays(batch)).logits_NK.softmax(-1)
        its_own = told.model(**told._arrays(batch)).logits_NK.softmax(-1)
    assert torch.allclose(mine, its_own, atol=0.25)
    assert mine.argmax(-1).tolist() == its_own.argmax(-1).tolist()


def test_a_teacher_that_says_nothing_is_refused(tiny_processor: VLProcessor) -> None:
    def changed(labels: list[str] | None = None, task: str = "vqa", **config: Any) -> VLProcessor:
        tree = load_config(ModelConfig, None, [*TINY, f"task.kind={task}"])
        settings = tiny_processor.config.model_copy(update=config)
        return VLProcessor(
            settings, tiny_processor.tokenizer, labels or tiny_processor.labels, tree.task.tasks_by_name()
        )

    check_teacher(changed(), tiny_processor, has_cached_features=False)
    for teacher, student, cached, words in (
        (changed(["red", "blue"]), tiny_processor, False, "other answers .2, here 3."),
        (changed(image_size=64), tiny_processor, False, "settings of processor"),
        (changed(task="matching"), tiny_processor, False, "a model of task matching"),
        (changed(), changed(task="matching"), False, "chooses among answers"),
        (changed(), tiny_processor, True, "train.feature_cache=off"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_teacher(teacher, student, has_cached_features=cached)


def test_the_help_says_that_an_edit_needs_a_training() -> None:
    (model,) = (setting for setting in list_settings(TeacherConfig) if setting["key"] == "model")
    assert "not with an edit of the store" in model["doc"]
