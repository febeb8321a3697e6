"""The base classes of the settings of the model's parts. torch is not imported here: reading settings needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlmodel.config import ConfigError, PartConfig
from vlmodel.encoder_parts import EncoderPart
from vlmodel.images.preprocessing import ImagePreprocessing

if TYPE_CHECKING:
    from vlmodel.parts import Fusion, LanguageEncoder, Topology, VisionEncoder


@dataclass(frozen=True)
class Vocabulary:
    """What the parts of a model need to know about the tokenizer and the labels of the tasks.

    Attributes:
        size: number of token ids.
        padding: token id of the padding.
        labels: number of answers K that a classifier chooses among; 0 if there are none.
        begin, end: token ids that begin and end a generated text; -1 if the tokenizer has none.
    """

    size: int
    padding: int
    labels: int
    begin: int = -1
    end: int = -1


class VisionPart(EncoderPart):
    """The base class of the settings of a vision encoder.

    Attributes:
        reads_images: False of the kind that stands for no vision encoder.
    """

    reads_images: ClassVar[bool] = True

    def resolve_settings(self, image_size: tuple[int, int]) -> VisionPart:
        """Return a copy that contains everything that ``build`` needs, so that a checkpoint depends on no other files.

        Args:
            image_size: height and width of the images.
        """
        return self

    def preprocessing(self) -> ImagePreprocessing:
        """The image preprocessing with which the weights were trained or, without pretrained weights, the usual one of
        the encoder.

        Raises:
            WeightsError: the weights say it themselves, and cannot be read.
        """
        return ImagePreprocessing((224, 224))

    def preprocessing_if_known(self) -> ImagePreprocessing | None:
        """The image preprocessing, as ``preprocessing``; None if files would have to be read for it."""
        return self.preprocessing()

    def build(self) -> VisionEncoder:
        raise NotImplementedError

    def describe_unused_setting(self) -> str | None:
        """Describe a setting that has no effect in combination with the others, with its value and the remedy; None if
        there is none.

        Only whoever chooses settings refuses it, as a saved model may have one.
        """
        return None

    def check_image_size(self, size: tuple[int, int]) -> None:
        """Raise an error if the encoder cannot take images of this height and width (``processor.image_size``).

        Raises:
            ConfigError: naming both settings and the remedy.
        """


class LanguagePart(EncoderPart):
    """The base class of the settings of a language encoder."""

    def can_pool_features(self) -> bool:
        """Whether the pooled vector of a text can be computed from a single feature vector."""
        return False

    def outputs_tokens(self) -> bool:
        """Whether the encoder returns all tokens of a text, instead of only its pooled vector."""
        return True

    def accepts_token_layout(self) -> bool:
        """Whether the encoder takes a ``TokenLayout``."""
        return False

    def resolve_settings(self, vocabulary: Vocabulary) -> LanguagePart:
        """Return a copy that contains everything that ``build`` needs, so that a checkpoint depends on no other
        files.
        """
        return self

    def build(self, vocabulary: Vocabulary) -> LanguageEncoder:
        raise NotImplementedError

    def max_text_tokens(self) -> int | None:
        """The greatest number of tokens of a text, if there is a limit that is known before the encoder is built."""
        return None

    def embeddings_only(self) -> LanguagePart:
        """Return settings of the same encoder reduced to its table of embeddings.

        Raises:
            ConfigError: the encoder cannot be built so.
        """
        raise ConfigError(f"language.kind={self.kind!r} has no embeddings to be used alone; use topology.kind='dual'")


class FusionPart(PartConfig):
    """The base class of the settings of a fusion.

    Attributes:
        reads_tokens: the fusion reads the tokens of the streams; otherwise only their pooled vectors.
    """

    reads_tokens: ClassVar[bool] = True

    def build(self, widths: Mapping[str, int]) -> Fusion:
        """Build the module of the fusion. || Args: widths: width of each stream, by its name."""
        raise NotImplementedError


class TopologyPart(PartConfig):
    """The base class of the settings of a topology.

    Attributes:
        encodes_text: the topology encodes the text itself, from the embeddings of the language encoder.
        reads_tokens: the topology itself reads the tokens of the streams; otherwise only its fusion may.
    """

    encodes_text: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = True

    def fusion_widths(self, widths: Mapping[str, int]) -> Mapping[str, int]:
        """The widths of the streams that the fusion gets, given the widths of the encoders."""
        return widths

    def build(self, fusion: Fusion, widths: Mapping[str, int]) -> Topology:
        raise NotImplementedError
