"""Answers by a saved model, with the same processor and model as in training, without gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from vlmodel.array_names import select_task_arrays, stays_on_host
from vlmodel.facts import LinkedFact, reweight_by_named_fact
from vlmodel.model import TASK_INPUTS, VLModel
from vlmodel.parts import Answers, Decoder, ModalityEncoder, TextWriter, WrittenText
from vlmodel.processor import Decoded, Example, VLProcessor
from vlmodel.tokens import DecoderInput, FusedStream

if TYPE_CHECKING:
    from numpy.typing import NDArray


_Attention = tuple["NDArray[np.float32] | None", "Mapping[str, NDArray[np.float32]]"]
"""To the image grid (H, W), and over the time of further inputs."""


@dataclass(frozen=True)
class Prediction:
    """The ranked answers of a model to one row of a task.

    Attributes:
        answers: (answer, probability or score), the best first.
        attention_HW: attention from the text's tokens to the cells of the image grid, of sum 1; None if it was not
            requested or the model has none.
        attention_T: the same for each further input whose tokens follow each other in time, by its name: weights of
            equal parts of its time, of sum 1.
        facts: those that the model got with the text, the best first.
        knowledge_version: of the store that they are from; None without one.
    """

    answers: list[tuple[str, float]]
    attention_HW: NDArray[np.float32] | None = None
    attention_T: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    facts: tuple[LinkedFact, ...] = ()
    knowledge_version: int | None = None


class Predictor:
    """A saved model in evaluation mode, with its processor."""

    def __init__(self, model: VLModel, processor: VLProcessor, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model, self.processor = model.eval().to(self.device), processor

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", threads: int | None = None
    ) -> Predictor:
        """Load a model and its processor from the inference part of a checkpoint.

        Args:
            threads: torch's CPU threads, for the whole process; None does not change them.

        Raises:
            FileNotFoundError: the folder does not exist or holds no model.
            WeightsError: the weights do not fit the configuration.
        """
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no model; name the `model` folder of a checkpoint")
        if threads is not None:
            torch.set_num_threads(threads)
        processor = VLProcessor.from_pretrained(folder)
        return cls(VLModel.from_pretrained(str(folder), local_files_only=True), processor, device)

    def predict(
        self,
        examples: Sequence[Example],
        top_k: int = 5,
        attention: bool = False,
        task: str | None = None,
        **settings: Any,
    ) -> list[list[Prediction]]:
        """Return the ``top_k`` best answers to each row of each example.

        Args:
            task: of a model with several; the first one if not given.
            settings: of generation (transformers' ``GenerationConfig``), for tasks that generate texts.

        Raises:
            ConfigError: settings with which the task cannot generate.
            MediumError: an input cannot be decoded.
            ValueError: ``top_k`` below 1, or a task that the model does not have.
        """
        examples = self.processor.link_facts(examples)
        batch = self.processor.collate_tasks(
            [self.processor.decode_inputs(example) for example in examples], {self._resolve_task_name(task): examples}
        )
        if not any(example.texts for example in examples):
            return [[] for _ in examples]
        written, maps, weights_NJ = self._run_batch(batch, top_k, attention, task, settings)
        facts = [(of_text, e.knowledge_version) for e in examples for of_text in e.facts or ()]
        answers = self._strip_evidence(written, task)
        if self._writes_evidence(task):
            named = [self.processor.knowledge.split_evidence(of_row[0][0])[0] for of_row in written]
            facts = [
                (reweight_by_named_fact(of_text, one), version)
                for (of_text, version), one in zip(facts, named, strict=True)
            ]
        elif weights_NJ is not None:
            facts = [
                (_replace_fact_weights(of_text, weights_J), version)
                for (of_text, version), weights_J in zip(facts, weights_NJ, strict=True)
            ]
        flat = [Prediction(a, *seen, *found) for a, seen, found in zip(answers, maps, facts, strict=True)]
        stops = np.cumsum([len(example.texts) for example in examples])
        return [flat[stop - len(example.texts) : stop] for stop, example in zip(stops, examples, strict=True)]

    def generate_texts(
        self, examples: Sequence[Example], top_k: int = 1, task: str | None = None, **settings: Any
    ) -> list[list[WrittenText]]:
        """Generate ``top_k`` texts by a language model for each row of all examples (``TextWriter.generate_texts``),
        without the fact that a text may name before it answers.

        Raises:
            ConversationError: a conversation that cannot be answered, or is longer than the model's window.
            ConfigError, MediumError: as ``predict``.
        """
        name = self._resolve_task_name(task)
        processor = self.processor
        given = {key: value for key, value in settings.items() if key != "streamer"}
        processor.tasks[name].check_generation(given, top_k, processor.config.max_target_tokens)
        examples = processor.link_facts(examples)
        batch = processor.collate_tasks([processor.decode_inputs(e) for e in examples], {name: examples})
        with torch.inference_mode():
            head, encoded = self._encode_batch(batch, name, attention=False)
            written = cast(TextWriter, head).generate_texts(encoded, processor, top_k, **settings)
        found = [(of_text, e.knowledge_version) for e in examples for of_text in e.facts or ()]
        return [
            [self._with_facts(one, facts, version, name) for one in of_row]
            for of_row, (facts, version) in zip(written, found, strict=True)
        ]

    def _with_facts(
        self, written: WrittenText, facts: tuple[LinkedFact, ...], version: int | None, task: str
    ) -> WrittenText:
        text = written.text
        if self._writes_evidence(task):
            named, text = self.processor.knowledge.split_evidence(text)
            facts = reweight_by_named_fact(facts, named)
        return replace(written, text=text, facts=facts, knowledge_version=version)

    def predict_collated(
        self, batch: Mapping[str, NDArray[Any]], top_k: int = 5, task: str | None = None, **settings: Any
    ) -> list[Answers]:
        """Return the ``top_k`` best answers to each row of a batch that the processor collated."""
        return self._strip_evidence(self._run_batch(batch, top_k, False, task, settings)[0], task)

    def _writes_evidence(self, task: str | None) -> bool:
        """Whether the texts that a task generates first name a fact and then answer."""
        return (
            self.processor.knowledge.writes_evidence()
            and self.processor.tasks[self._resolve_task_name(task)].writes_text
        )

    def _strip_evidence(self, written: list[Answers], task: str | None) -> list[Answers]:
        """Remove the named fact from each generated text, and drop answers that are then repeated."""
        if not self._writes_evidence(task):
            return written
        knowledge = self.processor.knowledge
        answered: list[Answers] = []
        for of_row in written:
            once: dict[str, float] = {}
            for text, probability in of_row:
                once.setdefault(knowledge.split_evidence(text)[1], probability)
            answered.append(list(once.items()))
        return answered

    def embed(
        self, examples: Sequence[Example], task: str | None = None
    ) -> list[tuple[NDArray[np.float32] | None, NDArray[np.float32]]]:
        """Embed each example by a contrastive task: the vector of its input (D,), None if it lacks the input, and those
        of its texts (N, D).

        Raises:
            MediumError: an input cannot be decoded.
        """
        decoded = [self.processor.decode_inputs(example) for example in examples]
        return self.embed_decoded(decoded, examples, task)

    def embed_decoded(
        self, decoded: Sequence[Decoded], examples: Sequence[Example], task: str | None = None
    ) -> list[tuple[NDArray[np.float32] | None, NDArray[np.float32]]]:
        """Embed examples whose inputs are decoded already; otherwise as ``embed``."""
        processor, name = self.processor, self._resolve_task_name(task)
        embeds = processor.tasks[name].embedded_input
        # Encoders need at least one input and one text, so where all lack one of them, a blank of each is added.
        is_complete = any(embeds in one for one in decoded) and any(example.texts for example in examples)
        blanks = [] if is_complete else [(processor.blank_inputs(), Example({}, ("?",)))]
        batch = processor.collate_tasks(
            [*decoded, *(inputs for inputs, _ in blanks)], {name: [*examples, *(example for _, example in blanks)]}
        )
        embedded = self.embed_collated(batch, task)
        assert embedded is not None
        input_BD, text_ND = embedded
        stops = np.cumsum([len(example.texts) for example in examples])
        return [
            (
                input_BD[b] if input_BD is not None and embeds in decoded[b] else None,
                text_ND[stop - len(e.texts) : stop],
            )
            for b, (stop, e) in enumerate(zip(stops, examples, strict=True))
        ]

    @torch.inference_mode()
    def embed_collated(
        self, batch: Mapping[str, NDArray[Any]], task: str | None = None
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]] | None:
        """Embed a collated batch: the images (B, D), None for a task that embeds only texts, and the texts (N, D),
        whose dot product is their similarity; None for a task without embeddings.
        """
        name = self._resolve_task_name(task)
        if not self.processor.tasks[name].embedded_input:
            return None
        head, encoded = self._encode_batch(batch, name, attention=False)
        image_BD, text_ND = self.processor.tasks[name].embed_batch(head, encoded)
        return None if image_BD is None else image_BD.float().cpu().numpy(), text_ND.float().cpu().numpy()

    def _resolve_task_name(self, task: str | None) -> str:
        names = list(self.processor.tasks)
        if task is not None and task not in names:
            raise ValueError(f"this model has no task {task!r}; it has {', '.join(map(repr, names))}")
        return names[0] if task is None else task

    @torch.inference_mode()
    def _run_batch(
        self,
        batch: Mapping[str, NDArray[Any]],
        top_k: int,
        attention: bool,
        task: str | None,
        settings: Mapping[str, Any],
    ) -> tuple[list[Answers], list[_Attention], NDArray[np.float32] | None]:
        """Run the model on a batch: the answers to each row, their attention if requested, and the weights of the rows'
        facts (N, J) if the model weighs facts.
        """
        if top_k < 1:
            raise ValueError(f"top_k={top_k} asks for no answer; set it to 1 or more")
        name = self._resolve_task_name(task)
        decoder, encoded = self._encode_batch(batch, name, attention)
        answers = self.processor.tasks[name].predict_answers(decoder, encoded, self.processor, top_k, **settings)
        weights = encoded.fact_weights_NJ
        weights_NJ = None if weights is None else weights.float().cpu().numpy()
        seen = self._attention_to_inputs(decoder, encoded, answers) if attention else [(None, {})] * len(answers)
        return answers, seen, weights_NJ

    def _attention_to_inputs(self, decoder: Decoder, encoded: DecoderInput, answers: list[Answers]) -> list[_Attention]:
        """Compute the attention to the inputs for the best answer to each row."""
        weights = decoder.compute_stream_attention(encoded, self.processor, answers)
        if weights is None:
            weights = self._attention_to_joint_stream(decoder, encoded, answers)
        if weights is None:
            return [(None, {}) for _ in answers]
        maps_NHW = self._attention_over_image(weights)
        in_time = {
            name: self._attention_over_time(name, weights[name], encoded)
            for name in self.processor.inputs
            if name in weights
        }
        return [
            (
                None if maps_NHW is None else maps_NHW[n],
                {name: rows[n] for name, rows in in_time.items() if len(rows[n])},
            )
            for n in range(len(answers))
        ]

    def _attention_to_joint_stream(
        self, decoder: Decoder, encoded: DecoderInput, answers: list[Answers]
    ) -> dict[str, Tensor] | None:
        """Compute the attention to the joint stream by the streams in it, (N, T) each; None if the model has none."""
        joint = encoded.joint
        if joint is None:
            return None
        attention_NT = decoder.compute_attention(encoded, self.processor, answers)
        if attention_NT is None:
            attention_NT = _sum_text_attention(encoded, joint)
        if attention_NT is None:
            return None
        return {name: attention_NT[:, slice(*span)].float() for name, span in joint.spans.items()}

    def _attention_over_image(self, weights: Mapping[str, Tensor]) -> NDArray[np.float32] | None:
        """Convert attention weights to maps over the image, (N, H, W), each of sum 1; None if the model gives none."""
        if "vision" not in weights or self.model.vision is None:
            return None
        map_NHW = self.model.vision.weights_to_grid(weights["vision"])
        if map_NHW is None:
            return None
        sums_N11 = map_NHW.sum((1, 2), keepdim=True).clamp_min(torch.finfo(map_NHW.dtype).tiny)
        weights_NHW: NDArray[np.float32] = (map_NHW / sums_N11).cpu().numpy()
        return weights_NHW

    def _attention_over_time(self, name: str, weights_NT: Tensor, encoded: DecoderInput) -> list[NDArray[np.float32]]:
        """Convert the attention weights of an input to weights of its real time steps, of sum 1 for each row; empty if
        the row lacks the input or the input has no time dimension.
        """
        encoder = cast(ModalityEncoder, self.model.encoder_of_stream(name))
        over_time_NT = encoder.weights_over_time(weights_NT)
        if over_time_NT is None:
            return [np.zeros(0, np.float32)] * len(weights_NT)
        real_NT = encoder.weights_over_time(_real_token_mask(encoded, name).float())
        assert real_NT is not None
        counts = (real_NT > 0).sum(1).tolist()
        rows = [row[:count] for row, count in zip(over_time_NT.cpu().numpy(), counts, strict=True)]
        return [row / max(row.sum(), np.finfo(np.float32).tiny) for row in rows]

    def _encode_batch(
        self, batch: Mapping[str, NDArray[Any]], task: str, attention: bool
    ) -> tuple[Decoder, DecoderInput]:
        """Encode a batch for a task; returns the task's head and the head's input."""
        decoder = self.model.decoder.task_decoders()[task]
        of_task = {
            name: array.tolist() if stays_on_host(name) else torch.from_numpy(array).to(self.device)
            for name, array in select_task_arrays(batch, task).items()
            if name in TASK_INPUTS
        }
        of_inputs = {
            name: torch.from_numpy(array).to(self.device)
            for name, array in batch.items()
            if name.partition(".")[0] in self.processor.input_names
        }
        return decoder, self.model.encode_task(task, self.model.encode_inputs(of_inputs), of_task, attention)


def _replace_fact_weights(facts: tuple[LinkedFact, ...], weights_J: NDArray[np.float32]) -> tuple[LinkedFact, ...]:
    """Give facts the weights that the model computed, and sort them by weight, the greatest first."""
    weighed = [replace(one, weight=float(weight)) for one, weight in zip(facts, weights_J, strict=False)]
    return tuple(sorted(weighed, key=lambda one: -one.weight))


def _sum_text_attention(encoded: DecoderInput, joint: FusedStream) -> Tensor | None:
    """Sum the last layer's attention over the real tokens of each row's text, (N, S); for a task that reads no text,
    over all real tokens.

    Masks are the encoders': the language encoder moves padding behind the tokens, and the tokenizer may not.
    """
    if joint.attention_LBQS is None:
        return None
    attention_NQS = joint.attention_LBQS[-1]
    asking = ["language"] if "language" in joint.spans else [name for name in joint.spans if name in encoded.streams]
    weights_NS = [
        (attention_NQS[:, slice(*joint.spans[name])] * _real_token_mask(encoded, name).unsqueeze(-1)).sum(1)
        for name in asking
    ]
    return torch.stack(weights_NS).sum(0)


def _real_token_mask(encoded: DecoderInput, name: str) -> Tensor:
    """Mask the real tokens (no padding) of a stream for each row, (N, T)."""
    mask_BT, row_N = encoded.streams[name].mask_BT, encoded.rows.get(name)
    return mask_BT if row_N is None else mask_BT[row_N]
