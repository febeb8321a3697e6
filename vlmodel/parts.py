"""What each kind of part must be: the base classes that ``vision/``, ``language/``, ``fusion/``, ... fill in.

A part is one file with a ``Config`` and a module. ``Config.build`` makes the module and draws its weights; it reads no
files. Weights from elsewhere are read once, when a model is created (``Encoder.load_pretrained``), and lie in the
model's own checkpoint from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor, nn

from vlmodel import generation
from vlmodel.config import ConfigError, Part
from vlmodel.errors import ExpectedError
from vlmodel.task_spec import TaskSpec
from vlmodel.tokens import DecoderInput, Fused, Tokens

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor


class WeightsError(ExpectedError, ValueError):
    """Weights that cannot be loaded into a part. The message names the file, the first differences and the remedy."""


@dataclass(frozen=True)
class Vocabulary:
    """What the parts must know of the tokenizer and the task.

    Attributes:
        size: number of token ids.
        padding: token id of the padding.
        labels: number of answers K that a classifier chooses among; 0 where there are none.
        begin, end: token ids that begin and end a text to be written; -1 where the tokenizer has none.
    """

    size: int
    padding: int
    labels: int
    begin: int = -1
    end: int = -1


class Encoder(nn.Module):
    """Base of the encoders: turns one input into ``Tokens`` of ``width``. Subclasses give ``forward``."""

    width: int

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[str] = []

    def load_pretrained(self) -> None:
        """Read the weights that the configuration names; called once, when a model is created, never afterwards.

        Raises:
            WeightsError: they do not exist or do not fit.
        """

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters that came from elsewhere, and so want a smaller learning rate than fresh ones."""
        return iter(())

    def to_grid(self, weights_NT: Tensor) -> Tensor | None:
        """(N, H, W) from what was given to each of the encoder's tokens, such as attention; None if they are no grid.

        Here the tokens are taken for a square grid, row by row; images are square.
        """
        side = math.isqrt(weights_NT.shape[1])
        return weights_NT.unflatten(1, (side, side)) if side * side == weights_NT.shape[1] else None

    def frozen_state(self) -> dict[str, Tensor]:
        """All weights that training never changes, by their names; kept features depend on no others."""
        parameters = {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}
        return parameters | dict(self.named_buffers())

    def freeze(self, *names: str) -> None:
        """Take submodules out of training: no gradient, and evaluation mode for good (BatchNorm and dropout rest)."""
        self._frozen.extend(names)
        for name in names:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self


class VisionEncoder(Encoder):
    """Base of the vision encoders: ``forward(pixels_BHWC: uint8)`` returns ``Tokens``.

    If the backbone is frozen (``VisionPart.is_frozen``), ``forward(x) = from_features(features(x))``, and the features
    can be cached.
    """

    def features(self, pixels_BHWC: Tensor) -> Tensor:
        """What the backbone gives of uint8 images, (B, F): all that the rest of the encoder reads."""
        raise NotImplementedError

    def from_features(self, features_BF: Tensor) -> Tokens:
        """The rest of the encoder.

        Raises:
            ValueError: the features are not of this encoder.
        """
        raise NotImplementedError


