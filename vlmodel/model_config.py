"""The settings of a model: its parts, and whether they fit each other. Reading them imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from vlmodel import part_configs
from vlmodel.config import ConfigError, ConfigSection, part_field
from vlmodel.encoder_parts import IMAGE, TEXT, EncoderPart, ModalityPart
from vlmodel.images.preprocessing import as_height_and_width
from vlmodel.media.registry import all_media
from vlmodel.tasks import DEFAULT

if TYPE_CHECKING:
    from vlmodel.processor import ProcessorConfig, VLProcessor


_MIN_TEXT = 4
"""Tokens that a text itself has at least, beside those of its facts."""

RESERVED = (IMAGE, TEXT, "vision", "language", "knowledge", "joint")
"""Names of inputs and streams that no further input may have."""


class InputEncoding(NamedTuple):
    """Says which input an encoder encodes, and by which part."""

    input: str
    part: EncoderPart


class ModelConfig(ConfigSection):
    """The settings of all parts of a model."""

    vision: part_field("vlmodel.vision", "cnn") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Vision encoder."""
    language: part_field("vlmodel.language", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Language encoder."""
    inputs: dict[str, part_field("vlmodel.modality", "series")] = {}  # type: ignore[valid-type]
    """Encoders of further inputs of a sample, each under the input's name: KEY.imu.npy is the input imu."""
    knowledge: part_field("vlmodel.knowledge", "none") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """How the model uses the facts of a store (knowledge.store)."""
    topology: part_field("vlmodel.topology", "dual") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Where the streams meet."""
    fusion: part_field("vlmodel.fusion", "transformer") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """How they meet."""
    task: part_field("vlmodel.tasks", DEFAULT) = Field({}, validate_default=True)  # type: ignore[valid-type]
    """What the model learns and answers."""

    @field_validator("inputs")
    @classmethod
    def _check_input_names(cls, inputs: dict[str, ModalityPart]) -> dict[str, ModalityPart]:
        for name, encoder in inputs.items():
            others = [*RESERVED, *(medium for medium in all_media() if medium not in (*RESERVED, encoder.medium))]
            if not name.isidentifier() or name in others:
                raise ValueError(
                    f"{name!r} is no name for a further input: it has letters, digits and underscores only, and is "
                    f"none of {', '.join(others)}"
                )
            from vlmodel.streams import StreamAdapters

            if hasattr(StreamAdapters({}, 1), name):
                raise ValueError(f"torch's modules have a {name!r} of their own; give the input another name")
        return dict(sorted(inputs.items()))

    @model_validator(mode="after")
    def _check_names_and_streams(self) -> ModelConfig:
        if both := sorted(set(self.inputs) & set(self.task.tasks_by_name())):
            raise ValueError(f"{both[0]!r} is the name of an input and of a task; give one of them another name")
        encoded = set(self.encoders_by_stream())
        if not encoded:
            raise ValueError(
                f"vision.kind={self.vision.kind!r}, no inputs, and task.kind={self.task.kind!r} reads no text: "
                "nothing is encoded; name an encoder (vision, inputs)"
            )
        if missing := sorted(self.task.unfused_stream_names() - encoded):
            raise ValueError(
                f"task.kind={self.task.kind!r} reads the stream {missing[0]!r}, and the model has "
                f"{', '.join(sorted(encoded))}; name another (task.stream), or its encoder (vision, inputs)"
            )
        if unread := sorted(set(self.inputs) - encoded):
            raise ValueError(
                f"no task reads inputs.{unread[0]}; leave it out, or name it in task.stream of a contrastive task"
            )
        return self

    @model_validator(mode="after")
    def _check_topology_encodes_text(self) -> ModelConfig:
        if not self.topology.encodes_text:
            return self
        if self.task.reads_unfused_streams():
            raise ValueError(
                f"topology.kind={self.topology.kind!r} encodes the text together with the image, and "
                f"task.kind={self.task.kind!r} reads it encoded alone, as every contrastive task does; use "
                "topology.kind='dual' or 'interactive', or leave that task out"
            )
        try:
            self.language.embeddings_only()
        except ConfigError as error:
            raise ValueError(
                f"topology.kind={self.topology.kind!r} encodes the text itself, from its embeddings: {error}"
            ) from None
        return self

    @model_validator(mode="after")
    def _check_knowledge_is_used(self) -> ModelConfig:
        knowledge = self.knowledge
        if knowledge.reads_facts and not self.task.reads_text():
            raise ValueError(
                f"knowledge.kind={knowledge.kind!r} looks up the facts of a text, and task.kind={self.task.kind!r} "
                "reads none; choose a task with questions, or knowledge.kind='none'"
            )
        if knowledge.writes_evidence() and not any(task.writes_text for task in self.task.tasks_by_name().values()):
            raise ValueError(
                f"knowledge.where='output' has the model name its evidence in what it writes, and task.kind="
                f"{self.task.kind!r} writes nothing; use where='input', or task.kind='answer'"
            )
        if knowledge.gives_stream and not self.task.reads_joint_stream():
            raise ValueError(
                f"knowledge.kind={knowledge.kind!r} is a stream that meets the others, and task.kind="
                f"{self.task.kind!r} reads them alone; use knowledge.kind='injection', or another task"
            )
        if knowledge.returns_token_layout() and (
            self.topology.encodes_text or not self.language.accepts_token_layout()
        ):
            raise ValueError(
                "knowledge.layout='tree' arranges the tokens within the language encoder, and topology.kind="
                f"{self.topology.kind!r} with language.kind={self.language.kind!r} cannot; use layout='flat', or a "
                "BERT with topology.kind='dual' or 'interactive'"
            )
        return self

    def encoders_by_stream(self) -> dict[str, InputEncoding]:
        """Map each stream to the input that is encoded into it. Only this method knows which inputs vision and language
        encode.

        What no task reads is left out: data-parallel training waits for the gradient of every parameter.
        """
        found = {}
        if self.vision.reads_images:
            found["vision"] = InputEncoding(IMAGE, self.vision)
        if self.task.encodes_text():
            found["language"] = InputEncoding(TEXT, self.language)
        found |= {name: InputEncoding(name, encoder) for name, encoder in self.inputs.items()}
        if self.task.reads_joint_stream() or self.task.reads_every_stream():
            return found
        return {name: found[name] for name in found if name in self.task.unfused_stream_names()}

    def reads_images(self) -> bool:
        """Whether the model encodes the input "image"."""
        return any(encoding.input == IMAGE for encoding in self.encoders_by_stream().values())

    def frozen_streams(self) -> tuple[str, ...]:
        """List the streams whose encoder has a frozen backbone, so that its features can be cached."""
        encodings = self.encoders_by_stream()
        if self.topology.encodes_text or self.knowledge.reads_facts:
            encodings.pop("language", None)  # with facts, which may be edited, a text is another one
        return tuple(name for name, encoding in encodings.items() if encoding.part.is_frozen())

    def text_feature_kind(self) -> Literal["tokens", "pooled"]:
        """Whether the model needs language features of each token of a text, or one vector for the whole text."""
        reads_tokens = self.task.reads_joint_stream() and (self.topology.reads_tokens or self.fusion.reads_tokens)
        needs_tokens = reads_tokens and self.language.outputs_tokens()
        return "pooled" if self.language.can_pool_features() and not needs_tokens else "tokens"

    def resolve_settings(self, vocabulary: part_configs.Vocabulary, image_size: tuple[int, int]) -> ModelConfig:
        """Return a copy that contains everything that is needed to build the model.

        Args:
            image_size: height and width of the images.
        """
        language = self.language.embeddings_only() if self.topology.encodes_text else self.language
        return self.model_copy(
            update={
                "vision": self.vision.resolve_settings(image_size),
                "language": language.resolve_settings(vocabulary),
                "inputs": {name: encoder.resolve_settings() for name, encoder in self.inputs.items()},
                "task": self.task.resolve_settings(vocabulary),
            }
        )

    def check_processor(self, processor: ProcessorConfig) -> None:
        """Raise ConfigError if the encoders cannot take the images or texts of a processor.

        Raises:
            ConfigError: naming both settings.
        """
        if self.reads_images() and (size := processor.image_size or self._known_image_size()):
            self.vision.check_image_size(as_height_and_width(size))
        longest, extra = self._longest_encoded_text(), self.knowledge.max_added_tokens()
        if longest is not None and extra and max(processor.max_tokens, _MIN_TEXT) + extra > longest:
            raise ConfigError(
                f"processor.max_tokens={processor.max_tokens} and the {extra} tokens of facts "
                f"(knowledge.max_fact_tokens) are more than the {longest} that model.language takes; lower one of them "
                "or raise the other (language.positions)"
            )
        if longest is not None and processor.max_tokens > longest:
            raise ConfigError(
                f"processor.max_tokens={processor.max_tokens} is more than the {longest} tokens that model.language "
                "takes; lower the one or raise the other (language.positions)"
            )
        longest = self.task.max_generated_tokens()
        if longest is not None and processor.max_target_tokens > longest:
            raise ConfigError(
                f"processor.max_target_tokens={processor.max_target_tokens} is more than the {longest} tokens that "
                "model.task can write; lower the one or raise the other (task.head.positions)"
            )

    def _known_image_size(self) -> tuple[int, int] | None:
        """The height and width of the images that the vision encoder takes by default; None if only files of the
        weights say it.
        """
        trained = self.vision.preprocessing_if_known()
        return None if trained is None else trained.size

    def fill_in_preprocessing(self, processor: ProcessorConfig) -> ProcessorConfig:
        """Fill in the image settings of a processor that follow the weights of the vision encoder.

        Raises:
            ConfigError: they contradict the weights.
            WeightsError: the weights say it themselves, and cannot be read.
        """
        return processor.fill_in_preprocessing(self.vision.preprocessing()) if self.reads_images() else processor

    def _longest_encoded_text(self) -> int | None:
        """The greatest number of tokens of a text that the language encoder takes; None for no limit, or if it encodes
        no texts.
        """
        limit: int | None = self.language.max_text_tokens() if self.task.encodes_text() else None
        return limit

    def text_limits(self, processor: VLProcessor) -> tuple[int | None, int | None]:
        """The greatest numbers of tokens of a text that the model reads, and of one that it generates; None for no
        limit.

        Raises:
            WeightsError: a pretrained part does not exist.
        """
        resolved = self.resolve_settings(
            vocabulary_of_processor(processor), as_height_and_width(processor.config.image_size)
        )
        longest = resolved._longest_encoded_text()
        if longest is not None:
            longest -= self.knowledge.max_added_tokens()
        return longest, resolved.task.max_generated_tokens()


def vocabulary_of_processor(processor: VLProcessor) -> part_configs.Vocabulary:
    """Collect what the model's parts need to know about a processor's tokens and labels."""
    begin, end = (-1 if token is None else token for token in (processor.begin_id, processor.end_id))
    tokenizer = processor.tokenizer
    return part_configs.Vocabulary(len(tokenizer), tokenizer.pad_token_id, len(processor.labels), begin, end)
