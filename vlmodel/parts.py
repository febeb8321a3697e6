"""What each kind of part must be: the base classes that ``vision/``, ``language/``, ``fusion/``, ... fill in.

A part is one file with a ``Config`` and a module. ``Config.build`` makes the module and draws its weights; it reads no
files. Weights from elsewhere are read once, when a model is created (``Encoder.load_pretrained``), and lie in the
model's own checkpoint from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from vlmodel.config import Part
from vlmodel.tokens import Fused, Tokens


class WeightsError(ValueError):
    """Weights that cannot be loaded into a part. The message names the file, the first differences and the remedy."""


@dataclass(frozen=True)
class Vocabulary:
    """What the parts must know of the tokenizer and the task.

    Attributes:
        size: number of token ids.
        padding: token id of the padding.
        labels: number of classes K that the task has; 0 where it has none.
    """

    size: int
    padding: int
    labels: int


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


class VisionPart(Part):
    """Configuration of a vision encoder, whose ``forward(pixels_BHWC: uint8)`` returns ``Tokens``."""

    def build(self) -> Encoder:
        raise NotImplementedError

    def smallest_image(self) -> int:
        """Side of the smallest square image, in pixels, that the encoder can take."""
        return 1


class LanguagePart(Part):
    """Configuration of a language encoder, whose ``forward(input_ids_NT, mask_NT)`` returns ``Tokens``."""

    def resolve(self, vocabulary: Vocabulary) -> LanguagePart:
        """The same with all that ``build`` needs inside, so that a checkpoint does not depend on other files."""
        return self

    def build(self, vocabulary: Vocabulary) -> Encoder:
        raise NotImplementedError

    def longest_text(self) -> int | None:
        """Greatest number of tokens in a text, where the encoder has a limit that is known before it is built."""
        return None


class Fusion(nn.Module):
    """Base of the fusions. ``width`` is that of the result."""

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
    """Configuration of a fusion."""

    def build(self, widths: Mapping[str, int]) -> Fusion:
        """Args: widths: width of each stream, by its name."""
        raise NotImplementedError


class Topology(nn.Module):
    """Base of the topologies. ``width`` is that of the result."""

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
    """Configuration of a topology."""

    def build(self, fusion: Fusion, widths: Mapping[str, int]) -> Topology:
        raise NotImplementedError


@dataclass(frozen=True)
class Decoded:
    """What a decoder returns; sums rather than means, so that they can be added over batches and workers.

    Attributes:
        logits_NK: scores of the classes.
        loss_sum: weighted sum of the losses of the labelled texts; None where no targets were given.
        count: sum of their weights.
        correct: weighted sum of the texts that were answered right.
    """

    logits_NK: Tensor
    loss_sum: Tensor | None = None
    count: Tensor | None = None
    correct: Tensor | None = None


class Decoder(nn.Module):
    """Base of the decoders. ``forward(fused, **targets)`` returns ``Decoded``; each task names its own targets.

    Attributes:
        pooled_only: the decoder reads nothing of the joint stream but its pooled vector.
    """

    pooled_only: bool = False


class DecoderPart(Part):
    """Configuration of a decoder."""

    def build(self, width: int, vocabulary: Vocabulary) -> Decoder:
        raise NotImplementedError