class LanguageEncoder(Encoder):
    """Base of the language encoders: ``forward(input_ids_NT, mask_NT)`` returns ``Tokens``.

    The first token of the stream is its classification token, wherever the tokenizer puts it; the other real tokens
    follow in their order, then the padding.

    Where the whole backbone rests (``LanguagePart.is_frozen``) it also comes in two halves, whose composition it is.
    """

    def features(self, input_ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone gives of the tokens of N texts, (N, T, F), and which of them are real, (N, T)."""
        raise NotImplementedError

    def pooled_features(self, features_NTF: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """The features of one token for each text, (N, 1, F), whose pooled vector is that of all of its tokens, and
        whether the text has any token, (N, 1); of an encoder that ``LanguagePart.can_pool_features``.
        """
        raise NotImplementedError

    def from_features(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        """The rest of the encoder."""
        raise NotImplementedError


class VisionPart(Part):
    """Configuration of a vision encoder.

    Attributes:
        beside_backbone: settings on which the features (``VisionEncoder.features``) depend at most by its weights.
    """

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset()

    def build(self) -> VisionEncoder:
        raise NotImplementedError

    def is_frozen(self) -> bool:
        """Whether the whole backbone is left untrained, so that what it gives of an image never changes."""
        return False

    def unused_setting(self) -> str | None:
        """A setting that changes nothing beside the others, its value and the remedy; None if there is none.

        A saved model may have one, so that it is for who chooses settings to refuse it.
        """
        return None

    def check_image(self, size: int) -> None:
        """Refuse square images of ``size`` pixels a side (``processor.image_size``) that the encoder cannot take.

        Raises:
            ConfigError: naming both sides and the remedy.
        """


class LanguagePart(Part):
    """Configuration of a language encoder.

    Attributes:
        beside_backbone: as ``VisionPart``'s.
    """

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset()

    def is_frozen(self) -> bool:
        """As ``VisionPart``'s, of an encoder whose backbone is more than a table of embeddings."""
        return False

    def can_pool_features(self) -> bool:
        """Whether the pooled vector of a text is that of one token, which the backbone alone gives."""
        return False

    def outputs_tokens(self) -> bool:
        """Whether the encoder gives the tokens of a text, and not its pooled vector as the only one."""
        return True

    def resolve(self, vocabulary: Vocabulary) -> LanguagePart:
        """The same with all that ``build`` needs inside, so that a checkpoint does not depend on other files."""
        return self

    def build(self, vocabulary: Vocabulary) -> LanguageEncoder:
        raise NotImplementedError

    def longest_text(self) -> int | None:
        """Greatest number of tokens in a text, where the encoder has a limit that is known before it is built."""
        return None

    def without_layers(self) -> LanguagePart:
        """The same encoder without its layers.

        Raises:
            ConfigError: it has none that could be left out.
        """
        raise ConfigError(f"language.kind={self.kind!r} has no embeddings to be used alone; use topology.kind='dual'")


class Fusion(nn.Module):
    """Base of the fusions. ``width`` is that of the result.

    A stream is missing in a row where its mask is all False, and in every row where it is not given at all. What it
    holds there changes nothing, and values and gradients are finite, even where every stream is missing.
    """

    width: int

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Bring the stream ``name`` to the width of the fusion.

        It is apart from ``forward`` because a topology adapts an image once and then repeats it for each of its texts.
        """
        raise NotImplementedError

    def forward(
        self, streams: Mapping[str, Tokens], *, pooled_only: bool = False, output_attention: bool = False
    ) -> Fused:
        """Make one stream of adapted ``streams``, which agree in their first dimension.

        Args:
            pooled_only: only ``pooled_BD`` of the result will be read; its tokens may be anything.
            output_attention: return the attention too, where the fusion has one.
        """
        raise NotImplementedError


class FusionPart(Part):
    """Configuration of a fusion.

    Attributes:
        reads_tokens: the fusion reads the tokens of the streams; else only their pooled vectors.
    """

    reads_tokens: ClassVar[bool] = True

    def build(self, widths: Mapping[str, int]) -> Fusion:
        """Args: widths: width of each stream, by its name."""
        raise NotImplementedError


class Topology(nn.Module):
    """Base of the topologies. ``width`` is that of the result. A stream may be missing, as in a fusion."""

    width: int

    def forward(
        self,
        streams: Mapping[str, Tokens],
        rows: Mapping[str, Tensor],
        *,
        pooled_only: bool = False,
        output_attention: bool = False,
    ) -> Fused:
        """Make one stream with a row for each text.

        Args:
            streams: the encoded streams.
            rows: for each stream that is shared by several texts (images), the row of it that belongs to text n; a
                stream that is not named has a row for each text.
            pooled_only, output_attention: as for a fusion.
        """
        raise NotImplementedError


class TopologyPart(Part):
    """Configuration of a topology.

    Attributes:
        encodes_text: the topology is the text's encoder: the language encoder then gives its embeddings only.
        reads_tokens: the topology itself reads the tokens of the streams; else only its fusion may.
    """

    encodes_text: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = True

    def fusion_widths(self, widths: Mapping[str, int]) -> Mapping[str, int]:
        """Width of each stream where the fusion takes it, of those that the encoders give."""
        return widths

    def build(self, fusion: Fusion, widths: Mapping[str, int]) -> Topology:
        raise NotImplementedError


@dataclass(frozen=True)
class DecoderOutput:
    """What a decoder returns; sums rather than means, so that they can be added over batches and workers.

    A unit is what the task counts: a text for a classifier, a token for a decoder of sequences.

    Attributes:
        logits_NK: scores of the classes, where the task has classes.
        loss_sum: weighted sum of the losses of the units that have a target; None where no targets were given.
        count: sum of their weights.
        correct: weighted sum of the units that came out right.
        total: sum of the weights of all units, those that cannot come out right included.
    """

    logits_NK: Tensor | None = None
    loss_sum: Tensor | None = None
    count: Tensor | None = None
    correct: Tensor | None = None
    total: Tensor | None = None


Answers = list[tuple[str, float]]
"""Answers to one row of a task with their probabilities (or scores), the best first."""


class Decoder(nn.Module):
    """Base of the decoders. A decoder is a task: it says what it reads, and owns loss, counts and answers.

    Attributes:
        spec: what the task reads of a sample.
        pooled_only: the decoder reads nothing of the joint stream but its pooled vector.
        reads_joint: the decoder reads the joint stream; else only what the encoders gave, and nothing is fused for it.
        compares: the decoder embeds images and texts in one space (``embed``), so that either finds the other.
    """

    spec: TaskSpec
    pooled_only: bool = False
    reads_joint: bool = True
    is_contrastive: bool = False

    def task_decoders(self) -> Mapping[str, Decoder]:
        """The tasks by their names; one alone is called ""."""
        return {"": self}

    def load_pretrained(self) -> None:
        """As ``Encoder``'s."""

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """As ``Encoder``'s."""
        return iter(())

    def combine(self, decoded: Mapping[str, DecoderOutput]) -> DecoderOutput:
        """One result of those of ``heads``, which is what is trained on and compared."""
        return next(iter(decoded.values()))

    def forward(self, encoded: DecoderInput, **targets: Tensor | None) -> DecoderOutput:
        """Loss and counts where there are targets; each task names its own."""
        raise NotImplementedError

    def answer(self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any) -> list[Answers]:
        """The ``top_k`` best answers to each of the N rows.

        Args:
            settings: of generation, for decoders that generate (transformers' ``GenerationConfig``).
        """
        raise NotImplementedError

    def embed(self, encoded: DecoderInput) -> tuple[Tensor, Tensor]:
        """Embeddings of the B images and the N texts, whose dot product is their similarity; of one that compares."""
        raise NotImplementedError

    def attention(self, encoded: DecoderInput, processor: VLProcessor, answers: list[Answers]) -> Tensor | None:
        """(N, T): where in the joint stream the decoder looked for the best answers; None if only the fusion looks."""
        return None


class DecoderPart(Part):
    """Configuration of a decoder."""

    def tasks(self) -> dict[str, TaskSpec]:
        """What each task reads, by its name."""
        raise NotImplementedError

    def reads_joint(self) -> bool:
        """Whether any task reads the joint stream; where none does, the model has no topology and no fusion."""
        return True

    def reads_encoded(self) -> bool:
        """Whether any task reads what the encoders give, for which the language encoder must have its layers."""
        return not self.reads_joint()

    def resolve(self, vocabulary: Vocabulary) -> DecoderPart:
        """As ``LanguagePart``'s."""
        return self

    def longest_target(self) -> int | None:
        """Greatest number of tokens in a text to be written, where there is a limit that is known."""
        return None

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        """Refuse settings of generation by which ``top_k`` texts cannot be written, as ``generation.check`` does.

        A task that writes nothing ignores them; here they are refused by what is known without a decoder.

        Raises:
            ConfigError: naming the setting, its value and the remedy.
        """
        generation.check(settings, top_k, max_target_tokens)

    def selection_metric(self) -> Literal["accuracy", "loss"]:
        """The validation figure by which the best checkpoint is chosen."""
        return "accuracy"

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        """Args: widths: of the encoded streams by their names, and of the "joint" one, where the decoder reads it."""
        raise NotImplementedError
