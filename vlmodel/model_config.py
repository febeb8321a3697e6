"""The settings of a model: its parts and whether they fit each other, and what transformers stores of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from transformers import AutoConfig, PreTrainedConfig

from vlmodel import parts
from vlmodel.config import ConfigError, Section, part

if TYPE_CHECKING:
    from vlmodel.processor import ProcessorConfig, VLProcessor


class ModelConfig(Section):
    """The parts of the model."""

    vision: part("vlmodel.vision", "cnn") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Vision encoder."""
    language: part("vlmodel.language", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Language encoder."""
    topology: part("vlmodel.topology", "dual") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Where the streams meet."""
    fusion: part("vlmodel.fusion", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """How they meet."""
    decoder: part("vlmodel.decoder", "vqa") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """The task."""

    @model_validator(mode="after")
    def _text_is_encoded_once(self) -> ModelConfig:
        if not self.topology.encodes_text:
            return self
        if self.decoder.reads_encoded():
            raise ValueError(
                f"topology.kind={self.topology.kind!r} encodes the text together with the image, and "
                f"decoder.kind={self.decoder.kind!r} reads it encoded alone, as every contrastive task does; use "
                "topology.kind='dual' or 'interactive', or leave that task out"
            )
        try:
            self.language.without_layers()
        except ConfigError as error:
            raise ValueError(
                f"topology.kind={self.topology.kind!r} encodes the text itself, from its embeddings: {error}"
            ) from None
        return self

    def frozen_streams(self) -> tuple[str, ...]:
        """Streams whose encoder has a backbone that training does not change, so that its features can be cached."""
        encodes_text = not self.topology.encodes_text and any(spec.text for spec in self.decoder.tasks().values())
        is_frozen = {"vision": self.vision.is_frozen(), "language": encodes_text and self.language.is_frozen()}
        return tuple(name for name in is_frozen if is_frozen[name])

    def text_features(self) -> Literal["tokens", "pooled"]:
        """Whether the model needs the language features of each token of a text, or one vector for the whole text."""
        reads_tokens = self.decoder.reads_joint() and (self.topology.reads_tokens or self.fusion.reads_tokens)
        needs_tokens = reads_tokens and self.language.outputs_tokens()
        return "pooled" if self.language.can_pool_features() and not needs_tokens else "tokens"

    def resolve(self, vocabulary: parts.Vocabulary) -> ModelConfig:
        """The same with everything that building it needs."""
        language = self.language.without_layers() if self.topology.encodes_text else self.language
        return self.model_copy(
            update={"language": language.resolve(vocabulary), "decoder": self.decoder.resolve(vocabulary)}
        )

    def check_processor(self, processor: ProcessorConfig) -> None:
        """Refuse a processor whose images or texts the encoders cannot take.

        Raises:
            ConfigError: naming both settings.
        """
        self.vision.check_image(processor.image_size)
        longest = self.language.longest_text()
        if longest is not None and processor.max_tokens > longest:
            raise ConfigError(
                f"processor.max_tokens={processor.max_tokens} is more than the {longest} tokens that model.language "
                "takes; lower the one or raise the other (language.positions)"
            )
        longest = self.decoder.longest_target()
        if longest is not None and processor.max_target_tokens > longest:
            raise ConfigError(
                f"processor.max_target_tokens={processor.max_target_tokens} is more than the {longest} tokens that "
                "model.decoder can write; lower the one or raise the other (decoder.positions)"
            )

    def text_limits(self, processor: VLProcessor) -> tuple[int | None, int | None]:
        """Most tokens of a text that the model takes, and of one that it can write; None where there is no limit.

        Raises:
            WeightsError: a pretrained part does not exist.
        """
        resolved = self.resolve(vocabulary_of(processor))
        return resolved.language.longest_text(), resolved.decoder.longest_target()


def vocabulary_of(processor: VLProcessor) -> parts.Vocabulary:
    """What the parts need to know about a processor's tokens and labels."""
    begin, end = (-1 if token is None else token for token in (processor.begin_id, processor.end_id))
    tokenizer = processor.tokenizer
    return parts.Vocabulary(len(tokenizer), tokenizer.pad_token_id, len(processor.labels), begin, end)


class VLConfig(PreTrainedConfig):
    """transformers' configuration of a ``VLModel``.

    Attributes:
        model: the resolved ``ModelConfig`` as a plain tree; the model is rebuilt from it alone.
        vocab_size, pad_token_id: of the tokenizer.
        begin_token_id, end_token_id: tokens that begin and end a generated text; -1 where there are none.
        id2label, label2id: the answers that a classifier chooses among.
    """

    model_type = "vlmodel"

    model: dict[str, Any] | None = None
    vocab_size: int = 30522
    pad_token_id: int = 0
    begin_token_id: int = -1
    end_token_id: int = -1

    @property
    def vocabulary(self) -> parts.Vocabulary:
        """What the parts need to know about tokens and labels."""
        labels = len(self.id2label or {})
        return parts.Vocabulary(self.vocab_size, self.pad_token_id, labels, self.begin_token_id, self.end_token_id)

    @classmethod
    def of(cls, model: dict[str, Any], processor: VLProcessor) -> VLConfig:
        """The configuration of a model for the tokenizer and labels of ``processor``."""
        vocabulary = vocabulary_of(processor)
        return cls(
            model=model,
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.padding,
            begin_token_id=vocabulary.begin,
            end_token_id=vocabulary.end,
            id2label=dict(enumerate(processor.labels)),
            label2id={label: i for i, label in enumerate(processor.labels)},
        )


AutoConfig.register("vlmodel", VLConfig, exist_ok=True)
