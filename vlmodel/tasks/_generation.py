"""Tasks whose answer is generated, token by token: what captioning and generative answering share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from vlmodel.config import ConfigError, part
from vlmodel.conversation import is_conversation, of_text, with_facts
from vlmodel.operations.base import Operation
from vlmodel.operations.chat import Chat
from vlmodel.task import Task
from vlmodel.text_head import TextHeadPart

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vlmodel.facts import LinkedFact
    from vlmodel.parts import Answers, Decoder, TextWriter, Vocabulary
    from vlmodel.processor import VLProcessor
    from vlmodel.tokens import DecoderInput


class GenerationTask(Task):
    """A task of one generated text a row."""

    writes_text: ClassVar[bool] = True
    operations: ClassVar[tuple[Operation, ...]] = (Chat(),)

    head: part("vlmodel.heads", "sequence") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """What writes: a small decoder with cross-attention, or a language model."""

    @property
    def writer(self) -> TextHeadPart:
        """The settings of the head."""
        return cast(TextHeadPart, self.head)

    def serves(self, operation: Operation) -> bool:
        return operation.name != Chat.name or self.writer.takes_conversations()

    def reads_joint(self) -> bool:
        return self.writer.reads_joint()

    def reads_streams(self) -> bool:
        return not self.writer.reads_joint()

    def reads_encoded(self) -> bool:
        # Streams that a language model reads are of the inputs; text it reads itself.
        return False

    def encodes_text(self) -> bool:
        return self.reads_text() and self.writer.encodes_text()

    def frames_texts(self) -> bool:
        return self.writer.frames_texts()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.writer.check_tokenizer(tokenizer)

    def selection_metric(self) -> Literal["accuracy", "loss"]:
        return "loss"

    def resolve(self, vocabulary: Vocabulary) -> GenerationTask:
        return self.model_copy(update={"head": self.writer.resolve(vocabulary)})

    def longest_target(self) -> int | None:
        return self.writer.longest_target()

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        super().check_generation(settings, top_k, max_target_tokens)
        longest, requested = self.longest_target(), settings.get("max_new_tokens", 0)
        if longest is not None and requested > longest:
            raise ConfigError(
                f"max_new_tokens={requested} is more than the {longest} that the decoder knows; lower the one or raise "
                "the other (task.head.positions)"
            )

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> TextWriter:
        return self.writer.build(widths, vocabulary)

    def collate_texts(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        # A question is cut, as in training; what is said in a conversation is not.
        limits = [None if is_conversation(text) else processor.config.max_tokens for text in texts]
        known = [[linked.fact.text for linked in of_text] for of_text in facts]
        turns = [with_facts(of_text(text), of_row) for text, of_row in zip(texts, known, strict=True)]
        return super().collate_texts(texts, facts, processor) | self.writer.collate_prompts(turns, limits, processor)

    def collate_targets(
        self, targets: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        return self.writer.collate_targets(targets, processor)

    def answer(
        self, head: Decoder, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """See ``TextWriter.answer``."""
        self.check_generation(
            {k: v for k, v in settings.items() if k != "streamer"}, top_k, processor.config.max_target_tokens
        )
        return cast("TextWriter", head).answer(encoded, processor, top_k, **settings)
