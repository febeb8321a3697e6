"""The base class of tasks whose answer is generated token by token, such as captioning and generative answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from vlmodel.config import ConfigError, part_field
from vlmodel.conversation import conversation_from_text, extract_question, insert_facts, is_conversation_text
from vlmodel.operations.base import Operation
from vlmodel.operations.chat import ChatOperation
from vlmodel.task import Task
from vlmodel.text_head import TextHeadPart

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vlmodel.facts import LinkedFact
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Answers, Decoder, TextWriter
    from vlmodel.processor import VLProcessor
    from vlmodel.tokens import DecoderInput


class GenerationTask(Task):
    """A task in which each row has one text to be generated."""

    writes_text: ClassVar[bool] = True
    operations: ClassVar[tuple[Operation, ...]] = (ChatOperation(),)

    head: part_field("vlmodel.heads", "sequence") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """What writes: a small decoder with cross-attention, or a language model."""

    @property
    def text_head(self) -> TextHeadPart:
        """The settings of the head that generates the texts."""
        return cast(TextHeadPart, self.head)

    def serves_operation(self, operation: Operation) -> bool:
        return operation.name != ChatOperation.name or self.text_head.accepts_conversations()

    def reads_joint_stream(self) -> bool:
        return self.text_head.reads_joint_stream()

    def reads_every_stream(self) -> bool:
        return not self.text_head.reads_joint_stream()

    def reads_unfused_streams(self) -> bool:
        # Streams that a language model reads are of the inputs; text it reads itself.
        return False

    def encodes_text(self) -> bool:
        return self.reads_text() and self.text_head.encodes_text()

    def needs_begin_and_end_tokens(self) -> bool:
        return self.text_head.needs_begin_and_end_tokens()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.text_head.check_tokenizer(tokenizer)

    def checkpoint_metric(self) -> Literal["accuracy", "loss"]:
        return "loss"

    def resolve_settings(self, vocabulary: Vocabulary) -> GenerationTask:
        return self.model_copy(update={"head": self.text_head.resolve_settings(vocabulary)})

    def max_generated_tokens(self) -> int | None:
        return self.text_head.max_generated_tokens()

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        super().check_generation(settings, top_k, max_target_tokens)
        longest, requested = self.max_generated_tokens(), settings.get("max_new_tokens", 0)
        if longest is not None and requested > longest:
            raise ConfigError(
                f"max_new_tokens={requested} is more than the {longest} that the decoder knows; lower the one or raise "
                "the other (task.head.positions)"
            )

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> TextWriter:
        return self.text_head.build(widths, vocabulary)

    def collate_texts(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        # A question is cut, as in training; what is said in a conversation is not.
        limits = [None if is_conversation_text(text) else processor.config.max_tokens for text in texts]
        known = [[linked.fact.text for linked in of_row] for of_row in facts]
        turns = [insert_facts(conversation_from_text(text), of_row) for text, of_row in zip(texts, known, strict=True)]
        # An encoder of texts, where there is one, reads the last thing that was said.
        encoded = super().collate_texts([extract_question(text) for text in texts], facts, processor)
        return encoded | self.text_head.collate_prompts(turns, limits, processor)

    def collate_targets(
        self, targets: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        return self.text_head.collate_targets(targets, processor)

    def predict_answers(
        self, head: Decoder, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """Generate the answers by the head, see ``TextWriter.generate_answers``."""
        self.check_generation(
            {k: v for k, v in settings.items() if k != "streamer"}, top_k, processor.config.max_target_tokens
        )
        return cast("TextWriter", head).generate_answers(encoded, processor, top_k, **settings)
