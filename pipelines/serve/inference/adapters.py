"""The service's tasks in terms of the model: which of its heads does each, and how it answers a batch of requests."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from pipelines.serve.service import Embeddings, Matches, Task
from vlmodel.inference import Prediction, Predictor
from vlmodel.processor import Example, VLProcessor
from vlmodel.task_spec import MATCH, TaskSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodedExample(Example):
    """An example whose image was decoded ahead; its encoded bytes are gone. Without pixels it has no image."""

    pixels_HWC: NDArray[np.uint8] | None = None


class PredecodedProcessor(VLProcessor):
    """The processor, spared the decoding of what was decoded ahead, and for several threads."""

    # A tokenizer keeps how it pads and truncates as a state of its own, which each call sets.
    _collating = threading.Lock()

    def collate_tasks(
        self, images: Sequence[NDArray[np.uint8]], examples: Mapping[str, Sequence[Example]]
    ) -> dict[str, NDArray[np.generic]]:
        with self._collating:
            return super().collate_tasks(images, examples)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        with self._collating:
            return super().truncated(texts)

    def images(self, examples: Sequence[Example]) -> list[NDArray[np.uint8]]:
        pixels = [e.pixels_HWC if isinstance(e, DecodedExample) else None for e in examples]
        return [self.decode(e.image) if p is None else p for e, p in zip(examples, pixels, strict=True)]


@dataclass(frozen=True)
class Item:
    """What one request asks of a head."""

    example: DecodedExample
    top_k: int = 1
    attention: bool = False


class TaskAdapter(ABC, Generic[Result]):
    """One of the model's heads, at one of the service's tasks.

    Args:
        name: of the head among the model's tasks.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor, self.name = predictor, name

    @abstractmethod
    def run(self, items: Sequence[Item]) -> list[Result]:
        """The answers to all items, in their order; none depends on what else is in the batch."""

    def warm_ups(self) -> Iterator[Item]:
        """One item of each kind that is computed in a way of its own."""
        yield Item(self._blank())

    def _blank(self, text: str = "what is this?") -> DecodedExample:
        size = self.predictor.processor.config.image_size
        return DecodedExample(b"", (text,), pixels_HWC=np.zeros((size, size, 3), np.uint8))


class Answering(TaskAdapter[list[Prediction]]):
    """Ranked answers, or texts that are written."""

    @property
    def writes(self) -> bool:
        """Whether the answers are written, and not chosen."""
        return self.predictor.processor.tasks[self.name].target == "tokens"

    def run(self, items: Sequence[Item]) -> list[list[Prediction]]:
        answers: list[list[Prediction]] = [[] for _ in items]
        for top_k, places in self._passes(items).items():
            attention = any(items[place].attention for place in places)
            found = self.predictor.predict([items[place].example for place in places], top_k, attention, self.name)
            for place, of_one in zip(places, found, strict=True):
                item = items[place]
                answers[place] = [
                    Prediction(p.answers[: item.top_k], p.attention_HW if item.attention else None) for p in of_one
                ]
        return answers

    def write(self, item: Item, streamer: Any) -> Prediction:
        """The text of one row, which ``streamer`` is given token by token meanwhile."""
        [[prediction]] = self.predictor.predict([item.example], 1, item.attention, self.name, streamer=streamer)
        return prediction

    def warm_ups(self) -> Iterator[Item]:
        for top_k in (1, 2) if self.writes else (5,):
            yield Item(self._blank(), top_k, attention=True)

    def _passes(self, items: Sequence[Item]) -> dict[int, list[int]]:
        """How many answers each pass finds, and for which items. A search with more beams may find other texts, so
        what is written is not shared among requests that want different numbers.
        """
        if not self.writes:
            return {max(item.top_k for item in items): list(range(len(items)))}
        passes: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            passes.setdefault(item.top_k, []).append(place)
        return passes


class Matching(TaskAdapter[Matches]):
    """A matching decoder, which judges each text by itself."""

    def run(self, items: Sequence[Item]) -> list[Matches]:
        found = self.predictor.predict([item.example for item in items], top_k=2, task=self.name)
        return [Matches("matching", [dict(p.answers)[MATCH] for p in of_one]) for of_one in found]


class Similarity(TaskAdapter[Matches]):
    """A contrastive decoder, which compares the texts of a request, as in CLIP (Radford et al. 2021, section 3.1)."""

    def run(self, items: Sequence[Item]) -> list[Matches]:
        found = self.predictor.predict([item.example for item in items], top_k=1, task=self.name)
        temperature: float = self.predictor.model.decoder.task_decoders()[self.name].temperature
        return [_matches([p.answers[0][1] for p in of_one], temperature) for of_one in found]


class Embedding(TaskAdapter[Embeddings]):
    """A contrastive decoder's vectors."""

    def run(self, items: Sequence[Item]) -> list[Embeddings]:
        examples = [item.example for item in items]
        # Encoders are not made for no images or no texts at all: a blank of each is in every batch, and left out again.
        blank = self._blank()
        assert blank.pixels_HWC is not None
        pixels = [e.pixels_HWC for e in examples if e.pixels_HWC is not None]
        processor = self.predictor.processor
        batch = processor.collate_tasks([*pixels, blank.pixels_HWC], {self.name: [*examples, blank]})
        present_B = np.array([e.pixels_HWC is not None for e in [*examples, blank]])
        batch["image_place_B"] = np.where(present_B, present_B.cumsum() - 1, present_B.sum())
        embedded = self.predictor.embed_collated(batch, self.name)
        assert embedded is not None
        image_BD, text_ND = embedded
        stops = np.cumsum([len(e.texts) for e in examples])
        return [
            Embeddings(image_BD[b] if present_B[b] else None, text_ND[stop - len(e.texts) : stop])
            for b, (stop, e) in enumerate(zip(stops, examples, strict=True))
        ]


def task_adapters(predictor: Predictor) -> Mapping[Task, TaskAdapter[Any]]:
    """The service's tasks that the model can do, each with the head for it: the first that fits, by name.

    Texts are matched by a decoder that was trained to, where there is one, and by a contrastive one elsewhere.
    """
    by_name = predictor.model.decoder.task_decoders()
    comparing = [name for name, head in by_name.items() if head.is_contrastive]
    fields = predictor.processor.tasks

    def first(fits: Callable[[TaskSpec], bool]) -> list[str]:
        return [name for name in fields if fits(fields[name])][:1]

    found: dict[Task, TaskAdapter[Any]] = {}
    for name in first(lambda f: f.reads == "questions" and f.text and f.target in ("answer", "tokens")):
        found["vqa"] = Answering(predictor, name)
    for name in first(lambda f: not f.text and f.target == "tokens"):
        found["caption"] = Answering(predictor, name)
    for name in comparing[:1]:
        found["match"] = Similarity(predictor, name)
    for name in first(lambda f: f.target == "match"):
        found["match"] = Matching(predictor, name)
    for name in comparing[:1]:
        found["embed"] = Embedding(predictor, name)
    return found


def _matches(cosines: Sequence[float], temperature: float) -> Matches:
    scores_N = np.array(cosines) / temperature
    shares_N = np.exp(scores_N - scores_N.max())
    shares_N /= shares_N.sum()
    probabilities: list[float | None] = [None] if len(cosines) == 1 else shares_N.tolist()
    return Matches("similarity", probabilities, cosines, temperature)
