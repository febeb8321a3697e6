"""What one forward pass does for each of the service's tasks: an adapter calls the model's head for a batch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.serve.service import Embeddings, Matches, Task
from vlmodel.encoder_parts import IMAGE
from vlmodel.inference import Prediction, Predictor
from vlmodel.processor import Decoded, Example, VLProcessor
from vlmodel.task_spec import MATCH, TaskSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DecodedExample(Example):
    """An example whose inputs were decoded before, by their names."""

    decoded: Decoded = field(default_factory=dict)


class PredecodedProcessor(VLProcessor):
    """A processor that takes decoded inputs, and that several threads may use."""

    # A tokenizer stores padding and truncation as state, which each call sets.
    _lock = threading.Lock()

    def collate_tasks(
        self, decoded: Sequence[Decoded], examples: Mapping[str, Sequence[Example]]
    ) -> dict[str, NDArray[np.generic]]:
        with self._lock:
            return super().collate_tasks(decoded, examples)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        with self._lock:
            return super().truncated(texts)

    def decode_inputs(self, example: Example) -> Decoded:
        return example.decoded if isinstance(example, DecodedExample) else super().decode_inputs(example)


@dataclass(frozen=True)
class BatchItem:
    """One request of a batch."""

    example: DecodedExample
    top_k: int = 1
    attention: bool = False


class TaskAdapter(ABC):
    """Runs one head of the model for one task; ``name`` is the head's."""

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor, self.name = predictor, name

    @abstractmethod
    def run(self, items: Sequence[BatchItem]) -> Sequence[Any]:
        """A result for each item, in order, which does not depend on the other items."""

    def warm_up_items(self) -> Iterator[BatchItem]:
        """One item for each way of computing."""
        yield BatchItem(self._blank_example())

    def _blank_example(self, text: str = "what is this?") -> DecodedExample:
        size = self.predictor.processor.config.image_size
        decoded = {IMAGE: {"pixels_HWC": np.zeros((size, size, 3), np.uint8)}}
        return DecodedExample({}, (text,), decoded=decoded if self.predictor.processor.reads_images else {})


class AnswerAdapter(TaskAdapter):
    """Answers that are ranked by a classifier, or texts that are generated."""

    @property
    def is_generative(self) -> bool:
        return self.predictor.processor.tasks[self.name].target == "tokens"

    def run(self, items: Sequence[BatchItem]) -> list[list[Prediction]]:
        results: list[list[Prediction]] = [[] for _ in items]
        for top_k, indices in self._group_by_top_k(items).items():
            attention = any(items[i].attention for i in indices)
            predictions = self.predictor.predict([items[i].example for i in indices], top_k, attention, self.name)
            for i, of_item in zip(indices, predictions, strict=True):
                item = items[i]
                results[i] = [
                    Prediction(p.answers[: item.top_k], p.attention_HW if item.attention else None) for p in of_item
                ]
        return results

    def generate(self, item: BatchItem, streamer: Any) -> list[Prediction]:
        """The text for one item; ``streamer`` gets it token by token meanwhile."""
        [predictions] = self.predictor.predict([item.example], 1, item.attention, self.name, streamer=streamer)
        return predictions

    def warm_up_items(self) -> Iterator[BatchItem]:
        for top_k in (1, 2) if self.is_generative else (5,):
            yield BatchItem(self._blank_example(), top_k, attention=True)

    def _group_by_top_k(self, items: Sequence[BatchItem]) -> dict[int, list[int]]:
        """Indices of the items of each pass, by its number of answers. A search with more beams may find other texts,
        so generative requests share a pass only if they want the same number.
        """
        if not self.is_generative:
            return {max(item.top_k for item in items): list(range(len(items)))}
        groups: dict[int, list[int]] = {}
        for i, item in enumerate(items):
            groups.setdefault(item.top_k, []).append(i)
        return groups


class MatchingAdapter(TaskAdapter):
    """A matching decoder: the probability that each text belongs to the image."""

    def run(self, items: Sequence[BatchItem]) -> list[Matches]:
        predictions = self.predictor.predict([item.example for item in items], top_k=2, task=self.name)
        return [Matches("matching", [dict(p.answers)[MATCH] for p in of_item]) for of_item in predictions]


class SimilarityAdapter(TaskAdapter):
    """A contrastive decoder: cosines, and a softmax over the texts, as in CLIP (Radford et al. 2021, section 3.1)."""

    def run(self, items: Sequence[BatchItem]) -> list[Matches]:
        predictions = self.predictor.predict([item.example for item in items], top_k=1, task=self.name)
        temperature: float = self.predictor.model.decoder.task_decoders()[self.name].temperature
        return [_softmax_matches([p.answers[0][1] for p in of_item], temperature) for of_item in predictions]


class EmbeddingAdapter(TaskAdapter):
    """A contrastive decoder: vectors of images and texts."""

    def run(self, items: Sequence[BatchItem]) -> list[Embeddings]:
        # Encoders need at least one image and one text, so a blank of each is added to the batch and removed again.
        examples = [*(item.example for item in items), self._blank_example()]
        batch = self.predictor.processor.collate_tasks([e.decoded for e in examples], {self.name: examples})
        embedded = self.predictor.embed_collated(batch, self.name)
        assert embedded is not None
        image_BD, text_ND = embedded
        stops = np.cumsum([len(e.texts) for e in examples])
        return [
            Embeddings(image_BD[b] if IMAGE in e.decoded else None, text_ND[stop - len(e.texts) : stop])
            for b, (stop, e) in enumerate(zip(stops[:-1], examples[:-1], strict=True))
        ]


def task_adapters(predictor: Predictor) -> Mapping[Task, TaskAdapter]:
    """An adapter for each task that the model can do, on the first head (by name) that fits.

    Texts are matched by a matching decoder if there is one, else by a contrastive one.
    """
    specs = predictor.processor.tasks

    def first(fits: Callable[[TaskSpec], bool]) -> list[str]:
        return [name for name in specs if fits(specs[name])][:1]

    contrastive = [name for name, head in predictor.model.decoder.task_decoders().items() if head.is_contrastive][:1]
    adapters: dict[Task, TaskAdapter] = {}
    for name in first(lambda spec: spec.reads == "questions" and spec.text and spec.target in ("answer", "tokens")):
        adapters["vqa"] = AnswerAdapter(predictor, name)
    for name in first(lambda spec: not spec.text and spec.target == "tokens"):
        adapters["caption"] = AnswerAdapter(predictor, name)
    for name in contrastive:
        adapters["match"] = SimilarityAdapter(predictor, name)
    for name in first(lambda spec: spec.target == "match"):
        adapters["match"] = MatchingAdapter(predictor, name)
    for name in contrastive:
        adapters["embed"] = EmbeddingAdapter(predictor, name)
    return adapters


def _softmax_matches(cosines: Sequence[float], temperature: float) -> Matches:
    scores_N = np.array(cosines) / temperature
    shares_N = np.exp(scores_N - scores_N.max())
    shares_N /= shares_N.sum()
    probabilities: list[float | None] = [None] if len(cosines) == 1 else shares_N.tolist()
    return Matches("similarity", probabilities, cosines, temperature)
