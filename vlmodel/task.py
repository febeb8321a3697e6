"""The base class of tasks. A task defines what a model learns, what it is asked, and how its answers are scored; each
is a file of ``tasks/``.

torch is not imported here, nor by the files of ``tasks/`` until they build their head: processes that only decode and
collate stay small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from vlmodel import generation
from vlmodel.answers import normalize_for_comparison
from vlmodel.config import PartConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from vlmodel.answers import Normalizer
    from vlmodel.facts import LinkedFact
    from vlmodel.judging import AnsweredRows, ExampleAnswer, Judgement
    from vlmodel.metrics.scores import ExampleScores
    from vlmodel.operations.base import Operation
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Answers, Decoder
    from vlmodel.processor import Example, VLProcessor
    from vlmodel.sample import Sample, SampleTexts
    from vlmodel.tokens import DecoderInput

V = TypeVar("V")


@dataclass(frozen=True)
class TaskRow:
    """One question or target about a sample: what a task learns from or answers.

    Attributes:
        text: the model's input beside the sample's other inputs; "" where the task takes no text.
        target: the right answer, None where it is unknown or there is none.
        references: every right answer there is: all captions of an image, all annotators' answers.
        id: the source's identifier of a question.
    """

    text: str = ""
    target: str | None = None
    references: tuple[str, ...] = ()
    id: str | None = None


class TaskPart(PartConfig):
    """What a model is configured for: a ``Task``, or several of them (``tasks/multitask.py``)."""

    def tasks_by_name(self) -> dict[str, Task]:
        """Map names to tasks, in the order of a saved model; a single task is called ""."""
        raise NotImplementedError

    def reads_text(self) -> bool:
        """Whether the model gets the text of a row, for any task; otherwise each sample has one answer."""
        return True

    def encodes_text(self) -> bool:
        """Whether the text of a row is encoded by ``model.language``, for any task; a language-model head reads texts
        itself.
        """
        return self.reads_text()

    def reads_joint_stream(self) -> bool:
        """Whether any task reads the joint stream; if none does, the model has no topology and no fusion."""
        return True

    def reads_every_stream(self) -> bool:
        """Whether any task reads the stream of every encoder."""
        return False

    def reads_unfused_streams(self) -> bool:
        """Whether any task reads the encoders' streams, for which the language encoder must have its layers."""
        return not self.reads_joint_stream()

    def unfused_stream_names(self) -> frozenset[str]:
        """Names of the encoders' streams that tasks read directly, without fusion."""
        return frozenset()

    def resolve_settings(self, vocabulary: Vocabulary) -> TaskPart:
        """Return a copy that contains everything that ``build`` needs, as ``LanguagePart.resolve_settings`` does."""
        return self

    def needs_begin_and_end_tokens(self) -> bool:
        """Whether any task generates texts between the tokenizer's begin and end tokens."""
        return False

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise an error for a tokenizer with which a task cannot work.

        Raises:
            ConfigError: naming what is missing, and the remedy.
        """

    def max_generated_tokens(self) -> int | None:
        """The greatest number of tokens in a generated text, if there is a limit that is known."""
        return None

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        """Raise an error for generation settings with which ``top_k`` texts cannot be generated, whether or not this
        task generates texts.

        Raises:
            ConfigError: naming the setting, its value and the remedy.
        """
        generation.check_generation_settings(settings, top_k, max_target_tokens)

    def checkpoint_metric(self) -> Literal["accuracy", "loss"]:
        """The validation metric by which the best checkpoint is chosen."""
        return "accuracy"

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        """Build the head of the task, an ``nn.Module``.

        Args:
            widths: of the encoded streams by their names, and of the "joint" one, if the head reads it.
        """
        raise NotImplementedError


class Task(TaskPart):
    """The base class of a single task. A new task is a file with a subclass ``Config``; methods that it does not define
    work as here.

    Attributes:
        writes_text: the model generates its answer token by token, so that answers are compared as whole texts.
        chooses_label: the model chooses among the processor's labels, which are those of ``label_candidates``.
        normalizer: the rules by which its answers are compared, whatever ``vocabulary.normalizer`` says of others; None
            for those of that setting. It counts where all tasks of a model that choose labels have it.
        learns_baseline: a baseline is learned from the texts of the training split (``learn_baseline``).
        copies_neighbours: answers are compared with texts copied from the nearest training images.
        invariances: the rewordings of a text that must not change the answer (``registry.gate.agreement``).
        operations: by which it is served.
        learns_from: what a sample needs for ``can_learn``, for messages: "questions", "captions with an image".
    """

    writes_text: ClassVar[bool] = False
    chooses_label: ClassVar[bool] = False
    normalizer: ClassVar[Normalizer | None] = None
    learns_baseline: ClassVar[bool] = False
    copies_neighbours: ClassVar[bool] = False
    invariances: ClassVar[frozenset[str]] = frozenset()
    operations: ClassVar[tuple[Operation, ...]] = ()

    @property
    def learning_requirement(self) -> str:
        raise NotImplementedError

    @property
    def embedded_input(self) -> str:
        """The name of the input that the model embeds beside texts (``embed``); "text" for texts alone, "" for tasks
        without embeddings.
        """
        return ""

    def tasks_by_name(self) -> dict[str, Task]:
        return {"": self}

    def compatibility_key(self) -> dict[str, Any]:
        """A value that two models must share so that one can replace the other without its clients noticing."""
        return {"kind": self.kind}

    def serves_operation(self, operation: Operation) -> bool:
        """Whether the task, with these settings, is served by one of ``operations``."""
        return True

    # Samples to rows.

    def can_answer(self, present: frozenset[str]) -> bool:
        """Whether a sample with these inputs and texts (``Sample.present``) has rows to be answered."""
        raise NotImplementedError

    def can_learn(self, present: frozenset[str]) -> bool:
        """Whether a sample with these inputs and texts has rows to learn from."""
        return self.can_answer(present)

    def is_used_in_training(self, present: frozenset[str]) -> bool:
        """Whether training reads a sample with these inputs and texts: it has rows to learn from, or is used for the
        rows of others (``collate_samples``).
        """
        return self.can_learn(present)

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Return the rows that the task learns from, for each sample of a batch. Rows of samples that ``can_learn``
        refuses are dropped.
        """
        raise NotImplementedError

    def rows_to_answer(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Return the rows to be answered, for each sample of a batch. Rows of samples that ``can_answer`` refuses are
        dropped.
        """
        return self.training_rows(samples)

    def texts_to_read(self, texts: SampleTexts) -> Iterable[str]:
        """Select the texts of a sample that the model reads."""
        return ()

    def texts_to_generate(self, texts: SampleTexts) -> Iterable[str]:
        """Select the texts of a sample that the model learns to generate."""
        return ()

    def label_candidates(self, texts: SampleTexts) -> Iterable[str]:
        """Select the texts of a sample that can become labels; the most frequent ones over all samples do."""
        return ()

    # Rows to arrays.

    def collate(self, examples: Sequence[Example], processor: VLProcessor) -> dict[str, NDArray[np.generic]]:
        """Collate the N rows of all examples.

        Returns:
            ``sample_N`` int64 (the sample of each row), ``weights_N`` float32; the arrays of
            ``collate_texts``; and those of ``collate_targets``.
        """
        counts = [len(example.texts) for example in examples]
        arrays: dict[str, NDArray[np.generic]] = {
            "sample_N": np.repeat(np.arange(len(examples), dtype=np.int64), counts),
            "weights_N": np.array(list(chain.from_iterable(map(_weights_per_text, examples))), dtype=np.float32),
        }
        facts = [of_text for example in examples for of_text in example.facts or ((),) * len(example.texts)]
        arrays |= self.collate_texts([text for example in examples for text in example.texts], facts, processor)
        targets = list(chain.from_iterable(map(_targets_per_text, examples)))
        if any(target is not None for target in targets):
            arrays |= processor.knowledge.collate_right_facts(targets, facts, processor)
        if self.writes_text:
            targets = processor.knowledge.add_evidence_to_targets(targets, facts, processor)
        return arrays | self.collate_targets(targets, arrays, processor)

    def collate_texts(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Collate the texts of N rows with their facts: arrays that the model reads before the head."""
        return processor.tokenize_with_facts(texts, facts) if self.encodes_text() else {}

    def collate_targets(
        self, targets: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Collate the right answers: arrays that the head's ``forward`` takes by their names.

        Args:
            targets: of the N rows; None where unknown.
            arrays: the others of these rows.
        """
        raise NotImplementedError

    def collate_samples(self, samples: Sequence[Sample], weight: float) -> dict[str, NDArray[np.generic]]:
        """Collate arrays about the B samples themselves, for training batches from sources with samples that the task
        uses without learning from them.

        Args:
            weight: of each sample; 0 where a batch only takes part in collectives.
        """
        return {}

    # Arrays to answers.

    def predict_answers(
        self, head: Decoder, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """Return the ``top_k`` best answers to each of the N rows, with their probabilities or scores.

        Args:
            head: what ``build`` made.
            settings: of generation, for tasks that generate (transformers' ``GenerationConfig``).
        """
        raise NotImplementedError

    def embed_batch(self, head: Decoder, encoded: DecoderInput) -> tuple[Tensor | None, Tensor]:
        """Embed the inputs (B, D) and the texts (N, D) of a batch; their dot product is the similarity. Only for tasks
        with an ``embedded_input``; the first is None for a task that embeds texts alone.
        """
        raise NotImplementedError

    # Answers to judgements.

    def is_possible_answer(self, answer: str, processor: VLProcessor) -> bool:
        """Whether the model is able to give this answer: for example, it is one of the classes."""
        return True

    def is_same_answer(self, answer: str, other: str, processor: VLProcessor) -> bool:
        """Whether two answers count as equal for this task."""
        return normalize_for_comparison(answer, processor.normalizer) == normalize_for_comparison(
            other, processor.normalizer
        )

    def learn_baseline(self, samples: Iterable[SampleTexts], normalizer: Normalizer) -> dict[str, Any]:
        """Learn the baseline that answers without the inputs from the texts of a training split; returns plain values
        that are stored with the model and given to ``judge_answers``.

        Raises:
            ValueError: nothing can be learned from these texts.
        """
        raise NotImplementedError

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score the rows that have a right answer; the result's ``value`` is the metric by which models are compared.

        Args:
            normalizer: the rules by which answers in words are compared.
        """
        raise NotImplementedError

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute all metrics of the answers, and those of baselines.

        Args:
            baseline: what ``learn_baseline`` gave; None for tasks without.
            labels: the answers that a classifier chooses among.

        Raises:
            NoScorableRowsError: no row has a right answer.
        """
        raise NotImplementedError

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        """List rows for the page of examples, which shows some of them."""
        raise NotImplementedError


def learnable_rows(task: Task, samples: Sequence[Sample]) -> list[list[TaskRow]]:
    """Return the rows that a task learns from, for each sample of a batch; none for samples that it cannot
    learn from.
    """
    made = zip(samples, task.training_rows(samples), strict=True)
    return [rows if task.can_learn(sample.present) else [] for sample, rows in made]


def answerable_rows(task: Task, samples: Sequence[Sample]) -> list[list[TaskRow]]:
    """Return the rows to be answered, for each sample of a batch; none for samples that the task cannot answer."""
    made = zip(samples, task.rows_to_answer(samples), strict=True)
    return [rows if task.can_answer(sample.present) else [] for sample, rows in made]


def _targets_per_text(example: Example) -> Sequence[str | None]:
    return _value_per_text(example, "targets", example.targets or None, None)


def _weights_per_text(example: Example) -> Sequence[float]:
    return _value_per_text(example, "weights", example.weights, 1.0)


def _value_per_text(example: Example, name: str, values: Sequence[V] | None, default: V) -> Sequence[V]:
    """Return the given value for each text, or the default if none are given."""
    if values is None:
        return [default] * len(example.texts)
    if len(values) != len(example.texts):
        raise ValueError(f"{len(example.texts)} texts have {len(values)} {name}: {example.texts[:3]!r}...")
    return values
